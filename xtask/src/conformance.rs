//! `docs/conformance.md` from the reports of Kubernetes' own end-to-end suite.
//!
//! The suite (`e2e.test --ginkgo.json-report FILE`) is Kubernetes', built elsewhere; its JSON reports are the only
//! word on what holds. An entry that no report speaks of has not been run, and is said to be so.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const ENTRIES: &str = "tests/conformance/entries.txt";
const PAGE: &str = "docs/conformance.md";

/// What became of an entry; the best of several runs is not taken, the last is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
}

/// Writes the page from the reports, the later ones taking precedence.
pub(crate) fn write(root: &Path, reports: &[String]) -> Result<()> {
    ensure!(!reports.is_empty(), "name the suite's JSON reports: cargo xtask conformance REPORT…");
    let mut outcomes = BTreeMap::new();
    for report in reports {
        let text = std::fs::read_to_string(report).with_context(|| report.clone())?;
        let report: Value = serde_json::from_str(&text).with_context(|| report.clone())?;
        take(&report, &mut outcomes);
    }
    let entries = std::fs::read_to_string(root.join(ENTRIES))?;
    std::fs::write(root.join(PAGE), page(&entries, &outcomes)).context(PAGE)?;
    Ok(())
}

fn take(report: &Value, outcomes: &mut BTreeMap<String, Outcome>) {
    let suites = report.as_array().into_iter().flatten();
    for spec in suites.flat_map(|suite| suite["SpecReports"].as_array().into_iter().flatten()) {
        let outcome = match spec["State"].as_str() {
            Some("passed") => Outcome::Passed,
            Some("failed" | "panicked" | "timedout") => Outcome::Failed,
            _ => continue,
        };
        let containers = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
        let texts = containers.chain([&spec["LeafNodeText"]]).filter_map(Value::as_str);
        outcomes.insert(texts.collect::<Vec<_>>().join(" "), outcome);
    }
}

fn page(entries: &str, outcomes: &BTreeMap<String, Outcome>) -> String {
    let mut by_sig: BTreeMap<&str, Vec<(&str, Option<Outcome>)>> = BTreeMap::new();
    for entry in entries.lines() {
        let (sig, name) = entry.split_once("] ").unwrap_or(("[", entry));
        let outcome = outcomes.get(entry).copied();
        by_sig.entry(sig.trim_start_matches('[')).or_default().push((name, outcome));
    }
    let count = |entries: &[(&str, Option<Outcome>)], wanted| {
        entries.iter().filter(|(_, outcome)| *outcome == wanted).count()
    };
    let all: Vec<_> = by_sig.values().flatten().copied().collect();
    let mut text = format!(
        "# Conformance\n\nMade by `cargo xtask conformance` from the reports of Kubernetes' own end-to-end suite, run \
         unmodified; not written by hand.\n\n{} of {} entries passed, {} failed, {} were not run.\n\n\
         | area | entries | passed | failed | not run |\n|---|---|---|---|---|\n",
        count(&all, Some(Outcome::Passed)),
        all.len(),
        count(&all, Some(Outcome::Failed)),
        count(&all, None)
    );
    let mut line = |line: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        text.write_fmt(line).ok();
    };
    for (sig, entries) in &by_sig {
        let [passed, failed, absent] =
            [Some(Outcome::Passed), Some(Outcome::Failed), None].map(|wanted| count(entries, wanted));
        line(format_args!("| {sig} | {} | {passed} | {failed} | {absent} |\n", entries.len()));
    }
    for (sig, entries) in &by_sig {
        line(format_args!("\n## {sig}\n\n"));
        for (name, outcome) in entries {
            let mark = match outcome {
                Some(Outcome::Passed) => "passed",
                Some(Outcome::Failed) => "**failed**",
                None => "not run",
            };
            line(format_args!("- {mark}: {name}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn says_what_passed_what_failed_and_what_nobody_ran() {
        let spec = |state: &str, name: &str| json!({"State": state, "ContainerHierarchyTexts": ["[sig-a] A"], "LeafNodeText": name});
        let mut outcomes = BTreeMap::new();
        take(&json!([{"SpecReports": [spec("failed", "one"), spec("passed", "two")]}]), &mut outcomes);
        take(&json!([{"SpecReports": [spec("passed", "one"), spec("skipped", "two")]}]), &mut outcomes);
        let page = page("[sig-a] A one\n[sig-a] A two\n[sig-b] B\n", &outcomes);
        assert!(page.contains("2 of 3 entries passed, 0 failed, 1 were not run."), "{page}");
        assert!(page.contains("| sig-a | 2 | 2 | 0 | 0 |") && page.contains("- not run: B"), "{page}");
    }
}
