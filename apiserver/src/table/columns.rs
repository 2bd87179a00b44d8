//! The columns of each kind.

use std::collections::HashMap;
use std::sync::LazyLock;

use decapod_api::resource::Resource;
use serde_json::{Value, json};

const TEXT: &str = include_str!("columns.txt");
const DEFAULT: &str = "Name:n, Created At:s";

static COLUMNS: LazyLock<HashMap<&'static str, &'static str>> = LazyLock::new(|| {
    TEXT.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = ")).collect()
});

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    kind: &'static str,
    format: &'static str,
    priority: u8,
}

impl Column {
    fn parse(text: &str) -> Self {
        let (text, priority) = match text.trim().strip_prefix('+') {
            Some(rest) => (rest, 1),
            None => (text.trim(), 0),
        };
        let (name, kind) = text.rsplit_once(':').unwrap_or((text, "s"));
        let (kind, format) = match kind {
            "i" => ("integer", ""),
            "b" => ("boolean", ""),
            "n" => ("string", "name"),
            _ => ("string", ""),
        };
        Self { name: name.to_owned(), kind, format, priority }
    }

    /// The column as a `TableColumnDefinition`.
    pub(super) fn definition(&self) -> Value {
        json!({"name": self.name, "type": self.kind, "format": self.format, "description": "",
            "priority": self.priority})
    }
}

/// The columns of a kind.
pub(super) fn of(resource: &Resource) -> Vec<Column> {
    let key = format!("{}/{}", resource.group, resource.plural);
    let text = COLUMNS.get(key.as_str()).copied().unwrap_or(DEFAULT);
    text.split(", ").map(Column::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use decapod_api::resource::RESOURCES;

    #[test]
    fn every_line_is_of_a_kind_and_names_itself() {
        for key in COLUMNS.keys() {
            let (group, plural) = key.split_once('/').unwrap();
            assert!(RESOURCES.iter().any(|r| r.group == group && r.plural == plural), "{key}");
        }
        for resource in RESOURCES {
            assert_eq!(of(resource).iter().filter(|c| c.format == "name").count(), 1, "{}", resource.plural);
        }
    }
}
