//! The crate graph against its golden file: who may depend on whom is a decision, not an accident.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

const GOLDEN: &str = "xtask/crate-graph.txt";

/// The differences between the workspace's graph and the golden file.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let actual = graph(root)?;
    let golden = std::fs::read_to_string(root.join(GOLDEN)).with_context(|| format!("reading {GOLDEN}"))?;
    if actual == golden {
        return Ok(Vec::new());
    }
    let mut wrong = vec![format!("the crate graph is not that of {GOLDEN}:")];
    wrong.extend(actual.lines().filter(|l| !golden.contains(l)).map(|l| format!("  is:     {l}")));
    wrong.extend(golden.lines().filter(|l| !actual.contains(l)).map(|l| format!("  should: {l}")));
    Ok(wrong)
}

fn graph(root: &Path) -> anyhow::Result<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let mut graph = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let mut needs: Vec<&str> = Vec::new();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            // Dependencies of tests only are not part of the architecture.
            if dependency["path"].is_string() && dependency["kind"] != "dev" {
                needs.extend(dependency["name"].as_str());
            }
        }
        needs.sort_unstable();
        graph.insert(package["name"].as_str().unwrap_or_default(), needs);
    }
    Ok(graph
        .into_iter()
        .map(|(name, needs)| format!("{name}: {}\n", needs.join(" ")).replace(": \n", ":\n"))
        .collect())
}
