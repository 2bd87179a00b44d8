//! `cargo xtask chaos [KILLS]`: the watch contract while the server is killed a thousand times on each store.
//!
//! The work is that of the test `watch_contract`, which `make test` runs with fewer kills.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

const KILLS: &str = "1000";

/// Runs it to its end; its figures are printed as it goes.
pub(crate) fn run(root: &Path, kills: Option<&str>) -> anyhow::Result<()> {
    let kills = kills.unwrap_or(KILLS);
    kills.parse::<usize>().with_context(|| format!("{kills:?} is no number of kills"))?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .args([
            "test",
            "--locked",
            "--package",
            "decapod-tests",
            "--test",
            "watch_contract",
            "--",
            "--nocapture",
        ])
        .env("DECAPOD_KILLS", kills)
        .current_dir(root)
        .status()?;
    ensure!(status.success(), "the contract was broken, or the test could not run");
    Ok(())
}
