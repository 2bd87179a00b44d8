//! The ids of the machine that pods with a user namespace of their own get (`hostUsers: false`, KEP-127).
//!
//! **Invariant**: no two pods of the node share an id, across restarts of the agent: a pod's range is in the pod's
//! folder before anything of the pod uses it, and is given to another one when the folder is gone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use decapod_proto::cri;
use serde::{Deserialize, Serialize};

/// Ids that a pod gets: as many as programs expect, and what Kubernetes gives.
pub(crate) const LENGTH: u32 = 65_536;

/// The ranges that are given out, counted in [`LENGTH`]: where distributions, systemd's containers and `/etc/subuid`
/// have nothing, and below 2^31, beyond which some programs fail.
const RANGES: Range<u32> = 0x7000..0x7ffe;

/// The file in a pod's folder that has its range.
const FILE: &str = "userns";

/// The ids of a pod: its 0 is the machine's `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Users {
    first: u32,
    count: u32,
}

impl Users {
    fn mappings(self) -> Vec<cri::IdMapping> {
        vec![cri::IdMapping { host_id: self.first, container_id: 0, length: self.count }]
    }

    /// The pod's user namespace, as the runtime is told.
    pub(crate) fn namespace(self) -> cri::UserNamespace {
        let mode = cri::NamespaceMode::Pod.into();
        cri::UserNamespace { mode, uids: self.mappings(), gids: self.mappings() }
    }

    /// Has the runtime show files with the pod's ids. Images are the runtime's own affair.
    pub(crate) fn map(self, mounts: &mut [cri::Mount]) {
        for mount in mounts.iter_mut().filter(|mount| mount.image.is_none()) {
            mount.uid_mappings = self.mappings();
            mount.gid_mappings = self.mappings();
        }
    }
}

/// Who has which range.
pub(crate) struct Ranges {
    pods: PathBuf,
    /// Where to look first: several nodes of one machine know nothing of each other.
    start: u32,
    taken: Mutex<BTreeMap<u32, String>>,
}

impl Ranges {
    /// Finds what pods have already. `node` is the node's name.
    pub(crate) fn open(pods: &Path, node: &str) -> io::Result<Self> {
        let mut taken = BTreeMap::new();
        for entry in fs::read_dir(pods)? {
            let entry = entry?;
            if let Some(users) = read(&entry.path())? {
                taken.insert(users.first, entry.file_name().to_string_lossy().into_owned());
            }
        }
        let mut hasher = DefaultHasher::new();
        node.hash(&mut hasher);
        let count = u64::from(RANGES.end - RANGES.start);
        let start = u32::try_from(hasher.finish() % count).expect("less than a count of 32 bits");
        Ok(Self { pods: pods.to_owned(), start, taken: Mutex::new(taken) })
    }

    /// The range of a pod: the one that it has, or a new one.
    ///
    /// # Errors
    /// If all are taken, or its folder cannot be written.
    pub(crate) fn of(&self, uid: &str) -> io::Result<Users> {
        let folder = self.pods.join(uid);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(users) = read(&folder)? {
            return Ok(users);
        }
        let count = RANGES.end - RANGES.start;
        let numbers = (0..count).map(|step| RANGES.start + (self.start + step) % count);
        let free = numbers.map(|number| number * LENGTH).find(|first| !taken.contains_key(first));
        let first = free.ok_or_else(|| io::Error::other("no range of user ids is free on this node"))?;
        let users = Users { first, count: LENGTH };
        write(&folder, users)?;
        taken.insert(first, uid.to_owned());
        Ok(users)
    }

    /// The pod's folder is gone.
    pub(crate) fn release(&self, uid: &str) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, owner| owner != uid);
    }
}

fn read(folder: &Path) -> io::Result<Option<Users>> {
    match fs::read(folder.join(FILE)) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whole or not at all, also after a crash of the machine.
fn write(folder: &Path, users: Users) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let part = folder.join(format!("{FILE}.part"));
    let mut file = File::create(&part)?;
    file.write_all(&serde_json::to_vec(&users)?)?;
    file.sync_all()?;
    fs::rename(part, folder.join(FILE))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn pods_never_share_ids_and_keep_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let ranges = Ranges::open(dir.path(), "n1").unwrap();
        let first: Vec<Users> = (0..50).map(|n| ranges.of(&format!("p{n}")).unwrap()).collect();
        let distinct: BTreeSet<u32> = first.iter().map(|users| users.first).collect();
        assert_eq!(distinct.len(), 50);
        assert!(first.iter().all(|users| users.first >= 0x7000_0000 && users.first % LENGTH == 0));
        assert_eq!(ranges.of("p7").unwrap(), first[7]);
        // Another agent finds them.
        let ranges = Ranges::open(dir.path(), "n1").unwrap();
        assert_eq!(ranges.of("p7").unwrap(), first[7]);
        assert!(!distinct.contains(&ranges.of("new").unwrap().first));
        // What a pod had is free when its folder is gone.
        fs::remove_dir_all(dir.path().join("p0")).unwrap();
        ranges.release("p0");
        assert_eq!(ranges.of("next").unwrap(), first[0]);
    }

    #[test]
    fn a_node_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut ranges = Ranges::open(dir.path(), "n1").unwrap();
        let all = RANGES.map(|number| (number * LENGTH, "other".to_owned())).collect();
        ranges.taken = Mutex::new(all);
        assert!(ranges.of("p").unwrap_err().to_string().contains("no range of user ids is free"));
        ranges.release("other");
        assert!(ranges.of("p").is_ok());
    }

    #[test]
    fn images_are_not_mapped_twice() {
        let users = Users { first: LENGTH, count: LENGTH };
        let image = cri::Mount { image: Some(cri::ImageSpec::default()), ..Default::default() };
        let mut mounts = [cri::Mount::default(), image];
        users.map(&mut mounts);
        assert_eq!(mounts[0].uid_mappings, users.namespace().uids);
        assert!(mounts[1].uid_mappings.is_empty() && mounts[1].gid_mappings.is_empty());
    }
}
