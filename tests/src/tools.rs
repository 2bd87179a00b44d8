//! The programs that tests run: ours, and kubectl and Helm of the version that we speak.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the workspace")
}

/// Where built images and fetched tools are kept between runs.
pub fn cache() -> PathBuf {
    root().join("target/tools")
}

/// A program that the Makefile put there: `DECAPOD_BIN`, `KUBECTL_BIN`, or its usual place.
///
/// # Errors
/// Which program is missing, and what makes it.
pub fn program(name: &str) -> Result<PathBuf> {
    let variable = format!("{}_BIN", name.to_uppercase());
    let path = match std::env::var_os(&variable) {
        Some(path) => PathBuf::from(path),
        None if name == "decapod" => root().join("target/decapod"),
        None => cache().join(name),
    };
    if !path.exists() {
        bail!("{} is not there: `make tools build` makes it (or set {variable})", path.display());
    }
    Ok(path)
}

/// Runs a command to its end.
///
/// # Errors
/// That it could not be started; a failing command is no error.
pub fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("starting {command:?}"))
}

/// Runs a command that has to succeed; returns its standard output.
///
/// # Errors
/// The command, its exit status and what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?} failed ({}):\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// Runs a command that has to fail; returns all that it printed.
///
/// # Errors
/// That it succeeded.
pub fn fails(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        bail!("{command:?} succeeded, and should have failed:\n{text}");
    }
    if text.contains("panicked") {
        bail!("{command:?} panicked:\n{text}");
    }
    Ok(text)
}
