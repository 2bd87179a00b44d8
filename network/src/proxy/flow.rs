//! UDP flows that go where nobody serves any more.
//!
//! A translated flow keeps its target for as long as the client sends; TCP notices a target that is gone,
//! UDP does not. So flows are forgotten when their target is no longer one of the Service's, and when
//! they began before the Service had an endpoint and were not translated at all.

use std::collections::BTreeSet;

use super::ruleset::{Frontend, Ruleset, Target};
use crate::netlink::conntrack::Flow;
use crate::protocol::Protocol;

/// Whether a flow through one of the `changed` frontends goes somewhere else than the rules say now.
pub(super) fn is_stale(flow: &Flow, changed: &BTreeSet<Frontend>, ruleset: &Ruleset) -> bool {
    let original = &flow.original;
    if original.protocol != Protocol::Udp.number() {
        return false;
    }
    let ip = Frontend::Ip(original.destination, Protocol::Udp, original.destination_port);
    let port = Frontend::Port(Protocol::Udp, original.destination_port);
    let Some(frontend) = [ip, port].into_iter().find(|frontend| changed.contains(frontend)) else {
        return false;
    };
    let now = Target { address: flow.reply.source, port: flow.reply.source_port };
    let untranslated = now.address == original.destination && now.port == original.destination_port;
    match ruleset.flow_targets(&frontend) {
        Some(targets) => !targets.contains(&now),
        None => !untranslated,
    }
}
