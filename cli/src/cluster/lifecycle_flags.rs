//! The flags that say when a node or a leader counts as lost, and what follows: Kubernetes', by their names. The defaults
//! are such that the pods of a dead node run elsewhere within 30 s.

use std::time::Duration;

use clap::{ArgAction, Args};
use decapod_apiserver::Tolerations;
use decapod_client::leader::{self, Terms};
use decapod_controllers::nodelifecycle;
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::failure::Failure;

/// How long pods stay on a lost node by default: with the 8 s after which it counts as lost, and what a start takes,
/// they run elsewhere within 30 s.
const TOLERATED: i64 = 15;

/// When nodes and leaders count as lost.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LifecycleFlags {
    /// A node that is not heard of for this long counts as lost. Several times as long as nodes take to renew their Leases.
    #[arg(long, value_name = "DURATION", default_value = "8s", value_parser = positive)]
    node_monitor_grace_period: String,
    /// The same for a node that was never heard of.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = positive)]
    node_startup_grace_period: String,
    /// This machine's node shows itself four times in this time.
    #[arg(long, value_name = "SECONDS", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=3600))]
    node_lease_duration_seconds: u32,
    /// How many nodes of a zone are emptied in a second when they are lost.
    #[arg(long, value_name = "RATE", default_value = "0.1", value_parser = rate)]
    node_eviction_rate: String,
    /// The same in a large zone that has lost many nodes.
    #[arg(long, value_name = "RATE", default_value = "0.01", value_parser = rate)]
    secondary_node_eviction_rate: String,
    /// Which share of its nodes a zone must have lost (more than two) so that it is emptied slowly, or if it is small not at all.
    #[arg(long, value_name = "SHARE", default_value = "0.55", value_parser = share)]
    unhealthy_zone_threshold: String,
    /// A zone with more nodes is large.
    #[arg(long, value_name = "NODES", default_value_t = 50)]
    large_cluster_size_threshold: usize,
    /// For how long pods that do not say otherwise stay on a node that is not ready (Kubernetes: 300).
    #[arg(long, value_name = "SECONDS", default_value_t = TOLERATED, value_parser = clap::value_parser!(i64).range(0..))]
    default_not_ready_toleration_seconds: i64,
    /// For how long they stay on a node that is not heard of (Kubernetes: 300).
    #[arg(long, value_name = "SECONDS", default_value_t = TOLERATED, value_parser = clap::value_parser!(i64).range(0..))]
    default_unreachable_toleration_seconds: i64,
    /// Of several servers on one etcd one schedules, and one runs the controllers: whoever holds the Leases.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    leader_elect: bool,
    /// A leader that is not heard of for this long is replaced.
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = positive)]
    leader_elect_lease_duration: String,
    /// A leader that cannot renew its Lease for this long ceases to lead.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = positive)]
    leader_elect_renew_deadline: String,
    /// The time between two tries to get or renew a Lease.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = positive)]
    leader_elect_retry_period: String,
}

impl Default for LifecycleFlags {
    fn default() -> Self {
        Self {
            node_monitor_grace_period: "8s".to_owned(),
            node_startup_grace_period: "1m".to_owned(),
            node_lease_duration_seconds: 8,
            node_eviction_rate: "0.1".to_owned(),
            secondary_node_eviction_rate: "0.01".to_owned(),
            unhealthy_zone_threshold: "0.55".to_owned(),
            large_cluster_size_threshold: 50,
            default_not_ready_toleration_seconds: TOLERATED,
            default_unreachable_toleration_seconds: TOLERATED,
            leader_elect: true,
            leader_elect_lease_duration: "15s".to_owned(),
            leader_elect_renew_deadline: "10s".to_owned(),
            leader_elect_retry_period: "2s".to_owned(),
        }
    }
}

fn positive(text: &str) -> Result<String, String> {
    match duration::parse(text) {
        Ok(duration) if !duration.is_zero() => Ok(text.to_owned()),
        _ => Err("expected a duration longer than 0s, such as 8s or 1m".to_owned()),
    }
}

fn rate(text: &str) -> Result<String, String> {
    let number = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0);
    number.map(|_| text.to_owned()).ok_or_else(|| "expected nodes in a second, such as 0.1".to_owned())
}

fn share(text: &str) -> Result<String, String> {
    let number = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    number.map(|_| text.to_owned()).ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

impl LifecycleFlags {
    /// The flags that say the same to a server.
    pub(super) fn flags(&self) -> Vec<String> {
        vec![
            format!("--node-monitor-grace-period={}", self.node_monitor_grace_period),
            format!("--node-startup-grace-period={}", self.node_startup_grace_period),
            format!("--node-lease-duration-seconds={}", self.node_lease_duration_seconds),
            format!("--node-eviction-rate={}", self.node_eviction_rate),
            format!("--secondary-node-eviction-rate={}", self.secondary_node_eviction_rate),
            format!("--unhealthy-zone-threshold={}", self.unhealthy_zone_threshold),
            format!("--large-cluster-size-threshold={}", self.large_cluster_size_threshold),
            format!("--default-not-ready-toleration-seconds={}", self.default_not_ready_toleration_seconds),
            format!(
                "--default-unreachable-toleration-seconds={}",
                self.default_unreachable_toleration_seconds
            ),
            format!("--leader-elect={}", self.leader_elect),
            format!("--leader-elect-lease-duration={}", self.leader_elect_lease_duration),
            format!("--leader-elect-renew-deadline={}", self.leader_elect_renew_deadline),
            format!("--leader-elect-retry-period={}", self.leader_elect_retry_period),
        ]
    }

    /// When nodes count as lost, and how fast they are emptied.
    ///
    /// # Errors
    /// If a number is none, as in settings that were changed by hand.
    pub(super) fn nodes(&self) -> Result<nodelifecycle::Options, Failure> {
        let number = |flag: &str, text: &str| {
            text.parse::<f64>().map_err(|error| Failure::new(format!("--{flag} {text}: {error}")))
        };
        Ok(nodelifecycle::Options {
            grace: duration::parse(&self.node_monitor_grace_period)?,
            startup_grace: duration::parse(&self.node_startup_grace_period)?,
            eviction_rate: number("node-eviction-rate", &self.node_eviction_rate)?,
            secondary_eviction_rate: number(
                "secondary-node-eviction-rate",
                &self.secondary_node_eviction_rate,
            )?,
            unhealthy_zone_threshold: number("unhealthy-zone-threshold", &self.unhealthy_zone_threshold)?,
            large_zone: self.large_cluster_size_threshold,
        })
    }

    /// How often this machine's node shows itself.
    pub(super) fn lease_period(&self) -> Duration {
        Duration::from_secs(u64::from(self.node_lease_duration_seconds)) / 4
    }

    /// How long pods stay on a lost node by default.
    pub(super) fn tolerations(&self) -> Tolerations {
        Tolerations {
            not_ready: self.default_not_ready_toleration_seconds,
            unreachable: self.default_unreachable_toleration_seconds,
        }
    }

    /// What the election goes by; `None` if there is none.
    ///
    /// # Errors
    /// If a leader could still work when another begins, or would never get to renew.
    pub(super) fn election(&self) -> Result<Option<Terms>, Failure> {
        let terms = Terms {
            duration: duration::parse(&self.leader_elect_lease_duration)?,
            renew_deadline: duration::parse(&self.leader_elect_renew_deadline)?,
            retry: duration::parse(&self.leader_elect_retry_period)?,
        };
        // A Lease counts whole seconds.
        if terms.duration.subsec_nanos() != 0 {
            return Err(Failure::new(format!(
                "--leader-elect-lease-duration {}: expected whole seconds",
                self.leader_elect_lease_duration
            )));
        }
        if terms.renew_deadline + leader::ENDS_WITHIN >= terms.duration {
            return Err(Failure::new(format!(
                "--leader-elect-renew-deadline {} and --leader-elect-lease-duration {}: a leader that gives up needs {:?} to end its work before another may begin",
                self.leader_elect_renew_deadline,
                self.leader_elect_lease_duration,
                leader::ENDS_WITHIN
            )));
        }
        if terms.retry >= terms.renew_deadline {
            return Err(Failure::new(format!(
                "--leader-elect-retry-period {} must be less than --leader-elect-renew-deadline {}",
                self.leader_elect_retry_period, self.leader_elect_renew_deadline
            )));
        }
        Ok(self.leader_elect.then_some(terms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Flags {
        #[command(flatten)]
        lifecycle: LifecycleFlags,
    }

    fn parse(flags: &[&str]) -> Result<LifecycleFlags, String> {
        let all = [&["x"], flags].concat();
        Flags::try_parse_from(all).map(|flags| flags.lifecycle).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_survive_being_handed_on() {
        assert_eq!(parse(&[]), Ok(LifecycleFlags::default()));
        let flags = [
            "--node-monitor-grace-period=40s",
            "--default-unreachable-toleration-seconds=300",
            "--leader-elect=false",
            "--node-eviction-rate=2",
        ];
        let parsed = parse(&flags).unwrap();
        let handed_on = parsed.flags();
        assert_eq!(parse(&handed_on.iter().map(String::as_str).collect::<Vec<_>>()), Ok(parsed.clone()));
        let nodes = parsed.nodes().unwrap();
        assert_eq!((nodes.grace.as_secs(), nodes.eviction_rate), (40, 2.0));
        assert_eq!(parsed.tolerations(), Tolerations { not_ready: 15, unreachable: 300 });
        assert_eq!(parsed.election().unwrap(), None);
    }

    #[test]
    fn the_defaults_are_those_of_the_parts() {
        let flags = LifecycleFlags::default();
        let (said, own) = (flags.nodes().unwrap(), nodelifecycle::Options::default());
        assert_eq!((said.grace, said.startup_grace), (own.grace, own.startup_grace));
        assert_eq!(flags.lease_period(), Duration::from_secs(2));
        let terms = flags.election().unwrap().unwrap();
        assert_eq!((terms.duration.as_secs(), terms.retry.as_secs()), (15, 2));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (flag, expected) in [
            ("--node-eviction-rate=-1", "nodes in a second"),
            ("--unhealthy-zone-threshold=2", "from 0 to 1"),
            ("--node-monitor-grace-period=0s", "longer than 0s"),
        ] {
            let error = parse(&[flag]).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        for (flag, expected) in [
            ("--leader-elect-renew-deadline=14s", "before another may begin"),
            ("--leader-elect-retry-period=10s", "must be less"),
            ("--leader-elect-lease-duration=15500ms", "whole seconds"),
        ] {
            let error = parse(&[flag]).unwrap().election().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
