//! The certificate authority as the controllers see it: the keys of the API server of this process; and whether they are
//! those of the cluster whose objects it serves.

use std::time::Duration;

use decapod_apiserver::Handle;
use decapod_apiserver::pki::{self, SigningRequest};
use decapod_controllers::certificates::{Authority, Refused, Subject};
use decapod_storage::Store;
use jiff::Timestamp;
use serde_json::Value;

use super::kubeconfig;
use super::settings::Place;
use crate::failure::{Failure, chain};

/// Signs with the keys of the API server.
#[derive(Debug)]
pub(super) struct Keys(pub(super) Handle);

fn refused(error: impl std::error::Error + 'static) -> Refused {
    Refused(chain(&error))
}

impl Authority for Keys {
    fn inspect(&self, request: &[u8]) -> Result<Subject, Refused> {
        let request = SigningRequest::parse(request).map_err(refused)?;
        Ok(Subject {
            common_name: request.common_name,
            organizations: request.organizations,
            dns_names: request.dns_names,
            ip_addresses: request.ip_addresses,
            emails: request.emails,
            uris: request.uris,
        })
    }

    fn sign(
        &self,
        request: &[u8],
        usages: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, Refused> {
        let request = SigningRequest::parse(request).map_err(refused)?;
        self.0.pki().sign(&request, usages, lifetime, now).map_err(refused)
    }

    fn secret_token(
        &self,
        namespace: &str,
        account: &str,
        account_uid: &str,
        secret: &str,
    ) -> Result<String, Refused> {
        self.0.secret_token(namespace, account, account_uid, secret).map_err(refused)
    }
}

/// Where the cluster says publicly which authority it has.
const CLUSTER_INFO: &str = "/registry/configmaps/kube-public/cluster-info";

/// Refuses to serve the objects of a cluster with the keys of another: its tokens and certificates would be refused, and
/// what this server issues would be believed by nobody. Where the store does not say whose it is, all is well.
pub(super) async fn check(store: &dyn Store, ours: &str, place: &Place) -> Result<(), Failure> {
    let entry = store.get(CLUSTER_INFO).await;
    let entry = entry.map_err(|e| Failure::new(format!("the store cannot be read: {}", chain(&e))))?;
    let Some(theirs) = entry.and_then(|entry| authority(&entry.value)) else { return Ok(()) };
    // The certificate is renewed now and then, the key stays.
    if pki::pin(&theirs).is_some_and(|pin| pki::pin(ours) == Some(pin)) {
        return Ok(());
    }
    Err(Failure::new("the store holds a cluster of another authority").hint(format!(
        "copy the folder pki from the data directory of one of the cluster's servers to {} (this one has keys of its own there, which go); --replace-authority starts all the same, after an authority was replaced",
        place.data().join("pki").display()
    )))
}

/// The certificate that `cluster-info` names.
fn authority(config_map: &[u8]) -> Option<String> {
    let object: Value = serde_json::from_slice(config_map).ok()?;
    let config: Value = serde_saphyr::from_str(object["data"]["kubeconfig"].as_str()?).ok()?;
    kubeconfig::authority(&config)
}

#[cfg(test)]
mod tests {
    use decapod_apiserver::pki::Pki;
    use decapod_storage::{Embedded, embedded};

    use super::*;
    use crate::cluster::addons;
    use crate::cluster::settings::{Settings, Which};
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    #[tokio::test]
    async fn keys_of_another_cluster_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let which = Which { name: "x".to_owned(), data_dir: dir.path().to_owned() };
        let place = which.place().unwrap();
        let store = Embedded::open(&dir.path().join("store"), embedded::Options::default()).unwrap();
        let now = Timestamp::now();
        let ours = Pki::open(&dir.path().join("ours"), now).unwrap();
        check(&store, ours.ca_pem(), &place).await.unwrap();
        let settings = Flags::parse_from(["decapod"]).settings;
        let info = addons::cluster_info("https://10.0.0.1:6443", ours.ca_pem(), &settings);
        store.create(CLUSTER_INFO, info.to_string().into()).await.unwrap();
        check(&store, ours.ca_pem(), &place).await.unwrap();
        let other = Pki::open(&dir.path().join("other"), now).unwrap();
        let why = check(&store, other.ca_pem(), &place).await.unwrap_err().to_string();
        assert!(why.contains("another authority") && why.contains("pki"), "{why}");
    }
}
