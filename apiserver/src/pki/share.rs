//! What all servers of a cluster must have alike: the authority and its key, the keys of tokens, and the keys by which
//! objects are enciphered in the store. One server hands it to another one that joins.
//!
//! **Invariant**: the authority's key is written last, so that who has it has everything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::{CA_CERT, CA_KEY, Error, TOKEN_KEY, is_former, pin, read, write_private};

/// What the encryption configuration is called among what is handed out.
pub const ENCRYPTION: &str = "encryption.yaml";
/// The group of those who get it: a bootstrap token names it.
pub const SERVERS: &str = "system:bootstrappers:decapod:server-token";
/// Where it is got.
pub const PATH: &str = "/decapod/v1/server-keys";

/// Where a server has what it shares.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The folder of the PKI.
    pub folder: PathBuf,
    /// The encryption configuration.
    pub encryption: PathBuf,
}

/// What was received is not a cluster's keys.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// A file that every server has is not among it.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A file that no server shares.
    #[error("{0:?} is not expected")]
    Unexpected(String),
    /// The authority is not the one that was pinned.
    #[error("the authority is another one than that of the server that sent it")]
    Other,
    /// It cannot be written.
    #[error("cannot be kept")]
    Write(#[from] Error),
}

impl Shared {
    /// The files by their names.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn files(&self) -> Result<BTreeMap<String, String>, Error> {
        let failed = |source: io::Error| Error::File { path: self.folder.clone(), source };
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if is_key(&name) {
                let text = read(&self.folder.join(&name))?;
                files.insert(name, text);
            }
        }
        files.insert(ENCRYPTION.to_owned(), read(&self.encryption)?);
        Ok(files)
    }
}

/// Whether every server has a file of this name, or may have it.
fn is_key(name: &str) -> bool {
    [CA_CERT, CA_KEY, TOKEN_KEY].contains(&name) || is_former(name)
}

/// Whether a server that has this folder has its keys, its own or those of a cluster that it joined.
pub fn has_keys(folder: &Path) -> bool {
    folder.join(CA_KEY).exists()
}

/// The certificate of the authority whose key is in this folder, if there is one.
///
/// # Errors
/// If it is there and cannot be read.
pub fn authority(folder: &Path) -> Result<Option<String>, Error> {
    let file = folder.join(CA_CERT);
    if file.exists() { read(&file).map(Some) } else { Ok(None) }
}

/// Keeps what another server handed out, if its authority's key has the hash `pinned`.
///
/// # Errors
/// If it is not what a server shares, or cannot be written. Then the folder has no authority's key.
pub fn receive(folder: &Path, files: &BTreeMap<String, String>, pinned: &str) -> Result<(), ReceiveError> {
    let wanted = |name: &'static str| files.get(name).ok_or(ReceiveError::Missing(name));
    let (certificate, key) = (wanted(CA_CERT)?, wanted(CA_KEY)?);
    wanted(TOKEN_KEY)?;
    wanted(ENCRYPTION)?;
    // Names are paths: only those that are known are written.
    if let Some(other) = files.keys().find(|name| !is_key(name) && name.as_str() != ENCRYPTION) {
        return Err(ReceiveError::Unexpected(other.clone()));
    }
    if pin(certificate).as_deref() != Some(pinned) {
        return Err(ReceiveError::Other);
    }
    super::make_folder(folder)?;
    for (name, text) in files.iter().filter(|(name, _)| *name != CA_KEY) {
        write_private(&folder.join(name), text)?;
    }
    write_private(&folder.join(CA_KEY), key)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::Pki;
    use super::*;

    #[test]
    fn a_server_that_joins_gets_all_keys_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        let now = Timestamp::now();
        let first = Pki::open(&ours, now).unwrap();
        fs::write(ours.join("encryption.yaml"), "kind: EncryptionConfiguration").unwrap();
        fs::copy(ours.join(TOKEN_KEY), ours.join("sa-2025.key")).unwrap();
        fs::write(ours.join("notes.txt"), "not to be told").unwrap();
        let shared = Shared { folder: ours.clone(), encryption: ours.join("encryption.yaml") };
        let mut files = shared.files().unwrap();
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        assert_eq!(names, [CA_CERT, CA_KEY, ENCRYPTION, "sa-2025.key", TOKEN_KEY]);

        let pinned = pin(first.ca_pem()).unwrap();
        let other = pin(Pki::open(&dir.path().join("other"), now).unwrap().ca_pem()).unwrap();
        assert!(matches!(receive(&theirs, &files, &other), Err(ReceiveError::Other)));
        files.insert("../escaped".to_owned(), String::new());
        assert!(matches!(receive(&theirs, &files, &pinned), Err(ReceiveError::Unexpected(_))));
        files.remove("../escaped");
        let key = files.remove(TOKEN_KEY).unwrap();
        assert!(matches!(receive(&theirs, &files, &pinned), Err(ReceiveError::Missing(TOKEN_KEY))));
        assert!(!has_keys(&theirs));
        files.insert(TOKEN_KEY.to_owned(), key);
        receive(&theirs, &files, &pinned).unwrap();
        assert!(has_keys(&theirs));
        let second = Pki::open(&theirs, now).unwrap();
        assert_eq!(second.ca_pem(), first.ca_pem());
        assert_eq!(second.token_key().public_key_raw(), first.token_key().public_key_raw());
        assert_eq!(second.former_token_keys().count(), 1);
        use std::os::unix::fs::PermissionsExt;
        for name in files.keys() {
            assert_eq!(
                fs::metadata(theirs.join(name)).unwrap().permissions().mode() & 0o777,
                0o600,
                "{name}"
            );
        }
    }
}
