//! Sizes of files and functions: what has outgrown its room is taken apart before it grows further.

use std::path::{Path, PathBuf};

use anyhow::Context;

const MAX_FILE: usize = 1000;
const MAX_FUNCTION: usize = 100;

/// A source file of the workspace.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// All Rust files of the workspace, build output left out.
pub(crate) fn sources(root: &Path) -> anyhow::Result<Vec<Source>> {
    let mut files = Vec::new();
    walk(root, root, &mut files)?;
    files.sort_by(|a: &Source, b| a.path.cmp(&b.path));
    Ok(files)
}

fn walk(root: &Path, folder: &Path, files: &mut Vec<Source>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                walk(root, &path, files)?;
            }
        } else if name.ends_with(".rs") {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            files.push(Source { path: path.strip_prefix(root).unwrap_or(&path).to_owned(), text });
        }
    }
    Ok(())
}

/// Prints the largest and names those over the bounds.
pub(crate) fn check(files: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut functions: Vec<(usize, String)> = Vec::new();
    for file in files {
        let lines = file.text.lines().count();
        if lines > MAX_FILE {
            wrong.push(format!("{}: {lines} lines, at most {MAX_FILE}", file.path.display()));
        }
        functions.extend(
            self::functions(&file.text)
                .into_iter()
                .map(|(n, name)| (n, format!("{}: {name}", file.path.display()))),
        );
    }
    functions.sort_by_key(|f| std::cmp::Reverse(f.0));
    for (lines, name) in functions.iter().filter(|f| f.0 > MAX_FUNCTION) {
        wrong.push(format!("{name}: {lines} lines, at most {MAX_FUNCTION}"));
    }
    let total: usize = files.iter().map(|f| f.text.lines().count()).sum();
    let mut sizes: Vec<usize> = files.iter().map(|f| f.text.lines().count()).collect();
    sizes.sort_unstable();
    println!(
        "{} files, {total} lines, median file {}, {} functions, longest {}",
        files.len(),
        sizes.get(sizes.len() / 2).copied().unwrap_or_default(),
        functions.len(),
        functions.first().map(|f| format!("{} ({} lines)", f.1, f.0)).unwrap_or_default(),
    );
    wrong
}

/// The functions of a file with their lengths. Relies on rustfmt: the closing brace stands at the indentation of `fn`.
fn functions(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let Some(at) = trimmed.find("fn ") else { continue };
        let head = &trimmed[..at];
        let modifiers = ["pub", "async", "const", "unsafe", "extern", "\"C\""];
        let is_head = head.split_whitespace().all(|w| modifiers.contains(&w) || w.starts_with("pub("));
        if !is_head || (at > 0 && !head.ends_with(' ')) {
            continue;
        }
        let indent = line.len() - trimmed.len();
        let close = format!("{}}}", " ".repeat(indent));
        let end =
            lines[i..].iter().position(|l| *l == close || (l.starts_with(&close) && l.len() == close.len()));
        if let Some(end) = end {
            let name = trimmed[at + 3..].split(['(', '<']).next().unwrap_or_default();
            found.push((end + 1, name.to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::functions;

    #[test]
    fn lengths() {
        let text = "pub(crate) async fn a() {\n    1\n}\n\nimpl X {\n    fn b(&self) {\n        2\n    }\n}\n// a fn in words\n";
        assert_eq!(functions(text), [(3, "a".to_owned()), (3, "b".to_owned())]);
    }
}
