//! What the plugins of a profile are told (`pluginConfig[].args`).

use decapod_api::field::{Error as FieldError, Path};
use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};

use super::reader::Reader;
use crate::core::affinity::{self, NodeTerms};
use crate::core::plugin::Plugin;
use crate::core::profile::{
    AddedAffinity, Candidates, Fit, PodAffinity, Profile, SpreadDefaults, Strategy, usual_resources,
};

const STRATEGIES: [&str; 3] = ["LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"];

/// Tells a plugin of the profile what an entry of `pluginConfig` says.
pub(super) fn apply(entry: &mut Reader, name: &str, profile: &mut Profile) {
    let Some(plugin) = Plugin::named(name) else {
        entry.skip("args");
        let why = "plugin does not exist";
        return entry.wrong(|path| FieldError::invalid(&path.child("name"), name, why));
    };
    let Some(mut args) = entry.object("args") else { return };
    let kind = format!("{name}Args");
    if args.has("kind") && !args.is_text("kind", &kind) {
        let said = args.text("kind").unwrap_or_default();
        args.wrong(|path| FieldError::invalid(&path.child("kind"), said, format!("must be {kind}")));
    }
    args.skip("apiVersion");
    args.skip("kind");
    match plugin {
        Plugin::NodeResourcesFit => profile.fit = fit(&mut args),
        Plugin::NodeResourcesBalancedAllocation => profile.balanced = balanced(&mut args),
        Plugin::NodeAffinity => profile.affinity = added_affinity(&mut args),
        Plugin::InterPodAffinity => profile.pod_affinity = pod_affinity(&mut args),
        Plugin::PodTopologySpread => profile.spread = spread(&mut args),
        Plugin::DefaultPreemption => profile.preemption = candidates(&mut args),
        Plugin::VolumeBinding => volume_binding(&mut args),
        Plugin::DynamicResources => {
            args.skip("filterTimeout");
            args.skip("bindingTimeout");
        }
        _ => {}
    }
    entry.take_errors(args);
}

fn fit(args: &mut Reader) -> Fit {
    let usual = Profile::new("").fit;
    let (ignored, groups) = (args.texts("ignoredResources"), args.texts("ignoredResourceGroups"));
    for (index, group) in groups.iter().enumerate().filter(|(_, group)| group.contains('/')) {
        let why = "resource group name can't contain '/'";
        args.wrong(|path| {
            FieldError::invalid(&path.child("ignoredResourceGroups").index(index), group.clone(), why)
        });
    }
    let (mut strategy, mut compared) = (usual.strategy, usual.resources);
    if let Some(mut part) = args.object("scoringStrategy") {
        (strategy, compared) = (scoring(&mut part), resources(&mut part, 100));
        args.take_errors(part);
    }
    Fit {
        strategy,
        resources: compared,
        ignored: ignored.into_iter().collect(),
        ignored_groups: groups.into_iter().collect(),
    }
}

fn scoring(part: &mut Reader) -> Strategy {
    let kind = part.text("type").unwrap_or_default();
    let ratio = part.object("requestedToCapacityRatio");
    let path = part.path().child("requestedToCapacityRatio");
    match (kind.as_str(), ratio) {
        ("RequestedToCapacityRatio", Some(mut ratio)) => {
            let shape = shape(&mut ratio);
            part.take_errors(ratio);
            return Strategy::RequestedToCapacityRatio(shape);
        }
        ("RequestedToCapacityRatio", None) => {
            let why = "must be specified when type is RequestedToCapacityRatio";
            part.wrong(|_| FieldError::required(&path, why));
        }
        ("MostAllocated", None) => return Strategy::MostAllocated,
        ("LeastAllocated", None) => {}
        ("MostAllocated" | "LeastAllocated", Some(_)) => {
            let why = "must be nil when type is not RequestedToCapacityRatio";
            part.wrong(|_| FieldError::forbidden(&path, why));
        }
        _ => part.wrong(|path| FieldError::not_supported(&path.child("type"), kind, &STRATEGIES)),
    }
    Strategy::LeastAllocated
}

/// Points of use in percent, and the score there on the scale of scores; in configurations it ends at 10.
fn shape(ratio: &mut Reader) -> Vec<(i64, i64)> {
    let mut points: Vec<(i64, i64)> = Vec::new();
    for mut point in ratio.objects("shape") {
        let used = point.number_in("utilization", 0..=100, "not in valid range [0, 100]").unwrap_or(0);
        let score = point.number_in("score", 0..=10, "not in valid range [0, 10]").unwrap_or(0);
        if points.last().is_some_and(|(before, _)| *before >= used) {
            let why = "values must be sorted in increasing order";
            point.wrong(|path| FieldError::invalid(&path.child("utilization"), used, why));
        }
        points.push((used, score * 10));
        ratio.take_errors(point);
    }
    if points.is_empty() {
        ratio
            .wrong(|path| FieldError::required(&path.child("shape"), "at least one point must be specified"));
    }
    points
}

/// The resources by which nodes are compared; CPU and memory if none are named.
fn resources(part: &mut Reader, most: i64) -> Vec<(String, i64)> {
    let mut resources: Vec<(String, i64)> = Vec::new();
    for mut resource in part.objects("resources") {
        let name = resource.text("name").unwrap_or_default();
        // Not said, or 0: it counts once.
        let weight = resource.number("weight").filter(|weight| *weight != 0).unwrap_or(1);
        if !(1..=most).contains(&weight) {
            let why = if most == 1 {
                "must be 1".to_owned()
            } else {
                format!("resource weight of {name} not in valid range (0, {most}]")
            };
            resource.wrong(|path| FieldError::invalid(&path.child("weight"), weight, why));
        }
        if resources.iter().any(|(known, _)| *known == name) {
            resource.wrong(|path| FieldError::duplicate(&path.child("name"), name.clone()));
        }
        resources.push((name, weight));
        part.take_errors(resource);
    }
    if resources.is_empty() { usual_resources() } else { resources }
}

fn balanced(args: &mut Reader) -> Vec<(String, i64)> {
    resources(args, 1)
}

fn added_affinity(args: &mut Reader) -> AddedAffinity {
    let Some(added) = args.typed::<NodeAffinity>("addedAffinity") else { return AddedAffinity::default() };
    let required = added.required_during_scheduling_ignored_during_execution;
    if required.as_ref().is_some_and(|required| required.node_selector_terms.is_empty()) {
        let path = args.path().child("addedAffinity").child("requiredDuringSchedulingIgnoredDuringExecution");
        let why = "must have at least one node selector term";
        args.wrong(|_| FieldError::required(&path.child("nodeSelectorTerms"), why));
    }
    AddedAffinity {
        required: NodeTerms::of(required.as_ref()),
        preferred: affinity::preferences(added.preferred_during_scheduling_ignored_during_execution.as_ref()),
    }
}

fn pod_affinity(args: &mut Reader) -> PodAffinity {
    let weight = args.number_in("hardPodAffinityWeight", 0..=100, "not in valid range [0, 100]");
    PodAffinity {
        hard_weight: weight.unwrap_or(1),
        ignores_preferences_of_placed: args.flag("ignorePreferredTermsOfExistingPods").unwrap_or(false),
    }
}

fn spread(args: &mut Reader) -> SpreadDefaults {
    let kind = args.text("defaultingType").unwrap_or_else(|| "System".to_owned());
    let list: Vec<TopologySpreadConstraint> = args.typed("defaultConstraints").unwrap_or_default();
    let path = args.path().child("defaultConstraints");
    for (index, constraint) in list.iter().enumerate() {
        let repeated = list[..index].iter().any(|other| {
            other.topology_key == constraint.topology_key
                && other.when_unsatisfiable == constraint.when_unsatisfiable
        });
        for error in wrong_constraint(constraint, &path.index(index), repeated) {
            args.wrong(|_| error);
        }
    }
    match kind.as_str() {
        "List" => SpreadDefaults::List(list),
        "System" if list.is_empty() => SpreadDefaults::System,
        "System" => {
            let why = "when .defaultConstraints are not empty";
            args.wrong(|path| FieldError::invalid(&path.child("defaultingType"), kind, why));
            SpreadDefaults::System
        }
        _ => {
            let path = args.path().child("defaultingType");
            args.wrong(|_| FieldError::not_supported(&path, kind, &["List", "System"]));
            SpreadDefaults::System
        }
    }
}

fn wrong_constraint(constraint: &TopologySpreadConstraint, path: &Path, repeated: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if constraint.max_skew <= 0 {
        let why = "not in valid range (0, inf)";
        errors.push(FieldError::invalid(&path.child("maxSkew"), constraint.max_skew, why));
    }
    if constraint.topology_key.is_empty() {
        errors.push(FieldError::required(&path.child("topologyKey"), "can not be empty"));
    }
    let when = path.child("whenUnsatisfiable");
    match constraint.when_unsatisfiable.as_str() {
        "DoNotSchedule" | "ScheduleAnyway" => {}
        "" => errors.push(FieldError::required(&when, "can not be empty")),
        other => errors.push(FieldError::not_supported(&when, other, &["DoNotSchedule", "ScheduleAnyway"])),
    }
    if constraint.label_selector.is_some() {
        let why = "constraint must not define a selector, as they deduced for each pod";
        errors.push(FieldError::forbidden(&path.child("labelSelector"), why));
    }
    if repeated {
        let what = format!("{{{}, {}}}", constraint.topology_key, constraint.when_unsatisfiable);
        errors.push(FieldError::duplicate(path, what));
    }
    errors
}

fn candidates(args: &mut Reader) -> Candidates {
    let usual = Profile::new("").preemption;
    let percentage = args.number_in("minCandidateNodesPercentage", 0..=100, "not in valid range [0, 100]");
    let absolute =
        args.number_in("minCandidateNodesAbsolute", 0..=i64::from(i32::MAX), "not in valid range [0, inf)");
    if (percentage, absolute) == (Some(0), Some(0)) {
        let why = |other: &str| format!("cannot be zero at the same time as {other}");
        let (one, other) = ("minCandidateNodesPercentage", "minCandidateNodesAbsolute");
        args.wrong(|path| FieldError::invalid(&path.child(one), 0, why(other)));
        args.wrong(|path| FieldError::invalid(&path.child(other), 0, why(one)));
    }
    let number = |said: Option<i64>, usual| said.and_then(|n| usize::try_from(n).ok()).unwrap_or(usual);
    Candidates {
        percentage: number(percentage, usual.percentage),
        at_least: number(absolute, usual.at_least),
    }
}

/// How long to wait for volumes: this scheduler holds nothing while they are bound, and waits as long as it takes. So the
/// value is checked and has no effect.
fn volume_binding(args: &mut Reader) {
    let why = "invalid BindTimeoutSeconds, should not be a negative value";
    args.number_in("bindTimeoutSeconds", 0..=i64::MAX, why);
    if args.has("shape") {
        args.skip("shape");
        let why = "unexpected field `shape`, remove it or turn on the feature gate StorageCapacityScoring";
        args.wrong(|path| FieldError::forbidden(&path.child("shape"), why));
    }
}
