//! A further server of a cluster: at its first start it fetches the keys that all servers share, from one that is there.
//!
//! **Invariant**: nothing is kept of a cluster whose authority is not the one that the user named, and a server with keys
//! of its own gets no others.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use decapod_apiserver::pki::{self, share};
use decapod_client::clock::{Clock, timeout};
use serde::Deserialize;

use super::{Cluster, PATIENCE, SETTLING, SOON, is_bootstrap};
use crate::cluster::settings::{Place, Settings};
use crate::failure::{Failure, chain};

/// How a server joins the cluster of another one.
#[derive(Args, Clone, Debug)]
pub(in crate::cluster) struct Further {
    /// Join the cluster of this API server, https://HOST:6443, as a further server on the same etcd: its keys are fetched at
    /// the first start. Several by commas.
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    server: Vec<String>,
    /// A token for a server (`decapod token create --role server`), by which it gets the keys.
    #[arg(long, env = "DECAPOD_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The hash of the public key of the cluster's authority, sha256:HEX, by which it is recognized.
    #[arg(long, requires = "server")]
    ca_cert_hash: Option<String>,
    /// The certificate of the cluster's authority, in place of its hash.
    #[arg(long, requires = "server", conflicts_with = "ca_cert_hash")]
    ca_file: Option<PathBuf>,
}

/// What a server answers at [`share::PATH`].
#[derive(Deserialize)]
struct Keys {
    files: BTreeMap<String, String>,
}

impl Further {
    /// Brings the keys to `place`, unless they are there.
    pub(in crate::cluster) async fn join(
        &self,
        place: &Place,
        settings: &Settings,
        clock: &Arc<dyn Clock>,
    ) -> Result<(), Failure> {
        if self.server.is_empty() {
            return Ok(());
        }
        if !settings.store.is_shared() {
            return Err(Failure::new("--server joins a cluster of several servers, and they share an etcd: none is named")
                .hint("--datastore etcd=URL,URL,… names its members, as on the first server; a machine that is to be a node only runs `decapod agent`"));
        }
        let folder = place.data().join("pki");
        if share::has_keys(&folder) {
            return self.known(&folder);
        }
        let token = self.token.as_deref().filter(|token| is_bootstrap(token)).ok_or_else(|| {
            let why = if self.token.is_some() {
                "--token is no bootstrap token"
            } else {
                "this server has no keys yet, and no token to get them"
            };
            Failure::new(why).hint(
                "`decapod token create --role server` on a server of the cluster makes one; --token takes it",
            )
        })?;
        let cluster =
            Cluster::find(&self.server, self.ca_file.as_deref(), self.ca_cert_hash.as_deref(), place).await?;
        let pin = cluster.pin()?;
        let client = cluster.with_token(token, clock.clone())?.client();
        let asked = timeout(&**clock, PATIENCE, fetch(&client, &**clock)).await;
        let keys =
            asked.unwrap_or_else(|| Err(Failure::new("no server has handed out the keys in 10 minutes")))?;
        let received = share::receive(&folder, &keys.files, &pin);
        received.map_err(|e| Failure::new(format!("the keys of the cluster: {}", chain(&e))))?;
        tracing::info!(folder = %folder.display(), "this server has got the cluster's keys");
        Ok(())
    }

    /// A server that has keys has joined before, or had a cluster of its own.
    fn known(&self, folder: &std::path::Path) -> Result<(), Failure> {
        let wanted = match (&self.ca_cert_hash, &self.ca_file) {
            (Some(hash), _) => Some(hash.clone()),
            (None, Some(file)) => pki::pin(&super::read(file)?),
            (None, None) => None,
        };
        let there =
            share::authority(folder).map_err(|e| Failure::new(chain(&e)))?.and_then(|pem| pki::pin(&pem));
        match (wanted, there) {
            (Some(wanted), Some(there)) if wanted != there => Err(Failure::new(format!(
                "{} holds the keys of another cluster ({there}), not those of {wanted}",
                folder.display()
            ))
            .hint("if that cluster is not wanted any more, remove the folder; --data-dir names another one")),
            _ => Ok(()),
        }
    }
}

/// Asks for the keys. A cluster that has just started may not have made the role yet that lets a token have them.
async fn fetch(client: &kube::Client, clock: &dyn Clock) -> Result<Keys, Failure> {
    let begun = clock.monotonic();
    loop {
        let request = http::Request::get(share::PATH).body(Vec::new()).map_err(kube::Error::HttpError)?;
        let failure = match client.request::<Keys>(request).await {
            Ok(keys) => return Ok(keys),
            Err(error) => Failure::from(error),
        };
        if failure.is("Unauthorized") {
            return Err(Failure::new("the server does not know the token, or it has expired").hint(
                "`decapod token create --role server` on a server of the cluster makes a new one, `decapod token list` shows them",
            ));
        }
        if failure.is("BadRequest") {
            return Err(failure.hint("move it into an etcd first: `decapod snapshot save`, then `decapod snapshot restore --datastore etcd=…`, and start the first server with that --datastore"));
        }
        if !failure.is("Forbidden") {
            return Err(failure);
        }
        if clock.monotonic().saturating_sub(begun) > SETTLING {
            return Err(Failure::new("the token is not one for servers: it does not buy the cluster's keys")
                .hint("`decapod token create --role server` makes one that does; with this one a machine joins as a node, by `decapod agent`"));
        }
        clock.sleep(SOON).await;
    }
}
