//! Many short pods, and what they leave; many kills of an agent, and what becomes of its pods: more of either than the
//! tests have time for.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

/// Runs so many pods (1,000 unless said otherwise) on the runtime and on a node, as root, and looks for leftovers.
pub(crate) fn run(root: &Path, mut arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let pods = number(arguments.next(), "1000")?;
    let runtime = ["--package", "decapod-runtime", "--test", "contract", "--", "leave_nothing"];
    test(root, &runtime, &[("DECAPOD_SOAK_PODS", &pods)])?;
    test(root, &NODE, &[("DECAPOD_NODE_PODS", &pods), ("DECAPOD_AGENT_KILLS", "0")])
}

/// Kills the agent of a node so often (100 times unless said otherwise) while pods come and go, as root.
pub(crate) fn kills(root: &Path, mut arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let kills = number(arguments.next(), "100")?;
    test(root, &NODE, &[("DECAPOD_AGENT_KILLS", &kills)])
}

/// The test of a node's pods.
const NODE: [&str; 6] = ["--package", "decapod-tests", "--test", "node_pods", "--", "--nocapture"];

fn number(argument: Option<String>, otherwise: &str) -> anyhow::Result<String> {
    let text = argument.unwrap_or_else(|| otherwise.to_owned());
    text.parse::<usize>().with_context(|| format!("{text:?} is no number"))?;
    Ok(text)
}

fn test(root: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> anyhow::Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo)
        .args(["test", "--locked"])
        .args(arguments)
        .envs(variables.iter().copied())
        .current_dir(root)
        .status()?;
    ensure!(status.success(), "pods were not as they should be, or something was left");
    Ok(())
}
