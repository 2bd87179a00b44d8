//! The `config` of an image's document, as instructions change it.
//!
//! It stays JSON: fields that are not known here are passed on from the base image.

use serde_json::{Map, Value, json};

use crate::dockerfile::Healthcheck;
use crate::image::ImageConfig;

/// The `config` object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Config(Map<String, Value>);

impl Config {
    /// As a base image has it; anything but an object counts as none.
    pub(super) fn new(value: Option<Value>) -> Self {
        match value {
            Some(Value::Object(config)) => Config(config),
            _ => Config::default(),
        }
    }

    /// As it goes into the document.
    pub(super) fn to_json(&self) -> Value {
        Value::Object(self.0.clone())
    }

    fn strings(&self, key: &str) -> Vec<String> {
        let list = self.0.get(key).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(|value| value.as_str().map(str::to_owned)).collect()
    }

    /// A text; empty where there is none.
    pub(super) fn text(&self, key: &str) -> String {
        self.0.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Sets a field.
    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    /// Takes a field away.
    pub(super) fn unset(&mut self, key: &str) {
        self.0.remove(key);
    }

    fn object(&mut self, key: &str) -> &mut Map<String, Value> {
        let slot = self.0.entry(key).or_insert_with(|| json!({}));
        if !slot.is_object() {
            *slot = json!({});
        }
        slot.as_object_mut().expect("made one above")
    }

    /// `NAME=value` of all variables.
    pub(super) fn env(&self) -> Vec<String> {
        self.strings("Env")
    }

    /// The value of a variable.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let env = self.env();
        env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    }

    /// Sets a variable; the others keep their order.
    pub(super) fn set_variable(&mut self, name: &str, value: &str) {
        let mut env = self.env();
        let entry = format!("{name}={value}");
        let is_it = |old: &String| old.split('=').next() == Some(name);
        match env.iter_mut().find(|old| is_it(old)) {
            Some(old) => *old = entry,
            None => env.push(entry),
        }
        self.set("Env", env);
    }

    /// Sets a label.
    pub(super) fn label(&mut self, name: &str, value: &str) {
        self.object("Labels").insert(name.to_owned(), value.into());
    }

    /// Adds to a set: `Volumes`, `ExposedPorts`.
    pub(super) fn add(&mut self, key: &str, member: String) {
        self.object(key).insert(member, json!({}));
    }

    /// Sets how the image says that it is well.
    pub(super) fn healthcheck(&mut self, check: &Healthcheck) {
        let mut value = json!({ "Test": check.test });
        for (key, number) in [
            ("Interval", check.interval),
            ("Timeout", check.timeout),
            ("StartPeriod", check.start_period),
            ("StartInterval", check.start_interval),
            ("Retries", check.retries),
        ] {
            if number != 0 {
                value[key] = number.into();
            }
        }
        self.set("Healthcheck", value);
    }

    /// Adds an instruction for those who build on the image.
    pub(super) fn trigger(&mut self, text: &str) {
        let mut triggers = self.strings("OnBuild");
        triggers.push(text.to_owned());
        self.set("OnBuild", triggers);
    }

    /// What the base image left to do.
    pub(super) fn take_triggers(&mut self) -> Vec<String> {
        let triggers = self.strings("OnBuild");
        self.unset("OnBuild");
        triggers
    }

    /// How lines are run.
    pub(super) fn shell(&self) -> Vec<String> {
        match self.strings("Shell") {
            shell if shell.is_empty() => vec!["/bin/sh".to_owned(), "-c".to_owned()],
            shell => shell,
        }
    }

    /// The part that the runtime needs.
    pub(super) fn to_image(&self) -> ImageConfig {
        ImageConfig {
            user: self.text("User"),
            env: self.env(),
            entrypoint: self.strings("Entrypoint"),
            cmd: self.strings("Cmd"),
            working_dir: self.text("WorkingDir"),
            stop_signal: self.text("StopSignal"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_passed_on() {
        let base = json!({ "Env": ["A=1", "B=2"], "Strange": 7, "Labels": null, "OnBuild": ["RUN x"] });
        let mut config = Config::new(Some(base));
        config.set_variable("A", "3");
        config.set_variable("C", "4=5");
        config.label("l", "v");
        config.add("Volumes", "/data".into());
        assert_eq!(config.take_triggers(), ["RUN x"]);
        assert_eq!(config.variable("C").as_deref(), Some("4=5"));
        let expected = json!({
            "Env": ["A=3", "B=2", "C=4=5"], "Strange": 7, "Labels": { "l": "v" }, "Volumes": { "/data": {} },
        });
        assert_eq!(config.to_json(), expected);
        assert_eq!(Config::new(Some(json!("x"))), Config::default());
        assert_eq!(config.shell(), ["/bin/sh", "-c"]);
    }
}
