//! Snapshots as files.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use decapod_storage::snapshot::{self, Header, Summary};
use decapod_storage::{Entry, Store};
use jiff::Timestamp;
use serde_json::Value;

use super::Report;
use crate::failure::{Failure, chain};

/// The namespace whose uid is the cluster's.
const CLUSTER: &str = "/registry/namespaces/kube-system";

/// Reads everything at one revision and writes it to the file, whole or not at all.
pub(super) async fn save(store: &dyn Store, kind: &str, file: &Path) -> Result<Report, Failure> {
    let taken = snapshot::take(store).await;
    let (entries, revision) =
        taken.map_err(|e| Failure::new(format!("the store cannot be read: {}", chain(&e))))?;
    let header = Header {
        cluster: cluster(&entries),
        taken: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        store: kind.to_owned(),
        revision,
    };
    let path = file.to_owned();
    let written = tokio::task::spawn_blocking(move || write(&path, &header, &entries)).await;
    written.map_err(|e| Failure::new(format!("the snapshot was not written: {e}")))?
}

/// The cluster that the entries are of, as far as they say.
fn cluster(entries: &[Arc<Entry>]) -> String {
    let found = entries.binary_search_by(|entry| (*entry.key).cmp(CLUSTER));
    let uid = found.ok().and_then(|at| {
        let object: Value = serde_json::from_slice(&entries[at].value).ok()?;
        Some(object["metadata"]["uid"].as_str()?.to_owned())
    });
    uid.unwrap_or_default()
}

fn write(file: &Path, header: &Header, entries: &[Arc<Entry>]) -> Result<Report, Failure> {
    let failed = |why: String| Failure::new(format!("{} cannot be written: {why}", file.display()));
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".partial{}", std::process::id()));
    let partial = file.with_file_name(name);
    let write = || {
        let mut open = File::options();
        let out = open.create(true).truncate(true).write(true).mode(0o600).open(&partial);
        let out = out.map_err(|e| failed(e.to_string()))?;
        let summary = snapshot::write(&out, header, entries).map_err(|e| failed(chain(&e)))?;
        out.sync_all().map_err(|e| failed(e.to_string()))?;
        std::fs::rename(&partial, file).map_err(|e| failed(e.to_string()))?;
        Ok(summary)
    };
    let result: Result<Summary, Failure> = write();
    if result.is_err()
        && let Err(error) = std::fs::remove_file(&partial)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, file = %partial.display(), "cannot be removed");
    }
    result.map(|summary| report(file, summary))
}

fn report(file: &Path, summary: Summary) -> Report {
    let Summary { header, entries, bytes, checksum } = summary;
    let Header { cluster, taken, store, revision } = header;
    Report { file: file.to_owned(), cluster, taken, store, revision, entries, bytes, checksum }
}

fn read(file: &Path, each: impl FnMut(Entry)) -> Result<Report, Failure> {
    let input =
        File::open(file).map_err(|e| Failure::new(format!("{} cannot be read: {e}", file.display())))?;
    let summary = snapshot::read(input, each).map_err(|e| {
        Failure::new(format!("{}: {}", file.display(), chain(&e)))
            .hint("nothing was changed; take another snapshot, an older one is better than a damaged one")
    })?;
    Ok(report(file, summary))
}

/// Reads all of it and keeps nothing.
pub(super) fn verify(file: &Path) -> Result<Report, Failure> {
    read(file, |_| {})
}

/// All of a whole snapshot.
pub(super) fn load(file: &Path) -> Result<(Report, Vec<Entry>), Failure> {
    let mut entries = Vec::new();
    let report = read(file, |entry| entries.push(entry))?;
    Ok((report, entries))
}

#[cfg(test)]
mod tests {
    use decapod_storage::{Embedded, embedded};

    use super::*;

    #[tokio::test]
    async fn a_snapshot_knows_its_cluster_and_is_only_its_owners() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store"), embedded::Options::default()).unwrap();
        store.create(CLUSTER, r#"{"metadata":{"uid":"u-7"}}"#.into()).await.unwrap();
        let file = dir.path().join("x.snapshot");
        let saved = save(&store, "embedded", &file).await.unwrap();
        assert_eq!((&*saved.cluster, saved.entries), ("u-7", 1));
        assert_eq!(verify(&file).unwrap(), saved);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let why = verify(&file).unwrap_err().to_string();
        assert!(why.contains("x.snapshot") && why.contains("nothing was changed"), "{why}");
    }

    #[tokio::test]
    async fn what_cannot_be_written_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store"), embedded::Options::default()).unwrap();
        store.create(CLUSTER, "{}".into()).await.unwrap();
        let taken = dir.path().join("folder");
        std::fs::create_dir(&taken).unwrap();
        assert!(save(&store, "embedded", &taken).await.is_err());
        let left = std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("partial"));
        assert_eq!(left.count(), 0);
    }
}
