//! Manifests: YAML or JSON, from files, folders or standard input, one document or many.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::Failure;

/// The most bytes of one manifest file.
const MAX_FILE: u64 = 64 << 20;

/// An object of a manifest, and where it stands.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) source: String,
    pub(crate) object: Value,
}

impl Document {
    /// The text at a top-level or metadata field.
    fn required(&self, path: [&str; 2]) -> Result<&str, Failure> {
        let value = if path[0].is_empty() { &self.object[path[1]] } else { &self.object[path[0]][path[1]] };
        let name = path.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(".");
        value.as_str().filter(|t| !t.is_empty()).ok_or_else(|| {
            Failure::new(format!("{}: {name} is not set", self.source))
                .hint("every object needs apiVersion, kind and metadata.name")
        })
    }

    pub(crate) fn api_version(&self) -> Result<&str, Failure> {
        self.required(["", "apiVersion"])
    }

    pub(crate) fn kind(&self) -> Result<&str, Failure> {
        self.required(["", "kind"])
    }

    pub(crate) fn name(&self) -> Result<&str, Failure> {
        self.required(["metadata", "name"])
    }
}

/// Reads all documents of these files, folders (their `.yaml`, `.yml` and `.json`), or `-`.
pub(crate) fn read(files: &[PathBuf], recursive: bool) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    for file in files {
        if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().take(MAX_FILE).read_to_string(&mut text)?;
            parse("standard input", &text, &mut documents)?;
        } else if file.is_dir() {
            for file in folder(file, recursive)? {
                read_file(&file, &mut documents)?;
            }
        } else {
            read_file(file, &mut documents)?;
        }
    }
    if documents.is_empty() {
        return Err(Failure::new("no objects passed to apply")
            .hint("the files hold no document: name one with -f FILE, or - for standard input"));
    }
    Ok(documents)
}

fn folder(path: &Path, recursive: bool) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        if path.is_dir() && recursive {
            files.extend(folder(&path, true)?);
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path, documents: &mut Vec<Document>) -> Result<(), Failure> {
    let unreadable =
        |e: std::io::Error| Failure::new(format!("the file {} cannot be read: {e}", path.display()));
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE {
        return Err(Failure::new(format!("the file {} is larger than {MAX_FILE} bytes", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    parse(&path.display().to_string(), &text, documents)
}

fn parse(source: &str, text: &str, documents: &mut Vec<Document>) -> Result<(), Failure> {
    // As kubectl reads YAML: file modes are written 0400, and are octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let values: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|e| Failure::new(format!("error parsing {source}: error converting YAML to JSON: {e}")))?;
    for value in values {
        match value {
            Value::Null => {}
            Value::Object(mut map) if map.get("kind").is_some_and(|k| k == "List") => {
                let items = map.remove("items").unwrap_or_default();
                let Value::Array(items) = items else { continue };
                documents
                    .extend(items.into_iter().map(|object| Document { source: source.to_owned(), object }));
            }
            object @ Value::Object(_) => documents.push(Document { source: source.to_owned(), object }),
            _ => return Err(Failure::new(format!("error parsing {source}: a document is no object"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Document>, Failure> {
        let mut documents = Vec::new();
        parse("x.yaml", text, &mut documents)?;
        Ok(documents)
    }

    #[test]
    fn documents_lists_and_nothing() {
        let got = parsed("---\nkind: A\napiVersion: v1\nmetadata: {name: a}\n---\n# nothing\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n").unwrap();
        let kinds: Vec<_> = got.iter().map(|d| d.object["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
        assert_eq!(got[0].name().unwrap(), "a");
        assert_eq!(
            parsed("{mode: 0400, port: 80, text: '0400'}").unwrap()[0].object,
            serde_json::json!({"mode": 256, "port": 80, "text": "0400"})
        );
        assert!(got[1].api_version().unwrap_err().to_string().contains("x.yaml: apiVersion is not set"));
    }

    #[test]
    fn malformed_names_the_file_and_the_place() {
        let error = parsed("a: [1,\nb: 2").unwrap_err().to_string();
        assert!(error.contains("x.yaml") && error.contains("line"), "{error}");
        assert!(parsed("just text").unwrap_err().to_string().contains("no object"));
    }
}
