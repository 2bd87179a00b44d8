//! What the status of a quota is to say, from the objects in its namespace: pure.

use std::collections::BTreeMap;

use decapod_api::kinds::Amounts;
use decapod_api::quantity::Quantity;
use decapod_api::quota::{Item, amounts};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ResourceQuota, ResourceQuotaStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// What the objects of a namespace use of a quota. Names that objects of no kind in `kinds` are charged
/// under are left out: nobody counts them.
pub(super) fn used<'a>(
    quota: &ResourceQuota,
    kinds: &[Item<'_>],
    items: impl Iterator<Item = Item<'a>>,
    now: Timestamp,
) -> Amounts {
    let spec = quota.spec.clone().unwrap_or_default();
    let hard = spec.hard.clone().unwrap_or_default();
    let tracked = |name: &&String| kinds.iter().any(|kind| kind.tracks(name));
    let mut used: Amounts = hard.keys().filter(tracked).map(|name| (name.clone(), Quantity::ZERO)).collect();
    for item in items.filter(|item| item.covered(&spec, hard.keys())) {
        for (name, amount) in item.usage(now) {
            if let Some(sum) = used.get_mut(&name) {
                *sum += amount;
            }
        }
    }
    used
}

/// The status to be written, if it differs from the present one.
pub(super) fn status(quota: &ResourceQuota, used: &Amounts) -> Option<ResourceQuotaStatus> {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
    let old = quota.status.clone().unwrap_or_default();
    let same = amounts(old.hard.iter().flatten()) == amounts(&hard)
        && amounts(old.used.iter().flatten()) == *used
        && (old.hard.is_some() || hard.is_empty());
    let text = |(name, amount): (&String, &Quantity)| (name.clone(), Text::from(*amount));
    let used: BTreeMap<String, Text> = used.iter().map(text).collect();
    (!same).then_some(ResourceQuotaStatus { hard: Some(hard), used: Some(used) })
}

/// Whether the quota says that more is used than is.
pub(super) fn gives_back(quota: &ResourceQuota, used: &Amounts) -> bool {
    let before = amounts(quota.status.iter().flat_map(|status| status.used.iter().flatten()));
    used.iter().any(|(name, amount)| before.get(name).is_some_and(|before| before > amount))
}

/// Whether a quota's use grew between two of its states: it was charged.
pub(super) fn was_charged(old: &ResourceQuota, new: &ResourceQuota) -> bool {
    gives_back(new, &amounts(old.status.iter().flat_map(|status| status.used.iter().flatten())))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::common::pods::testing::pod;

    fn quota(hard: Value, status: Value) -> ResourceQuota {
        serde_json::from_value(json!({"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": status}))
            .unwrap()
    }

    #[test]
    fn use_is_counted_for_the_names_that_the_quota_limits() {
        let quota = quota(
            json!({"pods": "5", "count/pods": "5", "count/unknown.example.com": "1", "secrets": "3"}),
            json!({}),
        );
        let (a, mut b) = (pod("a", None), pod("b", None));
        b.status.as_mut().unwrap().phase = Some("Failed".to_owned());
        let default = k8s_openapi::api::core::v1::Pod::default();
        let kinds = [Item::Pod(&default), Item::Other("", "secrets")];
        let items = [Item::Pod(&a), Item::Pod(&b), Item::Other("", "secrets")];
        let used = used(&quota, &kinds, items.into_iter(), Timestamp::UNIX_EPOCH);
        let told: Vec<String> = used.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
        assert_eq!(told, ["count/pods=2", "pods=1", "secrets=1"]);
    }

    #[test]
    fn the_status_is_written_where_it_differs_in_amount() {
        let used = Amounts::from([("requests.cpu".to_owned(), Quantity::from_millis(1000))]);
        let new = quota(json!({"requests.cpu": "2"}), json!({}));
        let status = status(&new, &used).unwrap();
        assert_eq!(status.used.unwrap()["requests.cpu"].0, "1");
        let same = quota(
            json!({"requests.cpu": "2"}),
            json!({"hard": {"requests.cpu": "2000m"}, "used": {"requests.cpu": "1000m"}}),
        );
        assert!(super::status(&same, &used).is_none());
        let more = quota(
            json!({"requests.cpu": "2"}),
            json!({"hard": {"requests.cpu": "2"}, "used": {"requests.cpu": "1500m"}}),
        );
        assert!(gives_back(&more, &used) && !gives_back(&same, &used));
        assert!(was_charged(&same, &more) && !was_charged(&more, &same));
        let empty = quota(json!({}), json!({}));
        assert!(super::status(&empty, &Amounts::new()).is_none());
    }
}
