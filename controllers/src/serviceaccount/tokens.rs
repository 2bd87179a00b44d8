//! Secrets of type `kubernetes.io/service-account-token`: each is filled with a token of the service
//! account that it names, and goes with that account.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::{Informer, Selection};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::certificates::Authority;
use crate::common::{Context, Error, Result, Says};

const NAME: &str = "serviceaccount-token-controller";
pub(super) const TYPE: &str = "kubernetes.io/service-account-token";
pub(super) const ACCOUNT: &str = "kubernetes.io/service-account.name";
pub(super) const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

struct Controller {
    context: Context,
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    authority: Arc<dyn Authority>,
    root_ca: Option<String>,
}

/// Starts the controller; Secrets get `root_ca` beside the token.
pub(crate) fn start(context: &Context, authority: Arc<dyn Authority>, root_ca: Option<String>) {
    let queue = Queue::new(context.clock.clone());
    let fields = format!("type={TYPE}");
    let secrets: Informer<Secret> = context.informers.selected(Selection { fields, ..Selection::default() });
    let accounts = context.informers.of::<ServiceAccount>();
    let supervisor = &context.supervisor;
    reconcile::feed(supervisor, NAME, secrets.subscribe(), &queue, |change| [change.key.clone()]);
    let of_account = secrets.clone();
    reconcile::feed(supervisor, NAME, accounts.subscribe(), &queue, move |change| {
        let secrets = of_account.list_in(&change.key.namespace);
        let its = secrets.into_iter().filter(|secret| account(secret) == change.key.name);
        its.map(|secret| ObjectKey::new(&change.key.namespace, secret.name_any())).collect::<Vec<_>>()
    });
    let controller = Arc::new(Controller { context: context.clone(), secrets, accounts, authority, root_ca });
    reconcile::run(supervisor, NAME, &queue, 1, move |key: ObjectKey| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

/// The account that a Secret names; empty if none.
fn account(secret: &Secret) -> String {
    secret.annotations().get(ACCOUNT).cloned().unwrap_or_default()
}

/// What is to be done about a Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Fill,
    Remove,
}

fn plan(secret: &Secret, account: Option<&ServiceAccount>, root_ca: Option<&str>) -> Step {
    let Some(account) = account else { return Step::Remove };
    let uid = account.uid().unwrap_or_default();
    let named = secret.annotations().get(ACCOUNT_UID);
    if named.is_some_and(|named| !named.is_empty() && *named != uid) {
        return Step::Remove;
    }
    let kept = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|value| &value.0);
    let missing = |key: &str| kept(key).is_none_or(Vec::is_empty);
    let other_ca = root_ca.is_some_and(|ca| kept("ca.crt").map(Vec::as_slice) != Some(ca.as_bytes()));
    if named.is_none() || missing("token") || missing("namespace") || other_ca {
        return Step::Fill;
    }
    Step::Nothing
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(secret) = self.secrets.get(key) else { return Ok(None) };
        let name = account(&secret);
        if name.is_empty() || secret.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        self.accounts.synced().await;
        let cached = self.accounts.get(&ObjectKey::new(&key.namespace, &name));
        let api: Api<ServiceAccount> = Api::namespaced(self.context.client.clone(), &key.namespace);
        // The cache may lag behind: nothing is removed by what it does not show yet.
        let account = match plan(&secret, cached.as_deref(), self.root_ca.as_deref()) {
            Step::Remove => api.get_opt(&name).await.says("look up the account of a token")?,
            _ => cached.map(|account| (*account).clone()),
        };
        match plan(&secret, account.as_ref(), self.root_ca.as_deref()) {
            Step::Nothing => {}
            Step::Fill => self.fill(&secret, account.as_ref().and_then(ResourceExt::uid)).await?,
            Step::Remove => self.remove(&secret).await?,
        }
        Ok(None)
    }

    fn api(&self, secret: &Secret) -> Api<Secret> {
        Api::namespaced(self.context.client.clone(), &secret.namespace().unwrap_or_default())
    }

    async fn fill(&self, secret: &Secret, uid: Option<String>) -> Result<()> {
        let (name, namespace) = (secret.name_any(), secret.namespace().unwrap_or_default());
        let uid = uid.unwrap_or_default();
        let mut filled = secret.clone();
        let data: &mut BTreeMap<String, ByteString> = filled.data.get_or_insert_default();
        if let Some(certificate) = &self.root_ca {
            data.insert("ca.crt".to_owned(), ByteString(certificate.clone().into_bytes()));
        }
        data.insert("namespace".to_owned(), ByteString(namespace.clone().into_bytes()));
        if data.get("token").is_none_or(|token| token.0.is_empty()) {
            let token = self.authority.secret_token(&namespace, &account(secret), &uid, &name);
            let token = token.map_err(|refused| Error::Authority(refused.to_string()))?;
            data.insert("token".to_owned(), ByteString(token.into_bytes()));
        }
        filled.annotations_mut().insert(ACCOUNT_UID.to_owned(), uid);
        // The version that was read goes along: another writer wins, and is looked at again.
        match self.api(secret).replace(&name, &PostParams::default(), &filled).await {
            Err(error) if error.is_not_found() => Ok(()),
            written => written.map(drop).says("fill the Secret of a service account token"),
        }
    }

    async fn remove(&self, secret: &Secret) -> Result<()> {
        let preconditions = Preconditions { uid: secret.uid(), resource_version: None };
        let parameters = DeleteParams::default().preconditions(preconditions);
        match self.api(secret).delete(&secret.name_any(), &parameters).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error).says("remove the token of a service account that is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_secret_needs() {
        let mut secret = Secret::default();
        secret.annotations_mut().insert(ACCOUNT.to_owned(), "bot".to_owned());
        let mut account = ServiceAccount::default();
        account.metadata.uid = Some("u1".to_owned());
        assert_eq!(plan(&secret, None, None), Step::Remove);
        assert_eq!(plan(&secret, Some(&account), None), Step::Fill);
        secret.annotations_mut().insert(ACCOUNT_UID.to_owned(), "u1".to_owned());
        let data = ["token", "namespace", "ca.crt"].map(|key| (key.to_owned(), ByteString(b"x".to_vec())));
        secret.data = Some(data.into());
        assert_eq!(plan(&secret, Some(&account), Some("x")), Step::Nothing);
        assert_eq!(plan(&secret, Some(&account), Some("other")), Step::Fill);
        account.metadata.uid = Some("u2".to_owned());
        assert_eq!(plan(&secret, Some(&account), Some("x")), Step::Remove, "another account of that name");
    }
}
