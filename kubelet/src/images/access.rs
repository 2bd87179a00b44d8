//! Who may use images that are here: a pod does not get a private image only because another pod's Secret brought it
//! to the node (KEP-2535, with Kubernetes' default policy `NeverVerifyPreloadedImages`).
//!
//! **Invariant**: that an image is being pulled is on disk before the pull begins, so that an agent that is killed in
//! between does not take what it fetched for something the administrator put there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use decapod_proto::cri;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::keyring::{Known, Source};

/// Secrets that are noted for one image and repository; beyond that a pod's own pull decides, as in Kubernetes.
const MAX_SECRETS: usize = 100;

/// A Secret with which an image was pulled, and a hash of what it said then.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Proof {
    #[serde(flatten)]
    source: Source,
    hash: String,
}

/// Who has pulled an image by one repository's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Access {
    /// Without credentials, or with the node's own.
    everyone: bool,
    secrets: BTreeSet<Proof>,
}

/// What is known of one image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    image: String,
    repositories: BTreeMap<String, Access>,
}

/// The records of this node's pulls. Its methods block for the time of small files.
#[derive(Debug)]
pub(crate) struct Accesses {
    root: PathBuf,
    /// Pulls that are under way, by reference.
    under_way: Mutex<HashMap<String, usize>>,
}

/// How an image that is here may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// By every pod.
    Yes,
    /// By pods with one of certain Secrets.
    WithProof,
    /// Only by who pulls it.
    No,
}

impl Accesses {
    /// Opens the records below a folder, making it.
    pub(crate) fn open(root: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(root.join("pulling"))?;
        fs::create_dir_all(root.join("pulled"))?;
        Ok(Self { root, under_way: Mutex::default() })
    }

    fn pulling(&self, reference: &str) -> PathBuf {
        self.root.join("pulling").join(hash(reference.as_bytes()))
    }

    fn pulled(&self, image: &str) -> PathBuf {
        self.root.join("pulled").join(hash(image.as_bytes()))
    }

    /// A pull begins.
    pub(crate) fn intend(&self, reference: &str) -> io::Result<()> {
        *self.under_way().entry(reference.to_owned()).or_default() += 1;
        write(&self.pulling(reference), reference.as_bytes())
    }

    /// A pull has ended, and what there was to record is on disk.
    pub(crate) fn end(&self, reference: &str) -> io::Result<()> {
        let mut under_way = self.under_way();
        if let Some(count) = under_way.get_mut(reference) {
            *count -= 1;
            if *count > 0 {
                return Ok(());
            }
            under_way.remove(reference);
        }
        match fs::remove_file(self.pulling(reference)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A pull has succeeded, with these credentials or without any.
    pub(crate) fn record(&self, repository: &str, image: &str, used: Option<&Known>) -> io::Result<()> {
        let before = self.read(image);
        let mut record =
            before.clone().unwrap_or_else(|| Record { image: image.to_owned(), ..Record::default() });
        let access = record.repositories.entry(repository.to_owned()).or_default();
        match used.and_then(proof) {
            None => access.everyone = true,
            Some(proof) if access.secrets.len() < MAX_SECRETS => {
                // A Secret's old content proves nothing any more.
                access.secrets.retain(|known| known.source != proof.source);
                access.secrets.insert(proof);
            }
            Some(_) => {}
        }
        if before.as_ref() != Some(&record) {
            let json = serde_json::to_vec(&record).map_err(io::Error::other)?;
            write(&self.pulled(image), &json)?;
        }
        Ok(())
    }

    /// Whether a pod may use an image that is here, before its Secrets are looked at.
    pub(crate) fn allowed(&self, reference: &str, repository: &str, image: &str) -> Allowed {
        match self.read(image) {
            Some(record) => match record.repositories.get(repository) {
                Some(access) if access.everyone => Allowed::Yes,
                Some(access) if !access.secrets.is_empty() => Allowed::WithProof,
                _ => Allowed::No,
            },
            // A pull that was cut off may have brought it.
            None if self.pulling(reference).exists() => Allowed::No,
            None => Allowed::Yes,
        }
    }

    /// Whether one of these credentials is known to have pulled the image: the same Secret, or another one that says
    /// the same.
    pub(crate) fn proven(&self, repository: &str, image: &str, credentials: &[Known]) -> bool {
        let Some(record) = self.read(image) else { return false };
        let Some(access) = record.repositories.get(repository) else { return false };
        let known = credentials.iter().filter_map(proof);
        known.into_iter().any(|own| {
            access.secrets.iter().any(|other| other.hash == own.hash || other.source == own.source)
        })
    }

    /// The images of which there are records. Who then asks which images are here knows those that are gone: an image
    /// is here before its record is.
    pub(crate) fn images(&self) -> io::Result<BTreeSet<String>> {
        let mut images = BTreeSet::new();
        for entry in fs::read_dir(self.root.join("pulled"))? {
            let record = read(&entry?.path()).map(|record| record.image);
            images.extend(record.filter(|image| !image.is_empty()));
        }
        Ok(images)
    }

    /// Forgets an image that is gone.
    pub(crate) fn forget(&self, image: &str) -> io::Result<()> {
        match fs::remove_file(self.pulled(image)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        // Numbers are changed under it, and nothing panics.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, image: &str) -> Option<Record> {
        read(&self.pulled(image))
    }
}

/// A record that cannot be read is as none that allows nothing: the next pull writes it anew.
fn read(path: &Path) -> Option<Record> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "a record of a pull cannot be read");
            return Some(Record::default());
        }
    };
    Some(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "a record of a pull is damaged");
        Record::default()
    }))
}

/// Whole or not at all.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, content)?;
    fs::File::open(&temporary)?.sync_data()?;
    fs::rename(&temporary, path)
}

fn proof(known: &Known) -> Option<Proof> {
    known.source.clone().map(|source| Proof { source, hash: hash_of(&known.auth) })
}

fn hash_of(auth: &cri::AuthConfig) -> String {
    let parts = [&auth.username, &auth.password, &auth.auth, &auth.identity_token, &auth.registry_token];
    // Lengths keep neighbours apart.
    let text: String = parts.iter().map(|part| format!("{}:{part}", part.len())).collect();
    hash(text.as_bytes())
}

fn hash(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: &str = "r.io/private";
    const REFERENCE: &str = "r.io/private:1";

    fn secret(uid: &str, password: &str) -> Known {
        let source = Source { uid: uid.into(), namespace: "n".into(), name: uid.into() };
        let auth = cri::AuthConfig { username: "u".into(), password: password.into(), ..Default::default() };
        Known { auth, source: Some(source) }
    }

    #[test]
    fn a_private_image_is_for_those_who_can_pull_it() {
        let dir = tempfile::tempdir().unwrap();
        let accesses = Accesses::open(dir.path().to_owned()).unwrap();
        // Put there by hand.
        assert_eq!(accesses.allowed(REFERENCE, REPOSITORY, "sha256:1"), Allowed::Yes);
        accesses.intend(REFERENCE).unwrap();
        assert_eq!(accesses.allowed(REFERENCE, REPOSITORY, "sha256:1"), Allowed::No);
        accesses.record(REPOSITORY, "sha256:1", Some(&secret("a", "p"))).unwrap();
        accesses.end(REFERENCE).unwrap();
        // An agent that is started anew knows as much.
        let accesses = Accesses::open(dir.path().to_owned()).unwrap();
        assert_eq!(accesses.allowed(REFERENCE, REPOSITORY, "sha256:1"), Allowed::WithProof);
        assert_eq!(accesses.allowed("r.io/b:1", "r.io/b", "sha256:1"), Allowed::No, "by another name");
        let proven = |known: Known| accesses.proven(REPOSITORY, "sha256:1", &[known]);
        assert!(proven(secret("a", "p")) && proven(secret("b", "p")) && proven(secret("a", "rotated")));
        assert!(!proven(secret("b", "q")));
        accesses.record(REPOSITORY, "sha256:1", None).unwrap();
        assert_eq!(accesses.allowed(REFERENCE, REPOSITORY, "sha256:1"), Allowed::Yes);
        assert_eq!(accesses.images().unwrap(), BTreeSet::from(["sha256:1".to_owned()]));
        accesses.forget("sha256:1").unwrap();
        assert!(accesses.images().unwrap().is_empty());
    }

    #[test]
    fn damage_allows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let accesses = Accesses::open(dir.path().to_owned()).unwrap();
        fs::write(accesses.pulled("sha256:1"), "{").unwrap();
        assert_eq!(accesses.allowed(REFERENCE, REPOSITORY, "sha256:1"), Allowed::No);
    }
}
