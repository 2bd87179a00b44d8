//! Fuzzing for longer than the tests do.

use std::path::Path;
use std::process::Command;

/// Hands hostile input to each target for some seconds (a minute unless said otherwise); further arguments
/// choose targets, as of `cargo test`.
pub(crate) fn run(root: &Path, mut arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let seconds = arguments.next().unwrap_or_else(|| "60".to_owned());
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let tests = Command::new(cargo)
        .args(["test", "--package", "decapod-fuzz", "--"])
        .args(arguments)
        .env("DECAPOD_FUZZ_SECONDS", seconds)
        .current_dir(root)
        .status()?;
    anyhow::ensure!(tests.success(), "a target failed");
    Ok(())
}
