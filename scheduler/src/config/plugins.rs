//! Which plugins a profile asks at which extension point: Kubernetes' defaults, less what is disabled, and what is
//! enabled. What a single point says prevails over `multiPoint`.

use decapod_api::field::{Error as FieldError, Path};

use super::reader::Reader;
use crate::core::plugin::{Plugin, Set};
use crate::core::profile::{DEFAULT_WEIGHTS, FILTERS, Profile};

/// The extension points; those that are no more than a preparation of another change nothing by themselves.
const POINTS: [&str; 12] = [
    "preEnqueue",
    "queueSort",
    "preFilter",
    "filter",
    "postFilter",
    "preScore",
    "score",
    "reserve",
    "permit",
    "preBind",
    "bind",
    "postBind",
];

/// The plugins that have something to do at a point.
fn extend(point: &str) -> Vec<Plugin> {
    match point {
        "preEnqueue" => vec![Plugin::SchedulingGates, Plugin::DynamicResources, Plugin::DefaultPreemption],
        "queueSort" => vec![Plugin::PrioritySort],
        "preFilter" => vec![
            Plugin::NodeAffinity,
            Plugin::NodePorts,
            Plugin::NodeResourcesFit,
            Plugin::VolumeRestrictions,
            Plugin::NodeVolumeLimits,
            Plugin::VolumeBinding,
            Plugin::VolumeZone,
            Plugin::PodTopologySpread,
            Plugin::InterPodAffinity,
            Plugin::DynamicResources,
        ],
        "filter" => FILTERS.to_vec(),
        "postFilter" => vec![Plugin::DynamicResources, Plugin::DefaultPreemption],
        "preScore" | "score" => {
            let scores = DEFAULT_WEIGHTS.into_iter().map(|(plugin, _)| plugin);
            scores.chain([Plugin::VolumeBinding, Plugin::DynamicResources]).collect()
        }
        "reserve" | "preBind" => vec![Plugin::VolumeBinding, Plugin::DynamicResources],
        "bind" => vec![Plugin::DefaultBinder],
        _ => Vec::new(),
    }
}

/// A plugin set as it is written.
#[derive(Default)]
struct Written {
    enabled: Vec<(Plugin, Option<i64>)>,
    disabled: Set,
    /// `*`: all that is enabled by default.
    all_disabled: bool,
}

impl Written {
    fn disables(&self, plugin: Plugin) -> bool {
        self.all_disabled || self.disabled.contains(plugin)
    }
}

/// Sets the plugins of a profile as the field `plugins` says.
pub(super) fn apply(reader: &mut Reader, profile: &mut Profile) {
    let path = reader.path().clone();
    let multi = read(reader, "multiPoint");
    let mut usual: Vec<(Plugin, Option<i64>)> = Plugin::ALL
        .iter()
        .filter(|plugin| !multi.disables(**plugin))
        .map(|plugin| {
            (*plugin, DEFAULT_WEIGHTS.iter().find(|(one, _)| one == plugin).map(|(_, weight)| *weight))
        })
        .collect();
    for (plugin, weight) in &multi.enabled {
        usual.retain(|(one, _)| one != plugin);
        usual.push((*plugin, *weight));
    }
    for point in POINTS {
        let able = extend(point);
        let written = read(reader, point);
        for (index, (plugin, _)) in written.enabled.iter().enumerate() {
            if !able.contains(plugin) {
                let at = path.child(point).child("enabled").index(index);
                let why = format!("plugin {:?} does not extend {point} plugin", plugin.name());
                reader.wrong(|_| FieldError::invalid(&at, plugin.name(), why));
            }
        }
        let kept = usual.iter().filter(|(plugin, _)| able.contains(plugin) && !written.disables(*plugin));
        let kept = kept.filter(|(plugin, _)| written.enabled.iter().all(|(one, _)| one != plugin));
        let asked: Vec<_> = kept.chain(&written.enabled).copied().collect();
        set(profile, reader, &path.child(point), point, &asked);
    }
}

fn set(
    profile: &mut Profile,
    reader: &mut Reader,
    path: &Path,
    point: &str,
    asked: &[(Plugin, Option<i64>)],
) {
    let plugins = || asked.iter().map(|(plugin, _)| *plugin).collect::<Set>();
    match point {
        "preEnqueue" => profile.gates = plugins(),
        "filter" => profile.filters = plugins(),
        "postFilter" => profile.post_filters = plugins(),
        "score" => {
            // Who enables a plugin and does not say how much it counts means 1.
            let weights = asked.iter().map(|(plugin, weight)| (*plugin, weight.unwrap_or(1)));
            profile.weights = weights.collect();
        }
        "queueSort" if asked.is_empty() => {
            reader.wrong(|_| {
                FieldError::required(path, "no queue sort plugin is enabled: enable PrioritySort")
            });
        }
        "bind" if asked.is_empty() => {
            reader.wrong(|_| {
                FieldError::required(path, "at least one bind plugin is needed: enable DefaultBinder")
            });
        }
        _ => {}
    }
}

fn read(reader: &mut Reader, point: &str) -> Written {
    let Some(mut part) = reader.object(point) else { return Written::default() };
    let mut written = Written::default();
    for mut entry in part.objects("enabled") {
        let weight = entry.number_in("weight", 0..=i64::from(i32::MAX), "must not be negative");
        if let Some(plugin) = named(&mut entry) {
            written.enabled.push((plugin, weight.filter(|weight| *weight > 0)));
        }
        part.take_errors(entry);
    }
    for mut entry in part.objects("disabled") {
        entry.skip("weight");
        if entry.is_text("name", "*") {
            entry.skip("name");
            written.all_disabled = true;
        } else if let Some(plugin) = named(&mut entry) {
            written.disabled.insert(plugin);
        }
        part.take_errors(entry);
    }
    reader.take_errors(part);
    written
}

/// The plugin that an entry names.
fn named(entry: &mut Reader) -> Option<Plugin> {
    let name = entry.text("name").unwrap_or_default();
    let plugin = Plugin::named(&name);
    if plugin.is_none() {
        let known: Vec<_> = Plugin::ALL.iter().map(|plugin| plugin.name()).collect();
        let why = format!("plugin does not exist; there are {}", known.join(", "));
        entry.wrong(|path| FieldError::invalid(&path.child("name"), name, why));
    }
    plugin
}
