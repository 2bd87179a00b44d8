//! kubectl and Helm, verb by verb: the transcripts in `tests/kubectl`, each in a namespace of its own.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::suite::Test;
use decapod_tests::tools::{program, root};
use decapod_tests::transcript;

macro_rules! transcripts {
    ($($name:literal),* $(,)?) => {
        &[$((concat!("kubectl::", $name), |cluster| replay(cluster, $name))),*]
    };
}

/// A test for each transcript.
pub(crate) const TRANSCRIPTS: &[Test<Cluster>] = transcripts![
    "apply",
    "auth",
    "change",
    "create",
    "delete",
    "documents",
    "flags",
    "get",
    "helm",
    "jobs",
    "nodes",
    "rollout",
    "workloads"
];

fn folder() -> PathBuf {
    root().join("tests/kubectl")
}

fn replay(cluster: &Cluster, name: &str) -> Result<()> {
    let file = folder().join(format!("{name}.t"));
    transcript::in_namespace(&program("kubectl")?, &cluster.kubeconfig(), name, &file)
}

/// A transcript that nobody replays would say nothing.
pub(crate) fn every_transcript_is_replayed(_: &Cluster) -> Result<()> {
    let names = std::fs::read_dir(folder())?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let transcripts = names.iter().filter(|path| path.extension().is_some_and(|e| e == "t"));
    let found: BTreeSet<_> = transcripts.filter_map(|path| path.file_stem()?.to_str()).collect();
    let replayed: BTreeSet<_> =
        TRANSCRIPTS.iter().map(|(name, _)| name.trim_start_matches("kubectl::")).collect();
    ensure!(found == replayed, "in the folder: {found:?}; replayed: {replayed:?}");
    Ok(())
}
