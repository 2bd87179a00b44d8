//! `KubeSchedulerConfiguration` (`kubescheduler.config.k8s.io/v1`): which schedulers there are by name, which plugins
//! each asks, and what the plugins are told.
//!
//! Decoding is strict: a field that is not known, a value that makes no sense and a plugin that does not exist are
//! refused by their path, all of them at once. What concerns a scheduler as a process of its own (leader election, client
//! connection, profiling, parallelism) is accepted and has no effect: this one is a part of the server.

mod arguments;
mod plugins;
mod reader;

use std::fmt;
use std::time::Duration;

use decapod_api::field::{Error as FieldError, Path};
use serde_json::Value;

use crate::core::profile::Profile;
use crate::queue::Backoff;
use reader::Reader;

/// What the schedulers of this process do.
#[derive(Debug)]
pub struct Configuration {
    profiles: Vec<Profile>,
    pub(crate) backoff: Backoff,
}

impl Default for Configuration {
    /// Kubernetes' default scheduler.
    fn default() -> Self {
        Self { profiles: vec![Profile::new(DEFAULT_NAME)], backoff: Backoff::default() }
    }
}

const DEFAULT_NAME: &str = "default-scheduler";
const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";

/// Fields that mean something to a scheduler in a process of its own.
const PROCESS: [&str; 6] = [
    "parallelism",
    "leaderElection",
    "clientConnection",
    "enableProfiling",
    "enableContentionProfiling",
    "delayCacheUntilActive",
];

/// What is wrong with a configuration.
#[derive(Debug)]
pub struct Error(Vec<String>);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Error {}

impl Configuration {
    /// Reads a `KubeSchedulerConfiguration`, as the object that its YAML or JSON is.
    ///
    /// # Errors
    /// All that is wrong with it, each with its path and value.
    pub fn read(object: Value) -> Result<Self, Error> {
        let mut root = Reader::new(Path::root(), object);
        let (version, kind) = (root.text("apiVersion"), root.text("kind"));
        if version.as_deref() != Some(API_VERSION) || kind.as_deref() != Some(KIND) {
            let (version, kind) = (version.unwrap_or_default(), kind.unwrap_or_default());
            return Err(Error(vec![format!(
                "no kind {kind:?} is registered for version {version:?}: expected {KIND:?} of {API_VERSION:?}"
            )]));
        }
        for field in PROCESS {
            root.skip(field);
        }
        let percentage = percentage(&mut root);
        let backoff = backoff(&mut root);
        if root.list("extenders").is_some_and(|extenders| !extenders.is_empty()) {
            root.wrong(|path| FieldError::forbidden(&path.child("extenders"), "extenders are not called by this scheduler: use a scheduler of your own beside it, by spec.schedulerName"));
        }
        let mut profiles = Vec::new();
        for mut profile in root.objects("profiles") {
            profiles.push((profile.path().clone(), read_profile(&mut profile, percentage)));
            root.take_errors(profile);
        }
        if profiles.is_empty() {
            profiles.push((Path::new("profiles").index(0), Profile { percentage, ..Profile::new("") }));
        }
        if let [(_, only)] = &mut profiles[..]
            && only.name.is_empty()
        {
            only.name = DEFAULT_NAME.to_owned();
        }
        for (index, (path, profile)) in profiles.iter().enumerate() {
            let name = path.child("schedulerName");
            if profile.name.is_empty() {
                root.wrong(|_| FieldError::required(&name, ""));
            } else if profiles[..index].iter().any(|(_, other)| other.name == profile.name) {
                root.wrong(|_| FieldError::duplicate(&name, profile.name.clone()));
            }
        }
        root.finish().map_err(Error)?;
        Ok(Self { profiles: profiles.into_iter().map(|(_, profile)| profile).collect(), backoff })
    }

    /// The profile of a scheduler's name.
    pub(crate) fn profile(&self, name: &str) -> Option<&Profile> {
        self.profiles.iter().find(|profile| profile.name == name)
    }

    /// The names of all schedulers.
    pub fn scheduler_names(&self) -> impl Iterator<Item = &str> {
        self.profiles.iter().map(|profile| profile.name.as_str())
    }
}

/// How many of the nodes suffice, in percent; 0 lets the size of the cluster decide.
fn percentage(reader: &mut Reader) -> Option<usize> {
    let percentage = reader.number_in("percentageOfNodesToScore", 0..=100, "not in valid range [0-100]")?;
    usize::try_from(percentage).ok().filter(|percentage| *percentage > 0)
}

fn backoff(root: &mut Reader) -> Backoff {
    let usual = Backoff::default();
    let first = root.number_in("podInitialBackoffSeconds", 1..=i64::MAX, "must be greater than 0");
    let longest = root.number("podMaxBackoffSeconds");
    let seconds = |number: i64| Duration::from_secs(number.unsigned_abs());
    let first = first.map_or(usual.first, seconds);
    if let Some(longest) = longest.filter(|longest| *longest < 0 || seconds(*longest) < first) {
        let why = "must be greater than or equal to PodInitialBackoffSeconds";
        root.wrong(|path| FieldError::invalid(&path.child("podMaxBackoffSeconds"), longest, why));
    }
    // Without a longest of its own, a first beyond the usual longest would be refused by Kubernetes as well.
    if longest.is_none() && first > usual.longest {
        let why = "must be greater than or equal to PodInitialBackoffSeconds";
        let value = i64::try_from(usual.longest.as_secs()).unwrap_or(i64::MAX);
        root.wrong(|path| FieldError::invalid(&path.child("podMaxBackoffSeconds"), value, why));
    }
    Backoff { first, longest: longest.map_or(usual.longest, seconds) }
}

fn read_profile(reader: &mut Reader, usual: Option<usize>) -> Profile {
    let mut profile = Profile::new(&reader.text("schedulerName").unwrap_or_default());
    profile.percentage = if reader.has("percentageOfNodesToScore") { percentage(reader) } else { usual };
    if let Some(mut sets) = reader.object("plugins") {
        plugins::apply(&mut sets, &mut profile);
        reader.take_errors(sets);
    }
    let mut seen: Vec<String> = Vec::new();
    for mut entry in reader.objects("pluginConfig") {
        let name = entry.text("name").unwrap_or_default();
        if seen.contains(&name) {
            entry.wrong(|path| FieldError::duplicate(path, name.clone()));
        }
        arguments::apply(&mut entry, &name, &mut profile);
        seen.push(name);
        reader.take_errors(entry);
    }
    profile
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::core::plugin::Plugin;
    use crate::core::profile::{SpreadDefaults, Strategy};

    fn read(mut more: Value) -> Result<Configuration, String> {
        more["apiVersion"] = json!(API_VERSION);
        more["kind"] = json!(KIND);
        Configuration::read(more).map_err(|error| error.to_string())
    }

    fn profile(more: Value) -> Profile {
        let mut configuration = read(json!({"profiles": [more]})).unwrap();
        configuration.profiles.remove(0)
    }

    #[test]
    fn nothing_said_is_kubernetes_default() {
        let configuration = read(json!({"leaderElection": {"leaderElect": false}})).unwrap();
        let [only] = &configuration.profiles[..] else { panic!("one profile") };
        let usual = Profile::new("default-scheduler");
        assert_eq!((&only.name, &only.weights), (&usual.name, &usual.weights));
        assert_eq!(
            (only.filters, only.post_filters, only.gates),
            (usual.filters, usual.post_filters, usual.gates)
        );
        assert_eq!(configuration.backoff.longest, Duration::from_secs(10));
    }

    #[test]
    fn points_prevail_over_all_points() {
        let one = profile(json!({"plugins": {
            "multiPoint": {"enabled": [{"name": "ImageLocality", "weight": 7}], "disabled": [{"name": "PodTopologySpread"}]},
            "filter": {"disabled": [{"name": "NodePorts"}]},
            "score": {"enabled": [{"name": "NodeAffinity", "weight": 9}], "disabled": [{"name": "TaintToleration"}]}}}));
        assert!(!one.filters(Plugin::NodePorts) && !one.filters(Plugin::PodTopologySpread));
        assert!(one.filters(Plugin::TaintToleration) && one.preempts());
        let weights =
            [Plugin::ImageLocality, Plugin::NodeAffinity, Plugin::TaintToleration, Plugin::PodTopologySpread];
        assert_eq!(weights.map(|plugin| one.weight(plugin)), [7, 9, 0, 0]);
        let bare = profile(json!({"plugins": {"filter": {"disabled": [{"name": "*"}]},
            "score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit"}]},
            "postFilter": {"disabled": [{"name": "*"}]}}}));
        assert!(!bare.preempts() && bare.filters == crate::core::plugin::Set::default());
        assert_eq!((bare.weight(Plugin::NodeResourcesFit), bare.weights.len()), (1, 1));
    }

    #[test]
    fn plugins_are_told_what_they_are_told() {
        let one = profile(json!({"percentageOfNodesToScore": 30, "pluginConfig": [
            {"name": "NodeResourcesFit", "args": {"apiVersion": API_VERSION, "kind": "NodeResourcesFitArgs",
                "ignoredResources": ["x.y/z"], "scoringStrategy": {"type": "RequestedToCapacityRatio",
                "resources": [{"name": "cpu", "weight": 3}],
                "requestedToCapacityRatio": {"shape": [{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]}}}},
            {"name": "InterPodAffinity", "args": {"hardPodAffinityWeight": 50, "ignorePreferredTermsOfExistingPods": true}},
            {"name": "DefaultPreemption", "args": {"minCandidateNodesAbsolute": 5}},
            {"name": "NodeAffinity", "args": {"addedAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["a"]}]}]}}}},
            {"name": "PodTopologySpread", "args": {"defaultingType": "List", "defaultConstraints":
                [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]}}]}));
        assert_eq!(one.percentage, Some(30));
        assert_eq!(one.fit.strategy, Strategy::RequestedToCapacityRatio(vec![(0, 0), (100, 100)]));
        assert_eq!(one.fit.resources, [("cpu".to_owned(), 3)]);
        assert!(one.fit.ignored.contains("x.y/z"));
        assert_eq!(
            (one.pod_affinity.hard_weight, one.pod_affinity.ignores_preferences_of_placed),
            (50, true)
        );
        assert_eq!((one.preemption.percentage, one.preemption.at_least), (10, 5));
        assert!(!one.affinity.required.matches("n", &Default::default()));
        assert!(matches!(&one.spread, SpreadDefaults::List(list) if list.len() == 1));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_path_and_value() {
        let wrong = |more: Value| read(more).unwrap_err();
        let of_profile = |more: Value| wrong(json!({"profiles": [more]}));
        let argument =
            |name: &str, args: Value| of_profile(json!({"pluginConfig": [{"name": name, "args": args}]}));
        for (error, expected) in [
            (wrong(json!({"profile": []})), "unknown field \"profile\""),
            (
                wrong(json!({"percentageOfNodesToScore": 101})),
                "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]",
            ),
            (
                wrong(json!({"podInitialBackoffSeconds": 0})),
                "podInitialBackoffSeconds: Invalid value: 0: must be greater than 0",
            ),
            (
                wrong(json!({"podInitialBackoffSeconds": 5, "podMaxBackoffSeconds": 2})),
                "podMaxBackoffSeconds: Invalid value: 2: must be greater than or equal to PodInitialBackoffSeconds",
            ),
            (
                wrong(json!({"profiles": [{"schedulerName": "a"}, {"schedulerName": "a"}]})),
                "profiles[1].schedulerName: Duplicate value: \"a\"",
            ),
            (
                wrong(json!({"profiles": [{}, {"schedulerName": "a"}]})),
                "profiles[0].schedulerName: Required value",
            ),
            (
                of_profile(json!({"plugins": {"filter": {"enabled": [{"name": "Nope"}]}}})),
                "profiles[0].plugins.filter.enabled[0].name: Invalid value: \"Nope\": plugin does not exist",
            ),
            (
                of_profile(json!({"plugins": {"score": {"enabled": [{"name": "NodePorts"}]}}})),
                "profiles[0].plugins.score.enabled[0]: Invalid value: \"NodePorts\": plugin \"NodePorts\" does not extend score plugin",
            ),
            (
                of_profile(json!({"plugins": {"bind": {"disabled": [{"name": "*"}]}}})),
                "profiles[0].plugins.bind: Required value: at least one bind plugin is needed",
            ),
            (
                of_profile(json!({"plugins": {"filters": {}}})),
                "unknown field \"profiles[0].plugins.filters\"",
            ),
            (
                argument("InterPodAffinity", json!({"hardPodAffinityWeight": 101})),
                "profiles[0].pluginConfig[0].args.hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]",
            ),
            (
                argument("InterPodAffinity", json!({"hardWeight": 1})),
                "unknown field \"profiles[0].pluginConfig[0].args.hardWeight\"",
            ),
            (
                argument("NodeResourcesFit", json!({"scoringStrategy": {"type": "Best"}})),
                "args.scoringStrategy.type: Unsupported value: \"Best\"",
            ),
            (
                argument("DefaultPreemption", json!({"minCandidateNodesPercentage": "10"})),
                "args.minCandidateNodesPercentage: Invalid value: \"10\": must be an integer",
            ),
            (
                argument(
                    "PodTopologySpread",
                    json!({"defaultConstraints": [{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}], "defaultingType": "List"}),
                ),
                "args.defaultConstraints[0].maxSkew: Invalid value: 0",
            ),
            (
                argument("Nope", json!({})),
                "profiles[0].pluginConfig[0].name: Invalid value: \"Nope\": plugin does not exist",
            ),
        ] {
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        }
        let other = Configuration::read(json!({"apiVersion": "v1", "kind": "Pod"})).unwrap_err().to_string();
        assert!(other.contains("no kind \"Pod\" is registered for version \"v1\""), "{other}");
    }
}
