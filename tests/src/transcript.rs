//! Sessions with a command line, as a user would write them down, and their replay.
//!
//! A transcript is a text: a line `$ command` is run by a shell, and the lines below it are what it has to print
//! (standard output and error together). `> ` continues a command. `...` alone stands for any lines, `[..]` for any
//! text within a line, and `? 1` says the exit code, which is 0 otherwise. A command behind `$~ ` is tried again
//! until it prints what it should. Lines that begin with `#` below an empty line, and
//! empty lines before a command, say nothing.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::poll;
use crate::tools::{output, run};

/// How long `$~` tries: what it waits for takes seconds on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long any command may take, by `timeout`: a client that hangs fails its test.
const LONGEST: &str = "120";

/// One command and what it has to print.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Where it stands in its file, from 1.
    pub line: usize,
    /// What the shell runs.
    pub command: String,
    /// Tried again until it holds.
    pub eventually: bool,
    /// The exit code.
    pub code: i32,
    /// The lines, with their wildcards.
    pub expected: Vec<String>,
}

/// Reads a transcript.
///
/// # Errors
/// The line that belongs to no command.
pub fn parse(text: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut between = true;
    for (number, line) in text.lines().enumerate() {
        let line_number = number + 1;
        if let Some(command) = line.strip_prefix("$ ").or_else(|| line.strip_prefix("$~ ")) {
            let eventually = line.starts_with("$~");
            steps.push(Step { line: line_number, command: command.into(), eventually, ..Step::default() });
        } else if between && line.starts_with('#') {
            continue;
        } else {
            match steps.last_mut() {
                Some(step) => step.take(line).with_context(|| format!("line {line_number}"))?,
                None if line.is_empty() => {}
                None => bail!("line {line_number}: no command is above it"),
            }
        }
        between = line.is_empty();
    }
    for step in &mut steps {
        while step.expected.last().is_some_and(String::is_empty) {
            step.expected.pop();
        }
    }
    Ok(steps)
}

impl Step {
    fn take(&mut self, line: &str) -> Result<()> {
        if let Some(more) = line.strip_prefix("> ").or_else(|| (line == ">").then_some("")) {
            if !self.expected.is_empty() {
                bail!("a command cannot go on after its output");
            }
            self.command.push('\n');
            self.command.push_str(more);
        } else if let (Some(code), true) = (line.strip_prefix("? "), self.expected.is_empty()) {
            self.code = code.parse().with_context(|| format!("{code:?} is no exit code"))?;
        } else {
            self.expected.push(line.trim_end().to_owned());
        }
        Ok(())
    }

    fn run(&self, shell: &dyn Fn() -> Command) -> Result<Result<(), String>> {
        let mut command = shell();
        // The shell's own redirection, so that both streams come in the order in which they were written.
        command.args(["-c", &format!("exec 2>&1\n{}", self.command)]);
        let output = output(&mut command)?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<&str> = printed.trim_end().lines().map(str::trim_end).collect();
        let code = output.status.code().unwrap_or(-1);
        if code == self.code && matches(&self.expected, &lines) {
            return Ok(Ok(()));
        }
        Ok(Err(format!(
            "line {}: $ {}\n--- expected (exit code {})\n{}\n--- printed (exit code {code})\n{printed}",
            self.line,
            self.command,
            self.code,
            self.expected.join("\n"),
        )))
    }
}

/// Runs a transcript; `shell` makes the shell that runs one command.
///
/// # Errors
/// All commands that did not do what is written: the first may be the cause of the others.
pub fn replay(file: &Path, shell: &dyn Fn() -> Command) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let mut differ = Vec::new();
    for step in parse(&text).with_context(|| file.display().to_string())? {
        if step.eventually {
            if let Err(error) = poll::until(&step.command, PATIENCE, || step.run(shell)) {
                differ.push(format!("{error:#}"));
            }
        } else if let Err(differs) = step.run(shell)? {
            differ.push(differs);
        }
    }
    ensure!(differ.is_empty(), "{}: {}", file.display(), differ.join("\n"));
    Ok(())
}

/// Replays `file` in a namespace of its own, `name`, which is the current one in a copy of the kubeconfig; both are
/// removed whatever comes of it. `$NS` is its name.
///
/// # Errors
/// Those of [`replay`], and of a namespace that cannot be made or does not go.
pub fn in_namespace(kubectl: &Path, kubeconfig: &Path, name: &str, file: &Path) -> Result<()> {
    let file = &std::fs::canonicalize(file).with_context(|| file.display().to_string())?;
    let folder = tempfile::tempdir()?;
    let own = folder.path().join("kubeconfig");
    std::fs::copy(kubeconfig, &own).with_context(|| kubeconfig.display().to_string())?;
    let helm = kubectl.with_file_name("helm");
    let shell = || {
        let mut shell = shell(folder.path(), &own, &[kubectl, &helm]);
        shell.env("NS", name).env("KINDS", file.with_file_name("kinds.yaml"));
        shell
    };
    let do_it = |script: &str| run(shell().args(["-c", script]));
    do_it("kubectl create namespace $NS && kubectl config set-context --current --namespace=$NS")?;
    let replayed = replay(file, &shell);
    let removed = do_it("kubectl delete namespace $NS --timeout=100s");
    replayed.and(removed.map(drop))
}

/// A shell in `folder` with kubectl and its kubeconfig.
pub fn shell(folder: &Path, kubeconfig: &Path, programs: &[&Path]) -> Command {
    let mut command = Command::new("timeout");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = programs.iter().filter_map(|p| p.parent()).map(Path::to_path_buf);
    let path = std::env::join_paths(found.chain(std::env::split_paths(&path))).unwrap_or(path);
    command.args([LONGEST, "bash"]).current_dir(folder);
    command.env("PATH", path).env("KUBECONFIG", kubeconfig).env("HOME", folder).env("LC_ALL", "C.UTF-8");
    command
}

fn matches(expected: &[String], lines: &[&str]) -> bool {
    match (expected.split_first(), lines.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "..." => {
            (0..=lines.len()).any(|skipped| matches(rest, &lines[skipped..]))
        }
        (Some((first, rest)), Some((line, more))) => line_matches(first, line) && matches(rest, more),
        _ => false,
    }
}

fn line_matches(expected: &str, line: &str) -> bool {
    let mut parts = expected.split("[..]");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_commands_with_what_they_print() {
        let steps = parse("# About\n\n$ cat <<E\n> a\n> E\n? 2\none\n\ntwo\n\n$~ get\n...\n").unwrap();
        assert_eq!(steps.len(), 2);
        assert_eq!((steps[0].command.as_str(), steps[0].code, steps[0].line), ("cat <<E\na\nE", 2, 3));
        assert_eq!(steps[0].expected, ["one", "", "two"]);
        assert!(steps[1].eventually && steps[1].expected == ["..."]);
        assert!(parse("lost").is_err());
    }

    #[test]
    fn wildcards_stand_for_text_and_lines() {
        let check = |expected: &str, text: &str| {
            let expected: Vec<String> = expected.lines().map(str::to_owned).collect();
            matches(&expected, &text.lines().collect::<Vec<_>>())
        };
        assert!(check("a\n...\nz", "a\nb\nc\nz") && check("a\n...\nz", "a\nz"));
        assert!(!check("a\n...\nz", "a\nb") && !check("a", "a\nb") && !check("", "a"));
        assert!(check("pod/[..] created", "pod/web created"));
        assert!(!check("pod/[..] created", "pod/web deleted") && !check("a", "ab"));
        assert!(check("[..]x[..]y", "1x2xy") && !check("a[..]a", "a"));
    }

    #[test]
    fn what_differs_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t");
        let shell = || shell(folder.path(), Path::new("/dev/null"), &[]);
        std::fs::write(&file, "$ echo out; echo err >&2; exit 3\n? 3\nout\nerr\n").unwrap();
        replay(&file, &shell).unwrap();
        std::fs::write(&file, "$ echo 1\n2\n").unwrap();
        let error = replay(&file, &shell).unwrap_err().to_string();
        assert!(
            error.contains("line 1: $ echo 1") && error.contains("--- printed (exit code 0)\n1"),
            "{error}"
        );
    }
}
