//! Reads `/metrics/resource` as a kubelet writes it: Prometheus' text format. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// A counter of processor time and the memory in use, read at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) at: Timestamp,
    /// Seconds of one processor, since it was started.
    pub(super) cpu: f64,
    /// Bytes that cannot be reclaimed at once.
    pub(super) memory: u64,
    /// When it was started, if that is told.
    pub(super) started: Option<Timestamp>,
}

/// Namespace, pod and container.
pub(super) type Key = (String, String, String);

/// All that one answer says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) node: Option<Point>,
    pub(super) containers: BTreeMap<Key, Point>,
}

/// A point that is put together from several lines.
#[derive(Default)]
struct Draft {
    at: Option<Timestamp>,
    cpu: Option<f64>,
    memory: Option<u64>,
    started: Option<Timestamp>,
}

impl Draft {
    /// `None` where a part is missing: half a point is none.
    fn point(self, now: Timestamp) -> Option<Point> {
        let (cpu, memory) = (self.cpu?, self.memory?);
        Some(Point { at: self.at.unwrap_or(now), cpu, memory, started: self.started })
    }
}

/// Reads an answer; `now` is the time of what has none of its own. Lines that say something else are passed over.
pub(super) fn parse(text: &str, now: Timestamp) -> Sample {
    let mut node = Draft::default();
    let mut containers: BTreeMap<Key, Draft> = BTreeMap::new();
    for line in text.lines().filter_map(Line::parse) {
        let draft = match line.name.split_once('_') {
            Some(("node", _)) => &mut node,
            Some(("container", _)) => containers.entry(line.key()).or_default(),
            _ => continue,
        };
        match line.name {
            "node_cpu_usage_seconds_total" | "container_cpu_usage_seconds_total" => {
                draft.cpu = Some(line.value);
                draft.at = line.at.or(draft.at);
            }
            "node_memory_working_set_bytes" | "container_memory_working_set_bytes" => {
                draft.memory = Some(line.value as u64);
            }
            "container_start_time_seconds" => {
                draft.started = Timestamp::from_millisecond((line.value * 1000.0) as i64).ok();
            }
            _ => {}
        }
    }
    let containers = containers.into_iter().filter_map(|(key, draft)| Some((key, draft.point(now)?)));
    Sample { node: node.point(now), containers: containers.collect() }
}

/// `name{label="value",…} value [milliseconds]`
struct Line<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
    at: Option<Timestamp>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let end = line.find(['{', ' '])?;
        let name = &line[..end];
        let (labels, rest) = match line[end..].strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Vec::new(), &line[end..]),
        };
        let mut words = rest.split_ascii_whitespace();
        let value = words.next()?.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0)?;
        let at = words.next().and_then(|at| Timestamp::from_millisecond(at.parse().ok()?).ok());
        Some(Self { name, labels, value, at })
    }

    fn key(&self) -> Key {
        let label = |name: &str| {
            let found = self.labels.iter().find(|(label, _)| *label == name);
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        (label("namespace"), label("pod"), label("container"))
    }
}

/// What is between the braces, and what follows.
fn labels(mut text: &str) -> Option<(Vec<(&str, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.push((name, value));
        text = &rest[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn points_are_put_together() {
        let text = "# HELP node_cpu_usage_seconds_total x\n\
            node_cpu_usage_seconds_total 7.25 1790000001000\nnode_memory_working_set_bytes 1024 1790000001000\n\
            container_cpu_usage_seconds_total{container=\"c\",namespace=\"d\",pod=\"p\"} 1.5 1790000000123\n\
            container_memory_working_set_bytes{container=\"c\",namespace=\"d\",pod=\"p\"} 4096 1790000000123\n\
            container_start_time_seconds{container=\"c\",namespace=\"d\",pod=\"p\"} 1.79e+09\n\
            container_cpu_usage_seconds_total{container=\"half\",namespace=\"d\",pod=\"p\"} 1\n\
            pod_cpu_usage_seconds_total{namespace=\"d\",pod=\"p\"} 2\nresource_scrape_error 0\nrubbish\n";
        let sample = parse(text, Timestamp::UNIX_EPOCH);
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let node = Point { at: at(1_790_000_001_000), cpu: 7.25, memory: 1024, started: None };
        assert_eq!(sample.node, Some(node));
        let key = ("d".to_owned(), "p".to_owned(), "c".to_owned());
        let started = Some(at(1_790_000_000_000));
        let point = Point { at: at(1_790_000_000_123), cpu: 1.5, memory: 4096, started };
        assert_eq!(sample.containers, BTreeMap::from([(key, point)]));
    }

    #[test]
    fn labels_are_unescaped() {
        let line = Line::parse(r#"x{a="q\"\\\n}",b="2"} 3"#).unwrap();
        assert_eq!(line.labels, [("a", "q\"\\\n}".to_owned()), ("b", "2".to_owned())]);
        assert_eq!((line.name, line.value, line.at), ("x", 3.0, None));
        assert!(Line::parse("x{a=\"open").is_none());
        assert!(Line::parse("x NaN").is_none());
    }

    proptest! {
        #[test]
        fn nothing_that_a_node_says_breaks_the_server(text in ".{0,200}", lines in r#"(container_[a-z_]{1,30}(\{[a-z="\\,}]{0,20})? [0-9.e+-]{0,9}( [0-9-]{0,20})?\n){0,5}"#) {
            parse(&text, Timestamp::UNIX_EPOCH);
            parse(&lines, Timestamp::UNIX_EPOCH);
        }
    }
}
