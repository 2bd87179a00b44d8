//! `why`: what is in an object's way, and the way out.
//!
//! What is known of an object and what is around it is gathered first ([`gather`]); what follows from that is decided by
//! pure functions, one file for each kind of trouble, which give [`Finding`]s, the gravest first.

mod claim;
mod gather;
mod node;
mod pending;
mod running;
mod service;
mod stuck;
mod workload;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::session::Session;
use crate::failure::Failure;
pub(super) use gather::explain;

#[derive(Args, Debug)]
pub(crate) struct Why {
    /// TYPE/NAME… or TYPE NAME…: of a pod, node, claim, Service or workload, or of anything that does not go away.
    #[arg(required = true)]
    words: Vec<String>,
}

/// One thing that is in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Finding {
    /// What it is.
    pub(super) what: String,
    /// What is known of it, a line each.
    details: Vec<String>,
    /// What a person can do.
    pub(super) way_out: Option<String>,
}

impl Finding {
    /// Says what is in the way.
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), ..Self::default() }
    }

    /// Adds what is known of it.
    #[must_use]
    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        if !detail.is_empty() && !self.details.contains(&detail) {
            self.details.push(detail);
        }
        self
    }

    /// Adds what a person can do.
    #[must_use]
    pub(super) fn way_out(mut self, way_out: impl Into<String>) -> Self {
        self.way_out = Some(way_out.into());
        self
    }

    /// As a person reads it.
    pub(super) fn text(&self) -> String {
        let mut out = format!("{}\n", self.what);
        for detail in &self.details {
            for (index, part) in detail.lines().enumerate() {
                out.push_str(&format!("  {} {part}\n", if index == 0 { "-" } else { " " }));
            }
        }
        if let Some(way_out) = &self.way_out {
            out.push_str(&format!("  way out: {way_out}\n"));
        }
        out
    }
}

impl Why {
    pub(super) async fn run(&self, session: &Session) -> Result<(), Failure> {
        let mut first = true;
        for target in session.kinds().await?.targets(&self.words)? {
            if target.names.is_empty() {
                return Err(Failure::new(format!("which {}?", target.kind.plural))
                    .hint(format!("`decapod why {}/NAME` asks about one", target.kind.plural)));
            }
            for name in &target.names {
                if !std::mem::take(&mut first) {
                    println!();
                }
                let object =
                    session.get(&target.kind.path(session.namespace_of(&target.kind), Some(name))).await?;
                let findings = explain(session, &target.kind, &object).await?;
                print!("{}", render(&format!("{}/{name}", target.kind.display()), &object, &findings));
            }
        }
        Ok(())
    }
}

/// The findings as a person reads them.
fn render(name: &str, object: &Value, findings: &[Finding]) -> String {
    if findings.is_empty() {
        let phase = object["status"]["phase"].as_str().map(|phase| format!(" ({phase})")).unwrap_or_default();
        return format!("{name}{phase}: nothing is in its way\n");
    }
    findings.iter().map(|finding| format!("{name}: {}", finding.text())).collect()
}

pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

pub(super) fn name(object: &Value) -> &str {
    text(&object["metadata"], "name")
}

/// The condition of a type.
fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    list(&object["status"]["conditions"]).find(|condition| condition["type"] == type_)
}

/// For how long something has been so, roughly.
pub(super) fn since(time: &Value, now: Timestamp) -> String {
    let Some(then) = time.as_str().and_then(|time| time.parse::<Timestamp>().ok()) else {
        return "an unknown time".to_owned();
    };
    match now.as_second() - then.as_second() {
        seconds if seconds < 120 => format!("{} s", seconds.max(0)),
        seconds if seconds < 7_200 => format!("{} min", seconds / 60),
        seconds if seconds < 172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// Reason and message of something that has both.
fn said(value: &Value) -> String {
    match (text(value, "reason"), text(value, "message")) {
        (reason, "") => reason.to_owned(),
        ("", message) => message.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

/// The warnings among events, each once, the newest last.
fn warnings(events: &[Value]) -> Vec<String> {
    let mut said_already = Vec::new();
    for event in events.iter().filter(|event| event["type"] == "Warning") {
        let words = said(event);
        said_already.retain(|one| *one != words);
        said_already.push(words);
    }
    // Old ones say little about now.
    said_already.split_off(said_already.len().saturating_sub(3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn findings_are_read_by_people() {
        let finding = Finding::new("it waits").detail("for a\nlong time").way_out("wait");
        let got = render("pod/a", &json!({}), &[finding]);
        assert_eq!(got, "pod/a: it waits\n  - for a\n    long time\n  way out: wait\n");
        let fine = render("pod/a", &json!({"status": {"phase": "Running"}}), &[]);
        assert_eq!(fine, "pod/a (Running): nothing is in its way\n");
    }

    #[test]
    fn warnings_are_said_once_and_the_newest_stay() {
        let event = |kind: &str, reason: &str| json!({"type": kind, "reason": reason, "message": "m"});
        let events = ["a", "b", "c", "a", "d"].map(|reason| event("Warning", reason));
        assert_eq!(warnings(&events), ["c: m", "a: m", "d: m"]);
        assert!(warnings(&[event("Normal", "x")]).is_empty());
    }
}
