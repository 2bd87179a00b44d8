//! The status of a Job: which states it may go through, whoever's controller moves it (KEP-4368).
//!
//! What an update leaves as it was is not held against it, so that a job whose status is odd already can
//! still be worked on.

use jiff::Timestamp;

use super::super::{At, Errors};

/// A job before and after an update of its status.
struct Update<'a> {
    spec: At<'a>,
    new: At<'a>,
    old: At<'a>,
}

/// Whether a status has a condition that is true.
fn holds(status: &At<'_>, condition: &str) -> bool {
    has(status, condition, "True")
}

fn has(status: &At<'_>, condition: &str, value: &str) -> bool {
    let mut all = status.get("conditions").items();
    all.any(|c| c.get("type").text() == condition && c.get("status").text() == value)
}

fn finished(status: &At<'_>) -> bool {
    holds(status, "Complete") || holds(status, "Failed")
}

impl Update<'_> {
    /// Whether the update sets or takes away a condition.
    fn turns(&self, condition: &str) -> bool {
        holds(&self.new, condition) != holds(&self.old, condition)
    }

    /// Whether the update changes a field.
    fn changes(&self, field: &str) -> bool {
        self.new.get(field).value != self.old.get(field).value
    }

    fn finishes(&self) -> bool {
        finished(&self.new) != finished(&self.old)
    }

    fn conditions(&self) -> At<'_> {
        self.new.get("conditions")
    }
}

/// An update of a job's status.
pub(super) fn job(at: &At<'_>, errors: &mut Errors) {
    if at.old.is_none() {
        return;
    }
    let update = Update { spec: at.get("spec"), new: at.get("status"), old: at.before().get("status") };
    uncounted(&update.new.get("uncountedTerminatedPods"), errors);
    together(&update, errors);
    times(&update, errors);
    ended(&update, errors);
    indexes(&update, errors);
    kept(&update, errors);
}

/// Pods that ended and are not counted yet: each once.
fn uncounted(at: &At<'_>, errors: &mut Errors) {
    let mut seen = std::collections::HashSet::new();
    for uid in at.get("succeeded").items().chain(at.get("failed").items()) {
        if uid.text().is_empty() {
            errors.invalid(&uid, "must not be empty");
        } else if !seen.insert(uid.text()) {
            errors.duplicate(&uid);
        }
    }
}

/// Conditions that exclude or need each other.
fn together(update: &Update<'_>, errors: &mut Errors) {
    let conditions = update.conditions();
    let turned = |a: &str, b: &str| update.turns(a) || update.turns(b);
    let set = |condition: &str| holds(&update.new, condition);
    let rules: [(bool, bool, &str); 6] = [
        (
            turned("Complete", "Failed"),
            set("Complete") && set("Failed"),
            "cannot set Complete=True and Failed=true conditions",
        ),
        (
            turned("Complete", "FailureTarget"),
            set("Complete") && set("FailureTarget"),
            "cannot set Complete=True and FailureTarget=true conditions",
        ),
        (
            update.turns("Failed") || update.changes("failedIndexes"),
            set("Failed") && !set("FailureTarget"),
            "cannot set Failed=True condition without the FailureTarget=true condition",
        ),
        (
            turned("Complete", "SuccessCriteriaMet"),
            set("Complete") && !set("SuccessCriteriaMet"),
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        ),
        (
            true,
            set("SuccessCriteriaMet") && set("Failed"),
            "cannot set SuccessCriteriaMet=True and Failed=true conditions",
        ),
        (
            true,
            set("SuccessCriteriaMet") && set("FailureTarget"),
            "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
        ),
    ];
    for (_, _, why) in rules.into_iter().filter(|&(asked, wrong, _)| asked && wrong) {
        errors.invalid_whole(&conditions, why);
    }
}

/// When the job began and was complete.
fn times(update: &Update<'_>, errors: &mut Errors) {
    let (start, completion) = (update.new.get("startTime"), update.new.get("completionTime"));
    let complete = holds(&update.new, "Complete");
    if update.turns("Complete") || update.changes("completionTime") {
        if completion.is_set() && !complete {
            errors.invalid(&completion, "cannot set completionTime when there is no Complete=True condition");
        }
        if !completion.is_set() && complete {
            errors.required(&completion, "completionTime is required for Complete jobs");
        }
    }
    let moment = |at: &At<'_>| at.text().parse::<Timestamp>().ok();
    let moved = update.changes("startTime") || update.changes("completionTime");
    if moved && moment(&start).zip(moment(&completion)).is_some_and(|(start, end)| end < start) {
        errors.invalid(&completion, "must be equal to or after `startTime`");
    }
    let (old_start, old_completion) = (update.old.get("startTime"), update.old.get("completionTime"));
    if completion.is_set() && old_completion.is_set() && completion.value != old_completion.value {
        errors.invalid(&completion, "field is immutable");
    }
    let resumes = holds(&update.old, "Suspended") && has(&update.new, "Suspended", "False");
    let runs = !update.spec.get("suspend").yes();
    if old_start.is_set() && update.changes("startTime") && runs && !resumes {
        errors.invalid(&start, "field is immutable for unsuspended job once set");
    }
}

/// What a job that is over has no more of.
fn ended(update: &Update<'_>, errors: &mut Errors) {
    let (new, over, finishes) = (&update.new, finished(&update.new), update.finishes());
    let count = |field: &str| new.get(field).int().unwrap_or(0);
    for field in ["active", "terminating"] {
        if over && count(field) > 0 && (finishes || update.changes(field)) {
            errors.invalid(&new.get(field), format!("{field}>0 is invalid for finished job"));
        }
    }
    let nothing_to_do = update.spec.get("suspend").yes() && update.spec.get("completions").int() == Some(0);
    let start = new.get("startTime");
    if over && !start.is_set() && (finishes || update.changes("startTime")) && !nothing_to_do {
        errors.required(&start, "startTime is required for finished job");
    }
    let uncounted = new.get("uncountedTerminatedPods");
    let any = uncounted.get("succeeded").len() + uncounted.get("failed").len() > 0;
    if over && any && (finishes || update.changes("uncountedTerminatedPods")) {
        errors.invalid(&uncounted, "must be empty for finished job");
    }
    let (ready, moved) = (new.get("ready"), update.changes("ready") || update.changes("active"));
    if moved && ready.int().is_some_and(|ready| ready > count("active")) {
        errors.invalid(&ready, "cannot set more ready pods than active");
    }
}

/// Which indexes are complete, and which failed.
fn indexes(update: &Update<'_>, errors: &mut Errors) {
    let (completed, failed) = (update.new.get("completedIndexes"), update.new.get("failedIndexes"));
    let total = update.spec.get("completions").int();
    let per_index = update.spec.get("backoffLimitPerIndex").is_set();
    let (new_completed, new_failed) = (update.changes("completedIndexes"), update.changes("failedIndexes"));
    if let (true, Some(Err(why))) = (new_completed, total.map(|total| intervals(completed.text(), total))) {
        errors.invalid(&completed, format!("error parsing completedIndexes: {why}"));
    }
    if let (true, true, Some(Err(why))) =
        (new_failed && failed.is_set(), per_index, total.map(|total| intervals(failed.text(), total)))
    {
        errors.invalid(&failed, format!("error parsing failedIndexes: {why}"));
    }
    let indexed = update.spec.get("completionMode").text() == "Indexed";
    if new_completed && !completed.is_empty() && !indexed {
        errors.invalid(&completed, "cannot set non-empty completedIndexes when non-indexed completion mode");
    }
    if new_failed && failed.is_set() && !per_index {
        errors.invalid(&failed, "cannot set non-null failedIndexes when backoffLimitPerIndex is null");
    }
    let both = total
        .and_then(|total| intervals(completed.text(), total).ok().zip(intervals(failed.text(), total).ok()));
    if let (true, Some((completed, gone))) = (new_completed || new_failed, both) {
        let common = completed
            .iter()
            .find_map(|&(a, b)| gone.iter().find(|&&(c, d)| a <= d && c <= b).map(|&(c, _)| a.max(c)));
        if let Some(index) = common {
            let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
            errors.invalid(&failed, why);
        }
    }
}

/// Reads `1,3-5`: indexes below `total` in order.
fn intervals(text: &str, total: i64) -> Result<Vec<(i64, i64)>, String> {
    let number = |text: &str| -> Result<i64, String> {
        let index =
            text.parse().map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        if index >= total { Err(format!("too large index: {text:?}")) } else { Ok(index) }
    };
    let order = |previous: i64, current: i64| -> Result<(), String> {
        if previous < current {
            return Ok(());
        }
        Err(format!("non-increasing order, previous: {previous}, current: {current}"))
    };
    let mut found: Vec<(i64, i64)> = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = match part.split('-').collect::<Vec<_>>()[..] {
            [one] => (number(one)?, number(one)?),
            [first, last] => {
                let ends = (number(first)?, number(last)?);
                order(ends.0, ends.1)?;
                ends
            }
            _ => {
                return Err(format!(
                    "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
                ));
            }
        };
        if let Some(&(_, previous)) = found.last() {
            order(previous, first)?;
        }
        found.push((first, last));
    }
    Ok(found)
}

/// What a job that got somewhere does not lose again.
fn kept(update: &Update<'_>, errors: &mut Errors) {
    let (new, old, conditions) = (&update.new, &update.old, update.conditions());
    for condition in ["Failed", "Complete", "FailureTarget"] {
        if holds(old, condition) && !holds(new, condition) {
            let why = format!("cannot disable the terminal {condition}=True condition");
            errors.invalid_whole(&conditions, &why);
        }
    }
    // An indexed job whose size may change counts down when it shrinks.
    let (completions, parallelism) = (update.spec.get("completions"), update.spec.get("parallelism"));
    let elastic =
        update.spec.get("completionMode").text() == "Indexed" && completions.value == parallelism.value;
    for field in ["failed", "succeeded"] {
        let count = |status: &At<'_>| status.get(field).int().unwrap_or(0);
        if count(new) < count(old) && !(field == "succeeded" && elastic) {
            errors.invalid_value(&new.get(field), count(new), format!("cannot decrease the {field} counter"));
        }
    }
    let (met, was_met) = (holds(new, "SuccessCriteriaMet"), holds(old, "SuccessCriteriaMet"));
    if was_met && !met {
        errors.invalid_whole(&conditions, "cannot disable the SuccessCriteriaMet=True condition");
    }
    if met && !was_met && holds(old, "Complete") {
        let why = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        errors.invalid_whole(&conditions, why);
    }
}

#[cfg(test)]
mod tests {
    use super::intervals;

    #[test]
    fn index_intervals() {
        assert_eq!(intervals("", 5), Ok(Vec::new()));
        assert_eq!(intervals("0,2-4", 5), Ok(vec![(0, 0), (2, 4)]));
        for (text, why) in [
            ("5", "too large index: \"5\""),
            ("x", "cannot convert string to integer for index: \"x\""),
            ("1,1", "non-increasing order, previous: 1, current: 1"),
            ("3-2", "non-increasing order, previous: 3, current: 2"),
            (
                "1-2-3",
                "the fragment \"1-2-3\" violates the requirement that an index interval can have at most two parts separated by '-'",
            ),
        ] {
            assert_eq!(intervals(text, 5), Err(why.to_owned()), "{text}");
        }
    }
}
