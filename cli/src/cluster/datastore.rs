//! Where objects are kept, and by which keys Secrets are enciphered there.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use decapod_apiserver::pki::share::ENCRYPTION;
use decapod_storage::encryption::Config;
use decapod_storage::etcd::{Login, Options, Tls};
use decapod_storage::{Embedded, Etcd, Store, embedded};
use serde::{Deserialize, Serialize};

use super::settings::Place;
use crate::failure::{Failure, chain};

const EMBEDDED: &str = "embedded";

/// The flags of the store.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Datastore {
    /// Where objects are kept: embedded, or etcd=URL,URL,…
    #[arg(long, default_value = EMBEDDED, value_parser = parse)]
    datastore: String,
    /// The authority that signed the certificates of etcd's members.
    #[arg(long, alias = "etcd-cafile")]
    etcd_ca_file: Option<PathBuf>,
    /// The certificate by which etcd knows us.
    #[arg(long, alias = "etcd-certfile", requires = "etcd_key_file")]
    etcd_cert_file: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, alias = "etcd-keyfile", requires = "etcd_cert_file")]
    etcd_key_file: Option<PathBuf>,
    /// The user of etcd that we are, where etcd wants a name and a password. It reads and writes all keys.
    #[arg(long, value_name = "NAME", requires = "etcd_password_file")]
    etcd_user: Option<String>,
    /// The file of its password.
    #[arg(long, value_name = "FILE", requires = "etcd_user")]
    etcd_password_file: Option<PathBuf>,
    /// A Kubernetes EncryptionConfiguration (default: Secrets by a key that is made under the data
    /// directory).
    #[arg(long)]
    encryption_provider_config: Option<PathBuf>,
}

impl Default for Datastore {
    fn default() -> Self {
        Self {
            datastore: EMBEDDED.to_owned(),
            etcd_ca_file: None,
            etcd_cert_file: None,
            etcd_key_file: None,
            etcd_user: None,
            etcd_password_file: None,
            encryption_provider_config: None,
        }
    }
}

fn parse(text: &str) -> Result<String, String> {
    match text.strip_prefix("etcd=") {
        Some("") => Err("etcd= wants the URLs of the members".to_owned()),
        Some(_) => Ok(text.to_owned()),
        None if text == EMBEDDED => Ok(text.to_owned()),
        None => Err("expected embedded or etcd=URL,URL,…".to_owned()),
    }
}

impl Datastore {
    /// The flags that make the same of another process.
    pub(super) fn flags(&self) -> Vec<String> {
        let mut flags = vec![format!("--datastore={}", self.datastore)];
        let files = [
            ("--etcd-ca-file", &self.etcd_ca_file),
            ("--etcd-cert-file", &self.etcd_cert_file),
            ("--etcd-key-file", &self.etcd_key_file),
            ("--etcd-password-file", &self.etcd_password_file),
            ("--encryption-provider-config", &self.encryption_provider_config),
        ];
        for (flag, file) in files {
            // The server runs in another folder; where ours is unknown, the path stays as it was given.
            let absolute = |file: &PathBuf| std::path::absolute(file).unwrap_or_else(|_| file.clone());
            flags.extend(file.as_ref().map(|file| format!("{flag}={}", absolute(file).display())));
        }
        flags.extend(self.etcd_user.iter().map(|user| format!("--etcd-user={user}")));
        flags
    }

    /// The etcd that is meant, if one is.
    fn etcd(&self) -> Result<Option<Options>, Failure> {
        let Some(endpoints) = self.datastore.strip_prefix("etcd=") else { return Ok(None) };
        let tls = Tls {
            ca: self.etcd_ca_file.clone(),
            certificate: self.etcd_cert_file.clone(),
            key: self.etcd_key_file.clone(),
        };
        let options = Options::new(endpoints, tls)
            .map_err(|e| Failure::new(format!("--datastore {}: {}", self.datastore, chain(&e))))?;
        let login = self.etcd_user.clone().zip(self.etcd_password_file.clone());
        let login = login.map(|(user, password_file)| Login { user, password_file });
        Ok(Some(Options { login, ..options }))
    }

    /// Whether other servers may work on the same objects.
    pub(super) fn is_shared(&self) -> bool {
        self.datastore != EMBEDDED
    }

    /// Its kind, as snapshots name it.
    pub(super) fn kind(&self) -> &'static str {
        if self.is_shared() { "etcd" } else { EMBEDDED }
    }

    /// Where the embedded store lies.
    pub(super) fn file(place: &Place) -> PathBuf {
        place.data().join("db/store.redb")
    }

    /// Whether the flags make sense together; reads no file.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let etcd = self.etcd()?;
        let named = [&self.etcd_ca_file, &self.etcd_cert_file, &self.etcd_password_file];
        if etcd.is_none() && named.into_iter().any(Option::is_some) {
            return Err(Failure::new("--etcd-… flags go with --datastore etcd=URL,…"));
        }
        Ok(())
    }

    /// Opens the store.
    pub(super) async fn open(&self, place: &Place) -> Result<Arc<dyn Store>, Failure> {
        if let Some(options) = self.etcd()? {
            let store = Etcd::open(&options).await.map_err(|e| {
                Failure::new(format!("--datastore {}: {}", self.datastore, chain(&e)))
                    .hint("`etcdctl endpoint health` with the same URLs and certificates shows how etcd is")
            })?;
            return Ok(Arc::new(store));
        }
        let file = Self::file(place);
        let store = Embedded::open(&file, embedded::Options::default()).map_err(|e| {
            Failure::new(format!("the store {} cannot be opened: {}", file.display(), chain(&e)))
        })?;
        Ok(Arc::new(store))
    }

    /// Where it is said by which keys what is enciphered.
    pub(super) fn encryption_file(&self, place: &Place) -> PathBuf {
        let own = || place.data().join("pki").join(ENCRYPTION);
        self.encryption_provider_config.clone().unwrap_or_else(own)
    }

    /// By which keys what is enciphered.
    pub(super) fn encryption(&self, place: &Place) -> Result<Config, Failure> {
        let file = self.encryption_file(place);
        let config = match &self.encryption_provider_config {
            Some(_) => Config::read(&file),
            None => Config::read_or_make(&file),
        };
        config.map_err(|e| Failure::new(format!("encryption at rest: {}", chain(&e))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        store: Datastore,
    }

    #[test]
    fn flags_make_the_same_again() {
        let given = [
            "x",
            "--datastore=etcd=https://a:1",
            "--etcd-ca-file=/ca",
            "--etcd-password-file=/p",
            "--encryption-provider-config=/e",
            "--etcd-user=me",
        ];
        let store = Flags::parse_from(given).store;
        assert_eq!(store.flags(), given[1..]);
        store.check().unwrap();
        assert_eq!(Flags::parse_from(["x"]).store, Datastore::default());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [["x", "--datastore=sqlite"], ["x", "--datastore=etcd="], ["x", "--etcd-cert-file=/c"]] {
            assert!(Flags::try_parse_from(bad).is_err(), "{bad:?}");
        }
        let plain = Flags::parse_from(["x", "--datastore=etcd=http://10.0.0.1:2379"]).store;
        assert!(plain.check().unwrap_err().to_string().contains("loopback"));
        assert!(Flags::parse_from(["x", "--etcd-ca-file=/ca"]).store.check().is_err());
    }
}
