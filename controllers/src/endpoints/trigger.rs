//! When what made endpoints change happened, for those who measure how long it takes until proxies know:
//! the readiness of a pod, or the creation of the Service.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use decapod_client::ObjectKey;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;

use crate::common::pods;

/// The annotation that carries the time.
pub(super) const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What was known at the last look, by Service. A restart forgets it: the next time is then that of the
/// Service's creation, as in Kubernetes.
#[derive(Debug, Default)]
pub(super) struct TriggerTimes(Mutex<HashMap<ObjectKey, HashMap<String, Timestamp>>>);

impl TriggerTimes {
    /// The earliest change since the last look at the Service; `None` where no time is known.
    pub(super) fn look(&self, key: &ObjectKey, service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
        let changed = |pod: &Arc<Pod>| {
            let condition = pods::condition(pod, "Ready")?;
            Some((pod.name_any(), condition.last_transition_time.as_ref()?.0))
        };
        let times: HashMap<String, Timestamp> = pods.iter().filter_map(changed).collect();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.insert(key.clone(), times.clone());
        let Some(before) = before else {
            return service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        };
        let is_news = |(pod, time): &(&String, &Timestamp)| before.get(*pod).is_none_or(|old| old < *time);
        times.iter().filter(is_news).map(|(_, time)| *time).min()
    }

    /// Forgets a Service that is gone.
    pub(super) fn forget(&self, key: &ObjectKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn the_earliest_news_counts() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let pod = |name: &str, second| Arc::new(pods::testing::pod(name, Some(at(second))));
        let (times, key) = (TriggerTimes::default(), ObjectKey::new("ns", "web"));
        let mut service = Service::default();
        service.metadata.creation_timestamp = Some(Time(at(5)));
        assert_eq!(times.look(&key, &service, &[pod("a", 9)]), Some(at(5)));
        assert_eq!(times.look(&key, &service, &[pod("a", 9)]), None);
        let news = [pod("a", 20), pod("b", 15), pod("c", 30)];
        assert_eq!(times.look(&key, &service, &news), Some(at(15)));
    }
}
