//! `get`: lists and objects, as the tables that the server prints, or as JSON, YAML or names.

use std::io::Write;

use clap::{Args, ValueEnum};
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::{Value, json};

use super::kinds::{Kind, Target};
use super::session::{Session, with_query};
use crate::failure::Failure;

/// How many objects are asked for at once.
const PAGE: &str = "500";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Wide,
    Json,
    Yaml,
    Name,
}

#[derive(Args, Debug)]
pub(crate) struct Get {
    /// TYPE[,TYPE…] [NAME…] or TYPE/NAME….
    #[arg(required = true)]
    words: Vec<String>,
    /// The form of the output.
    #[arg(short, long)]
    output: Option<Output>,
    /// All namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Only objects with these fields.
    #[arg(long)]
    field_selector: Option<String>,
    /// Go on with what changes.
    #[arg(short, long)]
    watch: bool,
    /// No headers.
    #[arg(long)]
    no_headers: bool,
    /// Show labels as the last column.
    #[arg(long)]
    show_labels: bool,
    /// Say nothing of objects that are not there.
    #[arg(long)]
    ignore_not_found: bool,
}

impl Get {
    pub(super) async fn run(&self, session: &Session) -> Result<(), Failure> {
        let targets = session.kinds().await?.targets(&self.words)?;
        if self.watch {
            let [target] = &targets[..] else {
                return Err(Failure::new(
                    "you may only watch a single resource or type of resource at a time",
                ));
            };
            return self.watch(session, target).await;
        }
        match self.output {
            None | Some(Output::Wide) => self.tables(session, &targets).await,
            Some(output) => self.objects(session, &targets, output).await,
        }
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        query.extend(self.selector.clone().map(|s| ("labelSelector", s)));
        query.extend(self.field_selector.clone().map(|s| ("fieldSelector", s)));
        query
    }

    fn namespace<'a>(&self, session: &'a Session, kind: &Kind) -> Option<&'a str> {
        if self.all_namespaces { None } else { session.namespace_of(kind) }
    }

    async fn tables(&self, session: &Session, targets: &[Target]) -> Result<(), Failure> {
        let mut shown = 0;
        let many = targets.len() > 1;
        for target in targets {
            let prefix = if many { format!("{}/", target.kind.display()) } else { String::new() };
            let mut printer = Printer::new(self, prefix);
            for path in self.paths(session, target) {
                let mut next = path;
                loop {
                    let table = match session.table(&next).await {
                        Err(f) if self.ignore_not_found && f.is("NotFound") => break,
                        other => other?,
                    };
                    printer.add(&table)?;
                    match table["metadata"]["continue"].as_str().filter(|t| !t.is_empty()) {
                        Some(token) => {
                            next = continued(&self.list_path(session, target), token, self.query())
                        }
                        None => break,
                    }
                }
            }
            if many && shown > 0 && !printer.rows.is_empty() {
                println!();
            }
            shown += printer.rows.len();
            printer.print(&mut std::io::stdout().lock())?;
        }
        if shown == 0 && !self.ignore_not_found {
            let namespace = targets.first().and_then(|t| self.namespace(session, &t.kind));
            match namespace {
                Some(namespace) => eprintln!("No resources found in {namespace} namespace."),
                None => eprintln!("No resources found"),
            }
        }
        Ok(())
    }

    fn list_path(&self, session: &Session, target: &Target) -> String {
        target.kind.path(self.namespace(session, &target.kind), None)
    }

    fn paths(&self, session: &Session, target: &Target) -> Vec<String> {
        if target.names.is_empty() {
            let mut query = self.query();
            query.push(("limit", PAGE.to_owned()));
            return vec![with_query(&self.list_path(session, target), &query)];
        }
        let namespace = session.namespace_of(&target.kind);
        target.names.iter().map(|name| target.kind.path(namespace, Some(name))).collect()
    }

    async fn objects(&self, session: &Session, targets: &[Target], output: Output) -> Result<(), Failure> {
        let mut objects = Vec::new();
        let mut single = targets.len() == 1;
        for target in targets {
            single &= target.names.len() == 1;
            for path in self.paths(session, target) {
                let mut next = path;
                loop {
                    let mut answer = match session.get(&next).await {
                        Err(f) if self.ignore_not_found && f.is("NotFound") => break,
                        other => other?,
                    };
                    if !target.names.is_empty() {
                        objects.push((target, answer));
                        break;
                    }
                    let token = answer["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
                    let (api_version, kind) = (answer["apiVersion"].clone(), target.kind.kind.clone());
                    if let Value::Array(items) = answer["items"].take() {
                        for mut item in items {
                            item["apiVersion"] = api_version.clone();
                            item["kind"] = kind.clone().into();
                            objects.push((target, item));
                        }
                    }
                    if token.is_empty() {
                        break;
                    }
                    next = continued(&self.list_path(session, target), &token, self.query());
                }
            }
        }
        if output == Output::Name {
            for (target, object) in &objects {
                println!("{}/{}", target.kind.display(), decapod_api::meta::name(object));
            }
            return Ok(());
        }
        let mut objects: Vec<Value> = objects.into_iter().map(|(_, o)| o).collect();
        let value = if single && objects.len() == 1 {
            objects.remove(0)
        } else {
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": objects})
        };
        println!(
            "{}",
            if output == Output::Json { serde_json::to_string_pretty(&value)? } else { yaml(&value)? }
        );
        Ok(())
    }

    /// Watches from the revision of what was shown first, so that nothing between is missed.
    async fn watch(&self, session: &Session, target: &Target) -> Result<(), Failure> {
        let mut query = self.query();
        if let [name] = &target.names[..] {
            query.push(("fieldSelector", format!("metadata.name={name}")));
        } else if !target.names.is_empty() {
            return Err(Failure::new("you may only watch a single object or all of a type"));
        }
        let path = self.list_path(session, target);
        let first = session.table(&with_query(&path, &query)).await?;
        let mut printer = Printer::new(self, String::new());
        printer.add(&first)?;
        printer.print(&mut std::io::stdout().lock())?;
        let mut version = first["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        loop {
            let mut query = query.clone();
            query.extend([
                ("watch", "true".to_owned()),
                ("resourceVersion", version.clone()),
                ("allowWatchBookmarks", "true".to_owned()),
            ]);
            let mut lines = session.stream(&with_query(&path, &query), true).await?.lines();
            while let Some(line) = lines.next().await {
                let event: Value = serde_json::from_str(&line?)?;
                let object = &event["object"];
                if event["type"] == "ERROR" {
                    return Err(Failure::new(format!(
                        "the watch ended: {}",
                        object["message"].as_str().unwrap_or_default()
                    )));
                }
                let seen = object["rows"][0]["object"]["metadata"]["resourceVersion"].as_str();
                let seen = seen.or(object["metadata"]["resourceVersion"].as_str()).filter(|v| !v.is_empty());
                version = seen.unwrap_or(&version).to_owned();
                if event["type"] != "BOOKMARK" {
                    printer.rows.clear();
                    printer.add(object)?;
                    printer.print(&mut std::io::stdout().lock())?;
                }
            }
        }
    }
}

/// The rest of a list.
fn continued(path: &str, token: &str, mut query: Vec<(&'static str, String)>) -> String {
    query.extend([("limit", PAGE.to_owned()), ("continue", token.to_owned())]);
    with_query(path, &query)
}

/// An object as YAML.
pub(super) fn yaml(value: &Value) -> Result<String, Failure> {
    serde_saphyr::to_string(value)
        .map(|t| t.trim_end().to_owned())
        .map_err(|e| Failure::new(format!("cannot be written as YAML: {e}")))
}

/// Collects the rows of server-side tables and prints them aligned.
pub(super) struct Printer {
    prefix: String,
    wide: bool,
    namespaces: bool,
    labels: bool,
    headers: bool,
    columns: Vec<(String, bool)>,
    rows: Vec<Vec<String>>,
    widths: Vec<usize>,
}

impl Printer {
    fn new(get: &Get, prefix: String) -> Self {
        Self {
            prefix,
            wide: get.output == Some(Output::Wide),
            namespaces: get.all_namespaces,
            labels: get.show_labels,
            headers: !get.no_headers,
            columns: Vec::new(),
            rows: Vec::new(),
            widths: Vec::new(),
        }
    }

    fn add(&mut self, table: &Value) -> Result<(), Failure> {
        if table["kind"] != "Table" {
            return Err(Failure::new("the server does not print tables").hint("use -o json or -o yaml"));
        }
        if self.columns.is_empty() {
            for column in table["columnDefinitions"].as_array().into_iter().flatten() {
                let shown = self.wide || column["priority"].as_i64().unwrap_or_default() == 0;
                self.columns.push((column["name"].as_str().unwrap_or_default().to_uppercase(), shown));
            }
        }
        for row in table["rows"].as_array().into_iter().flatten() {
            let metadata = &row["object"]["metadata"];
            let mut cells = Vec::new();
            if self.namespaces {
                cells.push(metadata["namespace"].as_str().unwrap_or_default().to_owned());
            }
            let values = row["cells"].as_array().into_iter().flatten().zip(&self.columns);
            for (i, (cell, _)) in values.enumerate().filter(|(_, (_, column))| column.1) {
                let text = cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
                cells.push(if i == 0 { format!("{}{text}", self.prefix) } else { text });
            }
            if self.labels {
                let labels = decapod_api::meta::labels(&row["object"]);
                let text: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                cells.push(if text.is_empty() { "<none>".to_owned() } else { text.join(",") });
            }
            self.rows.push(cells);
        }
        Ok(())
    }

    fn header(&self) -> Vec<String> {
        let mut header = Vec::new();
        header.extend(self.namespaces.then(|| "NAMESPACE".to_owned()));
        header.extend(self.columns.iter().filter(|c| c.1).map(|c| c.0.clone()));
        header.extend(self.labels.then(|| "LABELS".to_owned()));
        header
    }

    /// Prints the rows; the header only before the first.
    fn print(&mut self, out: &mut impl Write) -> Result<(), Failure> {
        let header = self.header();
        if self.rows.is_empty() {
            return Ok(());
        }
        self.widths.resize(header.len(), 0);
        for row in self.rows.iter().chain([&header]) {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut line = |cells: &[String]| -> std::io::Result<()> {
            let last = cells.len().saturating_sub(1);
            for (i, cell) in cells.iter().enumerate() {
                let width = if i == last { 0 } else { self.widths[i] + 3 };
                write!(out, "{cell:width$}")?;
            }
            writeln!(out)
        };
        if std::mem::take(&mut self.headers) {
            line(&header)?;
        }
        for row in &self.rows {
            line(row)?;
        }
        Ok(())
    }
}
