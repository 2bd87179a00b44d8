//! What the service proxy counts, under kube-proxy's names. Of all proxies of the process together.

use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use decapod_client::metrics::{Times, register};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IpFamily {
    ip_family: &'static str,
}

/// The only family that there are rules of.
const FAMILY: IpFamily = IpFamily { ip_family: "IPv4" };

struct Metrics {
    times: Times<IpFamily>,
    last: Family<IpFamily, Gauge<f64, AtomicU64>>,
    failures: Family<IpFamily, Counter>,
    changes: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    times: register(
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "SyncProxyRules latency in seconds",
        Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
    ),
    last: register(
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "The last time proxy rules were successfully synced",
        Family::default(),
    ),
    failures: register(
        "kubeproxy_sync_proxy_rules_nftables_sync_failures",
        "Cumulative proxy nftables sync failures",
        Family::default(),
    ),
    changes: register(
        "kubeproxy_sync_proxy_rules_service_changes",
        "Cumulative proxy rules Service changes",
        Counter::default(),
    ),
});

/// So many Services, or what stands behind them, changed.
pub(super) fn changes(services: usize) {
    METRICS.changes.inc_by(services as u64);
}

/// The rules were brought in step, or were not.
pub(super) fn synced(good: bool, took: Duration, now: jiff::Timestamp) {
    METRICS.times.get_or_create(&FAMILY).observe(took.as_secs_f64());
    if good {
        METRICS.last.get_or_create(&FAMILY).set(now.as_millisecond() as f64 / 1e3);
    } else {
        METRICS.failures.get_or_create(&FAMILY).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synchronisations_bear_kube_proxys_names() {
        changes(3);
        synced(true, Duration::from_millis(2), "2026-01-01T00:00:00Z".parse().unwrap());
        synced(false, Duration::from_millis(2), jiff::Timestamp::UNIX_EPOCH);
        let text = decapod_client::metrics::text().unwrap();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1767225600.0",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
    }
}
