//! Which ranges of Service addresses are ready, and which of those that are to go may: pure.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR, ServiceCIDRStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;

/// The finalizer that keeps a range as long as Services have addresses that only it has.
pub(super) const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// How long a range that may go is kept still, as in Kubernetes: API servers that have not yet heard that
/// it is to go may give out an address of it.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const MANAGER: &str = "ipallocator.k8s.io";
const BLOCKED: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

/// What there is to do about a range.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing.
    Nothing,
    /// It lacks the finalizer.
    Protect,
    /// Its status is to say this.
    Tell(ServiceCIDRStatus),
    /// It may go after this time.
    Wait(Duration),
    /// It may go.
    Release,
}

/// An address range of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    base: u128,
    bits: u32,
    is_v6: bool,
}

fn number(address: IpAddr) -> (u128, bool) {
    match address {
        // Both families by their highest bits, so that one mask fits.
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, false),
        IpAddr::V6(address) => (u128::from(address), true),
    }
}

fn mask(bits: u32) -> u128 {
    u128::MAX.checked_shl(128 - bits).unwrap_or(0)
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let (base, is_v6) = number(address.parse().ok()?);
        let bits: u32 = bits.parse().ok().filter(|bits| *bits <= if is_v6 { 128 } else { 32 })?;
        Some(Self { base: base & mask(bits), bits, is_v6 })
    }

    fn holds(self, address: IpAddr) -> bool {
        let (number, is_v6) = number(address);
        is_v6 == self.is_v6 && number & mask(self.bits) == self.base
    }

    fn contains(self, other: Self) -> bool {
        self.is_v6 == other.is_v6 && self.bits <= other.bits && other.base & mask(self.bits) == self.base
    }
}

fn ranges(cidr: &ServiceCIDR) -> Vec<Range> {
    let texts = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    texts.filter_map(|text| Range::parse(text)).collect()
}

fn is_ready(cidr: &ServiceCIDR) -> bool {
    let conditions = cidr.status.iter().flat_map(|status| status.conditions.iter().flatten());
    cidr.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// The ranges that an address of a Service lies in, by name.
pub(super) fn holding<'a>(address: &str, all: &'a [Arc<ServiceCIDR>]) -> Vec<&'a Arc<ServiceCIDR>> {
    let Ok(address) = address.parse::<IpAddr>() else { return Vec::new() };
    all.iter().filter(|cidr| ranges(cidr).iter().any(|range| range.holds(address))).collect()
}

/// Whether the allocator made an address for a Service.
pub(super) fn is_allocated(address: &IPAddress) -> bool {
    address.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER)
}

/// Whether every Service keeps a range for its address without this one.
fn may_go(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> bool {
    let others: Vec<Range> = all
        .iter()
        .filter(|other| other.metadata.uid != cidr.metadata.uid && is_ready(other))
        .flat_map(|other| ranges(other))
        .collect();
    let mine = ranges(cidr);
    if mine.iter().all(|range| others.iter().any(|other| other.contains(*range))) {
        return true;
    }
    let held = addresses.iter().filter(|address| is_allocated(address));
    let mut held = held.filter_map(|address| address.name_any().parse::<IpAddr>().ok());
    held.all(|address| {
        let is_mine = mine.iter().any(|range| range.holds(address));
        !is_mine || others.iter().any(|other| other.holds(address))
    })
}

/// What there is to do about a range, given all ranges and all addresses.
pub(super) fn step(
    cidr: &ServiceCIDR,
    all: &[Arc<ServiceCIDR>],
    addresses: &[Arc<IPAddress>],
    now: Timestamp,
) -> Step {
    let protected = cidr.metadata.finalizers.iter().flatten().any(|one| one == FINALIZER);
    let Some(since) = &cidr.metadata.deletion_timestamp else {
        if !protected {
            return Step::Protect;
        }
        return tell(cidr, "True", "", "Kubernetes Service CIDR is ready", now);
    };
    if !may_go(cidr, all, addresses) {
        return tell(cidr, "False", "Terminating", BLOCKED, now);
    }
    let left = GRACE.saturating_sub(now.duration_since(since.0));
    match Duration::try_from(left).ok().filter(|left| !left.is_zero()) {
        Some(left) => Step::Wait(left),
        None if protected => Step::Release,
        None => Step::Nothing,
    }
}

fn tell(cidr: &ServiceCIDR, value: &str, reason: &str, message: &str, now: Timestamp) -> Step {
    let mut status = cidr.status.clone().unwrap_or_default();
    let conditions = status.conditions.get_or_insert_default();
    let mut condition = Condition {
        type_: "Ready".to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(now),
        observed_generation: None,
    };
    match conditions.iter_mut().find(|known| known.type_ == "Ready") {
        Some(known) if known.status == value && known.reason == reason => return Step::Nothing,
        Some(known) => {
            if known.status == condition.status {
                condition.last_transition_time = known.last_transition_time.clone();
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
    Step::Tell(status)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cidr(name: &str, ranges: &[&str], deleting: bool) -> Arc<ServiceCIDR> {
        let at = if deleting { json!("2026-01-01T00:00:00Z") } else { Value::Null };
        let ready = json!([{"type": "Ready", "status": "True", "reason": "", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let object = json!({"metadata": {"name": name, "uid": name, "finalizers": [FINALIZER], "deletionTimestamp": at},
            "spec": {"cidrs": ranges}, "status": {"conditions": ready}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn address(name: &str) -> Arc<IPAddress> {
        let object = json!({"metadata": {"name": name, "labels": {MANAGED_BY: MANAGER}}, "spec": {"parentRef": {"name": "s", "resource": "services"}}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn later(seconds: i64) -> Timestamp {
        "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
    }

    #[test]
    fn ranges_hold_addresses_of_their_family() {
        let range = Range::parse("10.96.0.0/16").unwrap();
        assert!(range.holds("10.96.255.1".parse().unwrap()) && !range.holds("10.97.0.1".parse().unwrap()));
        assert!(!range.holds("fd00::1".parse().unwrap()));
        assert!(range.contains(Range::parse("10.96.3.0/24").unwrap()));
        assert!(!Range::parse("10.96.3.0/24").unwrap().contains(range));
        assert!(Range::parse("fd00::/64").unwrap().holds("fd00::1".parse().unwrap()));
        assert!(Range::parse("0.0.0.0/0").unwrap().contains(range));
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8"] {
            assert_eq!(Range::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_range_in_use_stays_until_another_has_its_addresses() {
        let going = cidr("b", &["10.1.0.0/24"], true);
        let default = cidr("a", &["10.96.0.0/16"], false);
        let (used, elsewhere) = (address("10.1.0.7"), address("10.96.0.1"));
        let alone = [going.clone(), default.clone()];
        let Step::Tell(status) = step(&going, &alone, std::slice::from_ref(&used), later(60)) else {
            panic!()
        };
        let condition = &status.conditions.unwrap()[0];
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "Terminating"));
        assert!(matches!(step(&going, &alone, &[elsewhere], later(60)), Step::Release));
        assert!(matches!(step(&going, &alone, &[], later(4)), Step::Wait(left) if left.as_secs() == 6));
        let covering = cidr("c", &["10.1.0.0/16"], false);
        assert!(matches!(step(&going, &[going.clone(), covering], &[used], later(60)), Step::Release));
    }

    #[test]
    fn a_range_is_protected_and_ready() {
        let ready = cidr("a", &["10.1.0.0/24"], false);
        assert!(matches!(step(&ready, &[], &[], later(0)), Step::Nothing));
        let mut new = ServiceCIDR::clone(&ready);
        new.status = None;
        assert!(matches!(step(&new, &[], &[], later(0)), Step::Tell(_)));
        new.metadata.finalizers = None;
        assert!(matches!(step(&new, &[], &[], later(0)), Step::Protect));
        assert_eq!(holding("10.1.0.3", &[ready]).len(), 1);
    }
}
