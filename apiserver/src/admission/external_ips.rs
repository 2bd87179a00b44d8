//! DenyServiceExternalIPs (not on by default): no Service takes addresses for itself that it did not have before.

use async_trait::async_trait;
use decapod_api::status::Error;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};

pub(super) struct DenyServiceExternalIps;

#[async_trait]
impl Plugin for DenyServiceExternalIps {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }

    fn on_by_default(&self) -> bool {
        false
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        write.operation != Operation::Delete && write.is("", "services")
    }

    async fn validate(&self, write: &Attributes<'_>, service: &Value) -> Result<(), Error> {
        let addresses = |service: &Value| {
            let addresses = service["spec"]["externalIPs"].as_array();
            addresses.cloned().unwrap_or_default()
        };
        let known = write.old.map(addresses).unwrap_or_default();
        if addresses(service).iter().all(|address| known.contains(address)) {
            return Ok(());
        }
        Err(write.call.forbidden("Use of external IPs is denied by admission control"))
    }
}
