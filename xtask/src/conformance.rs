//! `docs/conformance.md` from the reports of Kubernetes' own end-to-end suite and of our own tests.
//!
//! The suite (`e2e.test --ginkgo.json-report FILE`) is Kubernetes', built elsewhere; our tests are those whose
//! names are the entries' (the function's, or the text of a test of the shared cluster), and what they say is
//! read from the output of `cargo test`. An entry that no report speaks of has not been run, and is said to be
//! so. **Invariant**: every entry in [`in_scope`] has a test of ours.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const ENTRIES: &str = "tests/conformance/entries.txt";
const PAGE: &str = "docs/conformance.md";
/// Where our tests of entries are.
const OURS: [&str; 4] = ["apiserver/tests", "controllers/tests", "scheduler/tests", "tests/tests/cluster"];

/// The areas whose entries have to have a test of ours.
const AREAS: [&str; 8] = [
    "[sig-apps]",
    "[sig-cli]",
    "[sig-api-machinery]",
    "[sig-auth]",
    "[sig-network]",
    "[sig-node]",
    "[sig-scheduling]",
    "[sig-storage]",
];
/// What those entries speak of that need admission webhooks or policies, custom resources or other servers:
/// also aggregated discovery, which is to name these kinds. Of nodes: devices, and resizing in place.
const LATER: [&str; 7] =
    ["AdmissionWebhook", "AdmissionPolicy", "Aggregat", "CustomResource", " CR ", "[DRA]", "InPlace Resize"];

/// What became of an entry; the best of several runs is not taken, the last is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
}

impl Outcome {
    fn word(outcome: Option<Self>) -> &'static str {
        match outcome {
            Some(Self::Passed) => "passed",
            Some(Self::Failed) => "**failed**",
            None => "not run",
        }
    }
}

/// What the reports say.
#[derive(Default)]
struct Outcomes {
    /// By the entry's name.
    suite: BTreeMap<String, Outcome>,
    /// By the [`key`] of our test.
    ours: BTreeMap<String, Outcome>,
}

/// Writes the page from the reports, the later ones taking precedence.
pub(crate) fn write(root: &Path, reports: &[String]) -> Result<()> {
    ensure!(!reports.is_empty(), "name the suite's JSON reports or outputs of cargo test");
    let mut outcomes = Outcomes::default();
    for report in reports {
        let text = std::fs::read_to_string(report).with_context(|| report.clone())?;
        if text.trim_start().starts_with(['[', '{']) {
            let report: Value = serde_json::from_str(&text).with_context(|| report.clone())?;
            take(&report, &mut outcomes.suite);
        } else {
            take_ours(&text, &mut outcomes.ours);
        }
    }
    let entries = std::fs::read_to_string(root.join(ENTRIES))?;
    let tests = tests(root)?;
    std::fs::write(root.join(PAGE), page(&entries, &outcomes, &tests)).context(PAGE)?;
    Ok(())
}

/// An entry's name or a test's, as far as both are the same: letters and digits, without area and tags.
fn key(name: &str) -> String {
    let mut depth = 0_u32;
    let plain = name.chars().filter(|c| {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && c.is_ascii_alphanumeric()
    });
    plain.map(|c| c.to_ascii_lowercase()).collect()
}

/// Whether an entry has to have a test of ours.
fn in_scope(entry: &str) -> bool {
    let spaced = format!("{entry} ");
    AREAS.iter().any(|area| entry.starts_with(area)) && !LATER.iter().any(|word| spaced.contains(word))
}

/// The names of our tests, as keys, and the files that they are in.
fn tests(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut folders: Vec<_> = OURS.iter().map(|folder| root.join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path)?;
                let file = path.strip_prefix(root)?.display().to_string();
                found.extend(named(&text).map(|name| (key(name), file.clone())));
            }
        }
    }
    Ok(found)
}

/// The names of asynchronous functions, and the texts that begin as an entry does.
fn named(source: &str) -> impl Iterator<Item = &str> {
    source.lines().filter_map(|line| {
        let line = line.trim_start();
        if let Some(rest) = line.strip_prefix("async fn ") {
            return rest.split('(').next();
        }
        let begins = |(before, _): &(&str, &str)| matches!(*before, "" | "(") || before.ends_with("&[(");
        let (_, rest) = line.split_once("\"[sig-").filter(begins)?;
        let name = rest.split_once("] ")?.1;
        let quotes = name.match_indices('"').map(|(at, _)| at);
        let end = quotes.into_iter().find(|at| !name[..*at].ends_with('\\'))?;
        Some(&name[..end])
    })
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

/// Lines `test NAME ... ok` and `test NAME ... FAILED`.
fn take_ours(output: &str, outcomes: &mut BTreeMap<String, Outcome>) {
    for line in output.lines() {
        let Some((name, verdict)) = line.strip_prefix("test ").and_then(|line| line.rsplit_once(" ... "))
        else {
            continue;
        };
        let outcome = if verdict.starts_with("ok") { Outcome::Passed } else { Outcome::Failed };
        outcomes.insert(key(name.rsplit("::").next().unwrap_or(name)), outcome);
    }
}

/// An entry as the page tells of it.
struct Line<'a> {
    name: &'a str,
    outcome: Option<Outcome>,
    /// The file of our test of it, and what became of that.
    ours: Option<(&'a str, Option<Outcome>)>,
    in_scope: bool,
}

fn page(entries: &str, outcomes: &Outcomes, tests: &BTreeMap<String, String>) -> String {
    let mut by_sig: BTreeMap<&str, Vec<Line<'_>>> = BTreeMap::new();
    for entry in entries.lines() {
        let (sig, name) = entry.split_once("] ").unwrap_or(("[", entry));
        let key = key(name);
        let ours = tests.get(&key).map(|file| (file.as_str(), outcomes.ours.get(&key).copied()));
        let outcome = outcomes.suite.get(entry).copied();
        let line = Line { name, outcome, ours, in_scope: in_scope(entry) };
        by_sig.entry(sig.trim_start_matches('[')).or_default().push(line);
    }
    let all: Vec<&Line<'_>> = by_sig.values().flatten().collect();
    let mut text = summary(&all);
    let mut write = |line: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        text.write_fmt(line).ok();
    };
    for (sig, entries) in &by_sig {
        let entries: Vec<_> = entries.iter().collect();
        let [passed, failed, absent] =
            [Some(Outcome::Passed), Some(Outcome::Failed), None].map(|wanted| count(&entries, wanted));
        let tested = entries.iter().filter(|line| line.ours.is_some()).count();
        write(format_args!("| {sig} | {} | {passed} | {failed} | {absent} | {tested} |\n", entries.len()));
    }
    for (sig, entries) in &by_sig {
        write(format_args!("\n## {sig}\n\n"));
        for Line { name, outcome, ours, in_scope } in entries {
            write(format_args!("- {}: {name}", Outcome::word(*outcome)));
            match ours {
                Some((file, outcome)) => {
                    write(format_args!("; ours: {}, `{file}`\n", Outcome::word(*outcome)))
                }
                None if *in_scope => write(format_args!("; **no test of ours**\n")),
                None => write(format_args!("\n")),
            }
        }
    }
    text
}

fn count(lines: &[&Line<'_>], wanted: Option<Outcome>) -> usize {
    lines.iter().filter(|line| line.outcome == wanted).count()
}

fn summary(all: &[&Line<'_>]) -> String {
    let scope: Vec<_> = all.iter().filter(|line| line.in_scope).collect();
    let tested = scope.iter().filter(|line| line.ours.is_some()).count();
    let held = scope.iter().filter(|line| line.ours.is_some_and(|(_, one)| one == Some(Outcome::Passed)));
    let areas = AREAS.map(|area| area.trim_matches(['[', ']'])).join(", ");
    format!(
        "# Conformance\n\nMade by `cargo xtask conformance` from the reports of Kubernetes' own end-to-end suite, run \
         unmodified, and from the output of our own tests; not written by hand.\n\n\
         Kubernetes' suite: {} of {} entries passed, {} failed, {} were not run.\n\n\
         Our tests: of the {} entries of {areas} that need no webhook, custom resource, aggregated API, admission \
         policy, device driver or resize in place, {tested} have a test of ours that bears their name; {} of \
         these passed when this page was made.\n\n\
         | area | entries | passed | failed | not run | tests of ours |\n|---|---|---|---|---|---|\n",
        count(all, Some(Outcome::Passed)),
        all.len(),
        count(all, Some(Outcome::Failed)),
        count(all, None),
        scope.len(),
        held.count(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn says_what_passed_what_failed_and_what_nobody_ran() {
        let spec = |state: &str, name: &str| json!({"State": state, "ContainerHierarchyTexts": ["[sig-a] A"], "LeafNodeText": name});
        let mut outcomes = Outcomes::default();
        take(&json!([{"SpecReports": [spec("failed", "one"), spec("passed", "two")]}]), &mut outcomes.suite);
        take(&json!([{"SpecReports": [spec("passed", "one"), spec("skipped", "two")]}]), &mut outcomes.suite);
        let output = "test x::a_one ... ok\ntest [sig-cli] C should [LinuxOnly] do ... FAILED (1.0 s)\n";
        take_ours(output, &mut outcomes.ours);
        let source = "async fn a_one() {\n    (\"[sig-cli] C should do\", it),\n";
        let tests = named(source).map(|name| (key(name), "x.rs".to_owned())).collect();
        let entries = "[sig-a] A one\n[sig-a] A two\n[sig-b] B\n[sig-cli] C should do [Slow]\n[sig-auth] D\n";
        let page = page(entries, &outcomes, &tests);
        for wanted in [
            "2 of 5 entries passed, 0 failed, 3 were not run.",
            "of the 2 entries of",
            ", 1 have a test of ours that bears their name; 0 of",
            "| sig-a | 2 | 2 | 0 | 0 | 1 |",
            "- passed: A one; ours: passed, `x.rs`\n- passed: A two\n",
            "- not run: B\n",
            "- not run: C should do [Slow]; ours: **failed**, `x.rs`\n",
            "- not run: D; **no test of ours**\n",
        ] {
            assert!(page.contains(wanted), "{wanted:?} is not in\n{page}");
        }
    }

    #[test]
    fn every_entry_in_scope_has_a_test_of_ours() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
        let entries = std::fs::read_to_string(root.join(ENTRIES)).expect("the entries are in the tree");
        let tests = super::tests(root).expect("the tests are in the tree");
        let missing: Vec<_> =
            entries.lines().filter(|entry| in_scope(entry) && !tests.contains_key(&key(entry))).collect();
        assert!(missing.is_empty(), "no test is named after {missing:#?}");
    }
}
