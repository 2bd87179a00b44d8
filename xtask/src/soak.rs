//! Many short pods, and what they leave: more of them than the tests have time for.

use std::path::Path;
use std::process::Command;

/// Runs so many pods (1,000 unless said otherwise) on the runtime, as root, and looks for leftovers.
pub(crate) fn run(root: &Path, mut arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let pods = arguments.next().unwrap_or_else(|| "1000".to_owned());
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let test = Command::new(cargo)
        .args(["test", "--package", "decapod-runtime", "--test", "contract", "--", "leave_nothing"])
        .env("DECAPOD_SOAK_PODS", pods)
        .current_dir(root)
        .status()?;
    anyhow::ensure!(test.success(), "something was left");
    Ok(())
}
