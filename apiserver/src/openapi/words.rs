//! What Kubernetes says of types and fields, and which texts a field may hold.
//!
//! The descriptions are packed into the program (see `build.rs`) and unpacked only while documents are made.

use std::collections::HashMap;
use std::io::Read;
use std::sync::LazyLock;

use serde_json::Value;

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.json.z"));

/// What is said of the figures of `metrics.k8s.io`, which are no part of Kubernetes' own documents: types, a field of
/// them or none, and the words.
const FIGURES: [(&[&str], &str, &str); 9] = [
    (&["NodeMetrics"], "", "What a node used of its resources over a time."),
    (&["PodMetrics"], "", "What the containers of a pod used of their node over a time."),
    (&["ContainerMetrics"], "", "What a container used of its node."),
    (&["NodeMetrics"], "metadata", "The name and labels of the node."),
    (&["NodeMetrics", "PodMetrics"], "timestamp", "When the figures were taken: the end of their window."),
    (
        &["NodeMetrics", "PodMetrics"],
        "window",
        "How long before the timestamp the window of the figures began.",
    ),
    (&["PodMetrics"], "containers", "The figures of each container, taken within the same window."),
    (&["ContainerMetrics"], "name", "The container's name in its pod."),
    (
        &["NodeMetrics", "ContainerMetrics"],
        "usage",
        "What was used, by resource: of cpu the mean over the window, of memory the working set.",
    ),
];

fn of_figures(ty: &str, field: &str) -> &'static str {
    let Some(ty) = ty.strip_prefix("io.k8s.metrics.pkg.apis.metrics.v1beta1.") else { return "" };
    FIGURES.iter().find(|(types, f, _)| *f == field && types.contains(&ty)).map_or("", |(_, _, said)| said)
}

/// By type, by field.
type Enums = HashMap<&'static str, HashMap<&'static str, Vec<&'static str>>>;

static ENUMS: LazyLock<Enums> = LazyLock::new(|| {
    let lines = include_str!("enums.txt").lines().filter(|line| !line.starts_with('#'));
    let parts = lines.filter_map(|line| {
        let mut words = line.splitn(3, ' ');
        Some((words.next()?, words.next()?, words.next()?))
    });
    let mut enums = Enums::new();
    for (ty, field, values) in parts {
        enums.entry(ty).or_default().insert(field, values.split('|').collect());
    }
    enums
});

/// The texts that a field, or the items of it, may hold; nothing if it is free.
pub(super) fn values(ty: &str, field: &str) -> Option<&'static [&'static str]> {
    ENUMS.get(ty)?.get(field).map(Vec::as_slice)
}

/// The descriptions, unpacked.
pub(super) struct Words(Value);

impl Words {
    pub(super) fn unpack() -> Self {
        let mut json = String::new();
        let read = flate2::read::ZlibDecoder::new(PACKED).read_to_string(&mut json);
        read.expect("the build script packed a text");
        Self(serde_json::from_str(&json).expect("the build script wrote JSON"))
    }

    /// What is said of a type; empty if nothing is.
    pub(super) fn of_type(&self, ty: &str) -> &str {
        self.0[ty][0].as_str().unwrap_or_else(|| of_figures(ty, ""))
    }

    /// What is said of a field; empty if nothing is.
    pub(super) fn of_field(&self, ty: &str, field: &str) -> &str {
        self.0[ty][1][field].as_str().unwrap_or_else(|| of_figures(ty, field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use decapod_api::facts;

    #[test]
    fn every_enumeration_is_of_a_field_that_is_there() {
        for (ty, fields) in &*ENUMS {
            let known = facts::lookup(ty).unwrap_or_else(|| panic!("{ty}"));
            for field in fields.keys() {
                assert!(known.fields.contains_key(field), "{ty}.{field}");
            }
        }
        let policies = values("io.k8s.api.core.v1.Container", "imagePullPolicy");
        assert_eq!(policies, Some(&["Always", "IfNotPresent", "Never"][..]));
    }

    #[test]
    fn every_type_of_a_kind_is_described_with_its_fields() {
        let words = Words::unpack();
        for row in decapod_api::resource::RESOURCES {
            assert!(!words.of_type(row.type_name).is_empty(), "{}", row.type_name);
        }
        let mut described = 0;
        for ty in facts::all() {
            for field in ty.fields.keys() {
                described += usize::from(!words.of_field(ty.name, field).is_empty());
            }
        }
        let all: usize = facts::all().map(|ty| ty.fields.len()).sum();
        // A few fields are described nowhere in Kubernetes itself.
        assert!(described * 100 > all * 97, "{described} of {all}");
    }
}
