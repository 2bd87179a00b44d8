//! `describe`: an object as an indented tree, then its events.

use std::fmt::Write as _;

use clap::Args;
use serde_json::Value;

use super::kinds::Kind;
use super::session::{Session, with_query};
use crate::failure::Failure;

#[derive(Args, Debug)]
pub(crate) struct Describe {
    /// TYPE [NAME…] or TYPE/NAME….
    #[arg(required = true)]
    words: Vec<String>,
    /// Only objects with these labels.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

impl Describe {
    pub(super) async fn run(&self, session: &Session) -> Result<(), Failure> {
        let mut first = true;
        for target in session.kinds().await?.targets(&self.words)? {
            let namespace = if self.all_namespaces { None } else { session.namespace_of(&target.kind) };
            let mut objects = Vec::new();
            for name in &target.names {
                objects.push(session.get(&target.kind.path(namespace, Some(name))).await?);
            }
            if target.names.is_empty() {
                let query: Vec<_> = self.selector.clone().map(|s| ("labelSelector", s)).into_iter().collect();
                let mut list = session.get(&with_query(&target.kind.path(namespace, None), &query)).await?;
                if let Value::Array(items) = list["items"].take() {
                    objects.extend(items);
                }
            }
            for object in objects {
                if !std::mem::take(&mut first) {
                    println!("\n");
                }
                print!("{}", text(&object));
                print!("{}", events(session, &target.kind, &object).await?);
            }
        }
        Ok(())
    }
}

/// What says nothing to a person.
const NOISE: &[&str] = &["managedFields", "uid", "resourceVersion", "generation", "selfLink"];

fn text(object: &Value) -> String {
    let mut out = String::new();
    let metadata = &object["metadata"];
    for (label, field) in [("Name", "name"), ("Namespace", "namespace")] {
        if let Some(value) = metadata[field].as_str() {
            line(&mut out, 0, label, value);
        }
    }
    for (label, field) in [("Labels", "labels"), ("Annotations", "annotations")] {
        let map = metadata[field].as_object();
        let mut pairs =
            map.into_iter().flatten().filter(|(k, _)| !k.ends_with("last-applied-configuration")).peekable();
        if pairs.peek().is_none() {
            line(&mut out, 0, label, "<none>");
        }
        for (i, (key, value)) in pairs.enumerate() {
            let pair = format!("{key}={}", value.as_str().unwrap_or_default());
            line(&mut out, 0, if i == 0 { label } else { "" }, &pair);
        }
    }
    if let Some(owner) =
        metadata["ownerReferences"].as_array().into_iter().flatten().find(|o| o["controller"] == true)
    {
        let owner = format!(
            "{}/{}",
            owner["kind"].as_str().unwrap_or_default(),
            owner["name"].as_str().unwrap_or_default()
        );
        line(&mut out, 0, "Controlled By", &owner);
    }
    for (key, value) in object.as_object().into_iter().flatten() {
        if !["metadata", "apiVersion", "kind"].contains(&key.as_str()) {
            tree(&mut out, 0, key, value);
        }
    }
    out
}

fn line(out: &mut String, depth: usize, label: &str, value: &str) {
    let indent = depth * 2;
    let label = if label.is_empty() { String::new() } else { format!("{label}:") };
    let width = 20usize.saturating_sub(indent);
    writeln!(out, "{:indent$}{label:width$} {value}", "").expect("writing to a String cannot fail");
}

/// `hostNetwork` as `Host Network`.
fn title(key: &str) -> String {
    let mut title = String::new();
    for (i, c) in key.chars().enumerate() {
        match c {
            _ if i == 0 => title.extend(c.to_uppercase()),
            'A'..='Z' if !title.ends_with(|p: char| p.is_uppercase()) => {
                title.push(' ');
                title.push(c);
            }
            _ => title.push(c),
        }
    }
    title
}

fn tree(out: &mut String, depth: usize, key: &str, value: &Value) {
    if NOISE.contains(&key) {
        return;
    }
    let label = title(key);
    match value {
        Value::Object(map) if map.is_empty() => line(out, depth, &label, "<none>"),
        Value::Object(map) => {
            writeln!(out, "{:1$}{label}:", "", depth * 2).expect("writing to a String cannot fail");
            for (key, value) in map {
                tree(out, depth + 1, key, value);
            }
        }
        Value::Array(items) if items.iter().all(|i| !i.is_object() && !i.is_array()) => {
            let texts: Vec<String> = items.iter().map(scalar).collect();
            line(out, depth, &label, &if texts.is_empty() { "<none>".to_owned() } else { texts.join(", ") });
        }
        Value::Array(items) => {
            writeln!(out, "{:1$}{label}:", "", depth * 2).expect("writing to a String cannot fail");
            for item in items {
                let name = item.get("name").or_else(|| item.get("type")).and_then(Value::as_str);
                tree(out, depth + 1, name.unwrap_or("-"), item);
            }
        }
        _ => line(out, depth, &label, &scalar(value)),
    }
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

async fn events(session: &Session, kind: &Kind, object: &Value) -> Result<String, Failure> {
    let metadata = &object["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default();
    let mut selector = format!("involvedObject.name={},involvedObject.kind={}", text("name"), kind.kind);
    if !text("uid").is_empty() && kind.namespaced {
        selector.push_str(&format!(",involvedObject.uid={}", text("uid")));
    }
    let namespace = metadata["namespace"].as_str().unwrap_or("default");
    let path = format!("/api/v1/namespaces/{namespace}/events");
    let list = session.get(&with_query(&path, &[("fieldSelector", selector)])).await?;
    let mut events: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
    let when = |e: &Value| -> String {
        let times = [&e["lastTimestamp"], &e["eventTime"], &e["metadata"]["creationTimestamp"]];
        times.into_iter().find_map(|t| t.as_str()).unwrap_or_default().to_owned()
    };
    events.sort_by_key(|e| when(e));
    if events.is_empty() {
        return Ok("Events:              <none>\n".to_owned());
    }
    let mut out =
        format!("Events:\n  {:8} {:22} {:22} {:20} {}\n", "TYPE", "REASON", "LAST SEEN", "FROM", "MESSAGE");
    for e in events {
        let count = e["count"].as_i64().filter(|n| *n > 1).map(|n| format!(" (x{n})")).unwrap_or_default();
        let from = e["source"]["component"].as_str().or(e["reportingComponent"].as_str()).unwrap_or_default();
        let text = |field: &str| e[field].as_str().unwrap_or_default();
        writeln!(
            out,
            "  {:8} {:22} {:22} {from:20} {}{count}",
            text("type"),
            text("reason"),
            when(e),
            text("message")
        )
        .expect("writing to a String cannot fail");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_is_a_tree() {
        let got = text(&json!({"kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}},
            "spec": {"hostNetwork": true, "containers": [{"name": "c", "args": ["1", "2"]}]}}));
        let want = "Name:                a\nLabels:              x=y\nAnnotations:         <none>\nSpec:\n  Containers:\n    C:\n      Args:          1, 2\n      Name:          c\n  Host Network:      true\n";
        assert_eq!(got, want);
    }
}
