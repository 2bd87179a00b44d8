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
use super::settings::{Place, Settings};
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

/// Refuses to serve the objects of a cluster with the keys of another (unless the authority may be any): its tokens and
/// certificates would be refused, and what this server issues would be believed by nobody. And with other ranges: two
/// servers would give out addresses of which half lead nowhere. Where the store does not say whose it is, all is well.
pub(super) async fn check(
    store: &dyn Store,
    ours: Option<&str>,
    settings: &Settings,
    place: &Place,
) -> Result<(), Failure> {
    let entry = store.get(CLUSTER_INFO).await;
    let entry = entry.map_err(|e| Failure::new(format!("the store cannot be read: {}", chain(&e))))?;
    // What another program wrote there may be anything.
    let Some(info) = entry.and_then(|entry| serde_json::from_slice::<Value>(&entry.value).ok()) else {
        return Ok(());
    };
    if let (Some(ours), Some(theirs)) = (ours, authority(&info)) {
        // The certificate is renewed now and then, the key stays.
        let same = pki::pin(&theirs).is_some_and(|pin| pki::pin(ours) == Some(pin));
        if !same {
            return Err(Failure::new("the store holds a cluster of another authority").hint(format!(
                "the keys in {} are this server's own: remove the folder and join by `--server https://FIRST:6443 --token …` (`decapod token create --role server --print-join-command` on a server of the cluster prints it); --replace-authority starts all the same, after an authority was replaced",
                place.data().join("pki").display()
            )));
        }
    }
    agreed(&info, settings)
}

/// Refuses what all servers and nodes of a cluster must say alike and this one does not; `info` is `cluster-info`.
pub(super) fn agreed(info: &Value, settings: &Settings) -> Result<(), Failure> {
    let ours = [
        ("pod-cidr", settings.pod_cidr.to_string()),
        ("service-cidr", settings.service_cidr.to_string()),
        ("cluster-domain", settings.cluster_domain.clone()),
    ];
    for (flag, ours) in ours {
        // An older version did not say.
        if let Some(theirs) = info["data"][flag].as_str().filter(|theirs| *theirs != ours) {
            return Err(Failure::new(format!("--{flag} {ours}: the cluster has {theirs}"))
                .hint(format!("start it with --{flag} {theirs}")));
        }
    }
    Ok(())
}

/// The certificate that `cluster-info` names.
fn authority(info: &Value) -> Option<String> {
    let config: Value = serde_saphyr::from_str(info["data"]["kubeconfig"].as_str()?).ok()?;
    kubeconfig::authority(&config)
}

#[cfg(test)]
mod tests {
    use decapod_apiserver::pki::Pki;
    use decapod_storage::{Embedded, embedded};

    use super::*;
    use crate::cluster::addons;
    use crate::cluster::settings::Which;
    use crate::cluster::settings::tests::settings;

    #[tokio::test]
    async fn keys_of_another_cluster_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let which = Which { name: "x".to_owned(), data_dir: dir.path().to_owned() };
        let place = which.place().unwrap();
        let store = Embedded::open(&dir.path().join("store"), embedded::Options::default()).unwrap();
        let now = Timestamp::now();
        let ours = Pki::open(&dir.path().join("ours"), now).unwrap();
        let same = settings(&[]);
        check(&store, Some(ours.ca_pem()), &same, &place).await.unwrap();
        let info = addons::cluster_info("https://10.0.0.1:6443", ours.ca_pem(), &same);
        store.create(CLUSTER_INFO, info.to_string().into()).await.unwrap();
        check(&store, Some(ours.ca_pem()), &same, &place).await.unwrap();
        let other = Pki::open(&dir.path().join("other"), now).unwrap();
        let why = check(&store, Some(other.ca_pem()), &same, &place).await.unwrap_err().to_string();
        assert!(why.contains("another authority") && why.contains("--role server"), "{why}");
        check(&store, None, &same, &place).await.unwrap();
        let elsewhere = settings(&["--service-cidr", "10.7.0.0/16"]);
        let why = check(&store, None, &elsewhere, &place).await.unwrap_err().to_string();
        assert!(why.starts_with("--service-cidr 10.7.0.0/16: the cluster has 10.96.0.0/16"), "{why}");
    }
}
