//! Events are news, not records: they are forgotten after an hour, as by kube-apiserver.

use std::time::Duration;

use decapod_api::meta;
use decapod_api::status::Error;
use jiff::Timestamp;
use serde_json::Value;

use super::options::DeleteOptions;
use super::{Call, Registry, core};

/// How long an event is kept after it was last seen.
const KEPT: Duration = Duration::from_secs(60 * 60);

impl Registry {
    /// Deletes the events that are too old.
    pub(crate) async fn expire_events(&self) -> Result<(), Error> {
        let now = self.clock.now();
        for event in self.all(core("events"), "").await? {
            if !expired(&event, now) {
                continue;
            }
            let call = Call::own(core("events"), meta::namespace(&event), meta::name(&event));
            match self.delete(&call, &DeleteOptions::default()).await {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn expired(event: &Value, now: Timestamp) -> bool {
    let times = [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    let newest = times.into_iter().filter_map(|t| t.as_str()?.parse::<Timestamp>().ok()).max();
    newest.is_some_and(|newest| now.as_second() - newest.as_second() > KEPT.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_that_is_seen_again_stays() {
        let now: Timestamp = "2027-01-15T08:00:00Z".parse().unwrap();
        let event = |last: &str| json!({"metadata": {"creationTimestamp": "2027-01-15T01:00:00Z"}, "lastTimestamp": last});
        assert!(expired(&event("2027-01-15T06:59:00Z"), now));
        assert!(!expired(&event("2027-01-15T07:01:00Z"), now));
        assert!(!expired(&json!({}), now));
    }
}
