//! Jobs and CronJobs.

use serde_json::Value;

use super::super::{At, Errors, form};
use crate::cron;

/// The most pods of an indexed job at once.
const MAX_PARALLELISM: i64 = 100_000;
/// The most indexes of a job that may fail.
const MAX_FAILED: i64 = 100_000;
/// Above so many completions limits per index are narrower.
const MANY_COMPLETIONS: i64 = 100_000;
const MANY_PARALLELISM: i64 = 10_000;
const MANY_FAILED: i64 = 10_000;

/// A job's spec, also within a CronJob.
pub(super) fn job(at: &At<'_>, errors: &mut Errors) {
    indexed(at, errors);
    limits_per_index(at, errors);
    let policy = at.at(&["template", "spec", "restartPolicy"]);
    let failure = at.get("podFailurePolicy");
    match policy.text() {
        "" | "Always" => errors.required(&policy, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if failure.is_set() => {
            errors.invalid(&policy, "only \"Never\" is supported when podFailurePolicy is specified");
        }
        "OnFailure" | "Never" => {}
        _ => errors.one_of(&policy, &["Never", "OnFailure"]),
    }
    let replacement = at.get("podReplacementPolicy");
    if failure.is_set() && replacement.is_set() && replacement.text() != "Failed" {
        errors.one_of(&replacement, &["Failed"]);
    }
    let selector = at.at(&["selector", "matchLabels"]);
    let labels = at.at(&["template", "metadata", "labels"]);
    if selector.entries().any(|(key, value)| &labels.value[key] != value.value) {
        errors.invalid(&labels, "`selector` does not match template `labels`");
    }
    if at.get("manualSelector").yes() && !at.get("selector").is_set() {
        errors.required(&at.get("selector"), "");
    }
    let rules = failure.get("rules");
    for rule in rules.items() {
        let container = rule.at(&["onExitCodes", "containerName"]);
        let known = ["containers", "initContainers"].into_iter().any(|field| {
            at.at(&["template", "spec", field]).items().any(|c| c.get("name").value == container.value)
        });
        if container.is_set() && !known {
            let why = "must be one of the container or initContainer names in the pod template";
            errors.invalid(&container, why);
        }
        if rule.get("action").text() == "FailIndex" && !at.get("backoffLimitPerIndex").is_set() {
            errors.invalid(&rule.get("action"), "requires the backoffLimitPerIndex to be set");
        }
    }
}

fn indexed(at: &At<'_>, errors: &mut Errors) {
    let is_indexed = at.get("completionMode").text() == "Indexed";
    let (completions, parallelism) = (at.get("completions"), at.get("parallelism"));
    if is_indexed {
        if !completions.is_set() {
            errors.required(&completions, "when completion mode is Indexed");
        }
        if parallelism.int().is_some_and(|n| n > MAX_PARALLELISM) {
            let why =
                format!("must be less than or equal to {MAX_PARALLELISM} when completion mode is Indexed");
            errors.invalid(&parallelism, why);
        }
    }
    for field in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
        if at.get(field).is_set() && !is_indexed {
            errors.invalid(&at.get(field), "requires indexed completion mode");
        }
    }
    for rule in at.at(&["successPolicy", "rules"]).items() {
        if rule.present(&["succeededCount", "succeededIndexes"]).is_empty() {
            let why = "at least one of succeededCount or succeededIndexes must be specified";
            errors.required(&rule, why);
        }
        let (count, total) = (rule.get("succeededCount"), completions.int().unwrap_or(0));
        if count.int().is_some_and(|n| n < 0) {
            errors.invalid(&count, form::NEGATIVE);
        }
        if count.int().is_some_and(|n| n > total) {
            let why = format!("must be less than or equal to {total} (the number of specified completions)");
            errors.invalid(&count, why);
        }
        let listed = rule.get("succeededIndexes");
        let among = if listed.is_set() { index_count(listed.text(), total) } else { Ok(i64::MAX) };
        match among {
            Err(why) => errors.invalid(&listed, format!("error parsing succeededIndexes: {why}")),
            Ok(among) if count.int().is_some_and(|n| n > among) => {
                let why = format!(
                    "must be less than or equal to {among} (the number of indexes in the specified succeededIndexes field)"
                );
                errors.invalid(&count, why);
            }
            Ok(_) => {}
        }
    }
}

/// How many indexes below `completions` a text such as `1,3-5` lists.
fn index_count(text: &str, completions: i64) -> Result<i64, String> {
    let number = |text: &str| {
        let number = text.parse::<i64>();
        let number = number.map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        if number < completions { Ok(number) } else { Err(format!("too large index: {text:?}")) }
    };
    let order = |before: i64, now: i64| {
        if before < now {
            Ok(())
        } else {
            Err(format!("non-increasing order, previous: {before}, current: {now}"))
        }
    };
    let (mut last, mut total) = (None, 0);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let mut ends = part.split('-');
        let first = number(ends.next().unwrap_or_default())?;
        let end = ends.next().map(number).transpose()?;
        if ends.next().is_some() {
            return Err(format!(
                "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
            ));
        }
        end.map_or(Ok(()), |end| order(first, end))?;
        last.map_or(Ok(()), |last| order(last, first))?;
        let end = end.unwrap_or(first);
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

fn limits_per_index(at: &At<'_>, errors: &mut Errors) {
    let (failed, parallelism) = (at.get("maxFailedIndexes"), at.get("parallelism"));
    let completions = at.get("completions").int().unwrap_or(0);
    let per_index = at.get("backoffLimitPerIndex");
    let Some(most) = failed.int() else {
        if per_index.is_set() && completions > MANY_COMPLETIONS {
            let why = format!("must be specified when completions is above {MANY_COMPLETIONS}");
            errors.required(&failed, &why);
        }
        return;
    };
    if !per_index.is_set() {
        errors.required(&per_index, "when maxFailedIndexes is specified");
    }
    if most > completions {
        errors.invalid(&failed, "must be less than or equal to completions");
    }
    if most > MAX_FAILED {
        errors.invalid(&failed, format!("must be less than or equal to {MAX_FAILED}"));
    }
    if completions > MANY_COMPLETIONS {
        for (field, limit) in [(&parallelism, MANY_PARALLELISM), (&failed, MANY_FAILED)] {
            if field.int().is_some_and(|n| n > limit) {
                errors.invalid(field, format!("must be less than or equal to {limit} when completions are above {MANY_COMPLETIONS} and used with backoff limit per index"));
            }
        }
    }
}

/// A rule of how failures of pods count.
pub(super) fn failure_rule(at: &At<'_>, errors: &mut Errors) {
    let codes = at.get("onExitCodes");
    match (codes.is_set(), !at.get("onPodConditions").is_empty()) {
        (true, true) => {
            errors.invalid_whole(at, "specifying both OnExitCodes and OnPodConditions is not supported");
        }
        (false, false) => {
            errors.invalid_whole(at, "specifying one of OnExitCodes and OnPodConditions is required");
        }
        _ => {}
    }
    if !codes.is_set() {
        return;
    }
    let values = codes.get("values");
    if values.is_empty() {
        errors.invalid(&values, "at least one value is required");
    }
    let numbers: Vec<i64> = values.items().filter_map(|v| v.int()).collect();
    for (i, value) in values.items().enumerate() {
        if value.int() == Some(0) && codes.get("operator").text() == "In" {
            errors.invalid(&value, "must not be 0 for the In operator");
        }
        if numbers[..i.min(numbers.len())].iter().any(|n| value.int() == Some(*n)) {
            errors.duplicate(&value);
        }
    }
    if !numbers.is_sorted() {
        errors.invalid(&values, "must be ordered");
    }
}

/// What of a job can change.
pub(super) fn job_update(at: &At<'_>, errors: &mut Errors) {
    let spec = at.get("spec");
    if at.old.is_none() {
        host_names(at, &spec, errors);
    }
    if spec.old.is_none() {
        return;
    }
    let fixed = ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "successPolicy"];
    fixed.iter().for_each(|field| errors.immutable(&spec.get(field)));
    let completions = spec.get("completions");
    if completions.changed() {
        let elastic = spec.get("completionMode").text() == "Indexed" && completions.is_set();
        if !elastic {
            errors.immutable(&completions);
        } else if completions.value != spec.get("parallelism").value {
            errors.invalid(&completions, "can only be modified in tandem with spec.parallelism");
        }
    }
    let template = spec.get("template");
    if !template.changed() {
        return;
    }
    let (mut allowed, stopped) = (template.before().value.clone(), is_stopped(at));
    if stopped {
        let free = [
            ("spec", "nodeSelector"),
            ("spec", "tolerations"),
            ("spec", "schedulingGates"),
            ("metadata", "annotations"),
            ("metadata", "labels"),
        ];
        for (section, field) in free {
            take(&mut allowed, template.value, section, field);
        }
        node_affinity(&mut allowed, template.value);
        for field in ["containers", "initContainers"] {
            resources(&mut allowed, &template, field);
        }
    }
    let place = if stopped { template.get("spec") } else { template.clone() };
    let allowed = if stopped { &allowed["spec"] } else { &allowed };
    if allowed != place.value {
        errors.invalid(&place, "field is immutable");
    }
}

/// The pods of an indexed job are named after it: the longest of their host names must be one.
fn host_names(at: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    const LONGEST: usize = 63;
    let completions = spec.get("completions").int().unwrap_or(0);
    if spec.get("completionMode").text() != "Indexed" || completions < 1 {
        return;
    }
    let name = at.at(&["metadata", "name"]);
    let host = format!("{}-{}", name.text(), completions - 1);
    if host.len() > LONGEST || host.contains('.') {
        errors.invalid(&name, format!("will not able to create pod with invalid DNS label: {host}"));
    }
}

/// Whether a job has no pods and starts none, so that it may still be told where to run and with what.
fn is_stopped(job: &At<'_>) -> bool {
    let (spec, status) = (job.before().get("spec"), job.before().get("status"));
    let stands = |c: &At<'_>| c.get("type").text() == "Suspended" && c.get("status").text() == "True";
    let suspended = status.get("conditions").items().any(|condition| stands(&condition));
    let idle = !status.get("startTime").is_set() || suspended;
    spec.get("suspend").yes() && idle && status.get("active").int().unwrap_or(0) == 0
}

/// Of the affinity only that to nodes may change.
fn node_affinity(allowed: &mut Value, new: &Value) {
    let Some(spec) = allowed.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let wanted = &new["spec"]["affinity"];
    let mut affinity = match spec.remove("affinity") {
        Some(Value::Object(affinity)) => affinity,
        _ => serde_json::Map::new(),
    };
    affinity.remove("nodeAffinity");
    if let Some(to_nodes) = wanted.get("nodeAffinity") {
        affinity.insert("nodeAffinity".to_owned(), to_nodes.clone());
    }
    if !wanted.is_null() || !affinity.is_empty() {
        spec.insert("affinity".to_owned(), affinity.into());
    }
}

fn take(to: &mut Value, from: &Value, section: &str, field: &str) {
    match &from[section][field] {
        Value::Null => {
            if let Some(map) = to.get_mut(section).and_then(Value::as_object_mut) {
                map.remove(field);
            }
        }
        value => to[section][field] = value.clone(),
    }
}

fn resources(to: &mut Value, from: &At<'_>, field: &str) {
    let new = from.at(&["spec", field]);
    let containers = to.get_mut("spec").and_then(|s| s.get_mut(field)).and_then(Value::as_array_mut);
    for (container, new) in containers.into_iter().flatten().zip(new.items()) {
        container["resources"] = new.value["resources"].clone();
    }
}

/// A CronJob: its name leaves room for what its jobs append; its schedule can be read.
pub(super) fn cron_job(at: &At<'_>, errors: &mut Errors) {
    const MAX_NAME: usize = 52;
    let name = at.at(&["metadata", "name"]);
    if at.old.is_none() && name.text().len() > MAX_NAME {
        errors.invalid(&name, format!("must be no more than {MAX_NAME} characters"));
    }
    let (schedule, zone) = (at.at(&["spec", "schedule"]), at.at(&["spec", "timeZone"]));
    if !schedule.is_empty() && !schedule.unchanged() {
        if schedule.text().contains("TZ") {
            let why = if zone.is_set() {
                "cannot use both timeZone field and TZ or CRON_TZ in schedule"
            } else {
                "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
            };
            errors.invalid(&schedule, why);
        } else if let Err(why) = cron::check(schedule.text()) {
            errors.invalid(&schedule, why.to_string());
        }
    }
    if zone.is_set() && !zone.unchanged() {
        time_zone(&zone, errors);
    }
    let job = at.at(&["spec", "jobTemplate", "spec"]);
    if job.get("selector").is_set() && !job.get("manualSelector").yes() {
        errors.invalid(&job.get("selector"), "`selector` will be auto-generated");
    }
    if job.get("manualSelector").yes() {
        errors.not_supported_value(&job.get("manualSelector"), "true", &["nil", "false"]);
    }
}

fn time_zone(at: &At<'_>, errors: &mut Errors) {
    const MAX_PART: usize = 14;
    let text = at.text();
    let part = |part: &str| {
        (1..=MAX_PART).contains(&part.len())
            && !matches!(part, "." | "..")
            && !part.starts_with('-')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c))
    };
    if text.is_empty() {
        return errors.invalid(at, "timeZone must be nil or non-empty string");
    }
    let is_path = text.split('/').all(part);
    if is_path && text.eq_ignore_ascii_case("local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.invalid(at, why);
    }
    if !is_path || (text != "Local" && cron::zone(text).is_none()) {
        errors.invalid(at, format!("unknown time zone {text}"));
    }
}
