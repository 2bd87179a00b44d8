//! How fast nodes of a zone may be emptied: a whole zone that falls silent is rather cut off than dead, and to
//! start all its pods elsewhere at once would bring the rest down. Pure, apart from what the limiter remembers.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use super::{Options, plan};

/// The zone of a node, as Kubernetes names it: region and zone; empty where it has neither.
pub(super) fn zone(node: &Node) -> String {
    let label = |name: &str| node.labels().get(name).map_or("", String::as_str);
    let (region, zone) = (label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"));
    // Kubernetes puts a NUL between them, which no scraper likes; the text format allows it all the same.
    if region.is_empty() && zone.is_empty() { String::new() } else { format!("{region}:\0:{zone}") }
}

/// How many nodes of a zone are ready, and how many are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) ready: usize,
    pub(super) lost: usize,
}

impl Count {
    /// Counts the nodes of a zone.
    pub(super) fn of<'a>(nodes: impl IntoIterator<Item = &'a Node>, of_zone: &str) -> Self {
        let mut count = Self::default();
        for node in nodes.into_iter().filter(|node| zone(node) == of_zone) {
            match plan::readiness(node) {
                "True" => count.ready += 1,
                _ => count.lost += 1,
            }
        }
        count
    }

    /// How many of its nodes may be emptied in a second; none if 0.
    ///
    /// A zone without any ready node goes at the full rate: the others are fine, else nobody would be evicted.
    pub(super) fn rate(self, options: &Options) -> f64 {
        let size = self.ready + self.lost;
        // Two lost nodes are two lost nodes, however small the zone.
        let disturbed = self.ready > 0
            && self.lost > 2
            && self.lost as f64 >= options.unhealthy_zone_threshold * size as f64;
        match disturbed {
            false => options.eviction_rate,
            true if size > options.large_zone => options.secondary_eviction_rate,
            true => 0.0,
        }
    }
}

/// When the next node of each zone may be emptied.
#[derive(Debug, Default)]
pub(super) struct Limiter(HashMap<String, Duration>);

/// Whether a node may be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Now,
    /// It is asked again after so long.
    After(Duration),
}

impl Limiter {
    /// Gives a node of the zone its turn, if it has come.
    pub(super) fn take(&mut self, zone: &str, rate: f64, now: Duration, rest: Duration) -> Turn {
        let next = self.0.get(zone).copied().unwrap_or_default();
        if rate <= 0.0 {
            return Turn::After(rest);
        }
        if now < next {
            return Turn::After(next - now);
        }
        // A rate so small that the time cannot be told is one node for ever.
        let pause =
            Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::from_secs(u64::from(u32::MAX)));
        self.0.insert(zone.to_owned(), now + pause);
        Turn::Now
    }

    /// Nothing came of the last turn of this zone.
    pub(super) fn give_back(&mut self, zone: &str) {
        self.0.remove(zone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_that_is_half_lost_is_emptied_slowly_or_not_at_all() {
        let options = Options::default();
        let rate = |ready, lost| Count { ready, lost }.rate(&options);
        assert_eq!(rate(2, 1), 0.1);
        assert_eq!(rate(1, 2), 0.1, "two of three are still single losses");
        assert_eq!(rate(1, 3), 0.0, "a small zone waits for a person");
        assert_eq!(rate(40, 60), 0.01, "a large one goes on slowly");
        assert_eq!(rate(60, 40), 0.1);
        assert_eq!(rate(0, 7), 0.1, "all of one zone, where others are fine");
    }

    #[test]
    fn the_nodes_of_a_zone_take_turns() {
        let (mut limiter, rest) = (Limiter::default(), Duration::from_secs(8));
        let second = Duration::from_secs;
        assert_eq!(limiter.take("a", 0.1, second(0), rest), Turn::Now);
        assert_eq!(limiter.take("a", 0.1, second(4), rest), Turn::After(second(6)));
        assert_eq!(limiter.take("b", 0.1, second(4), rest), Turn::Now, "another zone");
        assert_eq!(limiter.take("a", 0.1, second(10), rest), Turn::Now);
        assert_eq!(limiter.take("a", 0.0, second(90), rest), Turn::After(rest));
    }
}
