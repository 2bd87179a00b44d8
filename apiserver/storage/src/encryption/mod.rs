//! Encryption at rest: a store that keeps the values under some prefixes enciphered in another store.
//!
//! Values look as kube-apiserver writes them, `k8s:enc:<provider>:v1:<key>:` and the ciphertext, so that
//! either can read what the other wrote with the same configuration. Only `aesgcm` binds a value to its
//! key: a value that somebody moved to another key does not decipher.
//!
//! **Invariants:** nothing under an encrypted prefix reaches the inner store in plain text (unless the
//! configuration says `identity` first). A value that does not decipher is never taken for another: a read
//! of it fails and names it, a list or a watch hands it on as it is, and it says of itself what it is
//! ([`undeciphered`]).

mod cipher;
mod config;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;

pub use cipher::{Keyring, Undecipherable};
pub use config::{Config, ConfigError, Rule};

use crate::{Change, Entry, Error, Event, List, Page, Precondition, Revision, Store, Watch};
use cipher::Deciphered;

/// What every enciphered value begins with.
const MARK: &[u8] = b"k8s:enc:";
/// The longest head that is looked at for the names of provider and key.
const LONGEST_HEAD: usize = 200;

/// A prefix of keys, and the keys by which its values are enciphered.
pub type Covered = (String, Arc<Keyring>);

/// A store in a store.
pub struct Encrypted {
    inner: Arc<dyn Store>,
    covered: Arc<[Covered]>,
}

impl std::fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encrypted").field("covered", &self.covered).finish_non_exhaustive()
    }
}

/// What [`Encrypted::refresh`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// How many values were enciphered anew.
    pub rewritten: usize,
    /// The keys of the values that no configured key deciphers.
    pub undecipherable: Vec<Arc<str>>,
}

/// What an enciphered value is, if it is one: for errors about a value that was handed on as it is.
pub fn undeciphered(value: &[u8]) -> Option<String> {
    let head = &value.strip_prefix(MARK)?[..value.len().min(LONGEST_HEAD) - MARK.len()];
    let mut names = head.split(|byte| *byte == b':').map(String::from_utf8_lossy);
    let (provider, _version, key) = (names.next()?, names.next()?, names.next()?);
    Some(format!("it is enciphered by provider {provider:?} with key {key:?}, and no configured key fits"))
}

impl Encrypted {
    /// Enciphers what is under these prefixes of the inner store. The first prefix that fits counts.
    pub fn new(inner: Arc<dyn Store>, covered: Vec<Covered>) -> Self {
        Self { inner, covered: covered.into() }
    }

    fn seal(&self, key: &str, value: Bytes) -> Result<Bytes, Error> {
        match keyring(&self.covered, key) {
            None => Ok(value),
            Some(keyring) => keyring
                .seal(key, &value)
                .map(Bytes::from)
                .map_err(|error| Error::Unavailable(Box::new(error))),
        }
    }

    /// Enciphers anew what the first key did not encipher: what was there before the first key, or before
    /// it became the first. Writes that come between win.
    ///
    /// # Errors
    /// Those of the inner store.
    pub async fn refresh(&self) -> Result<Refreshed, Error> {
        let mut done = Refreshed::default();
        for (prefix, keyring) in self.covered.iter() {
            for entry in self.inner.list(prefix, List::default()).await?.entries {
                match keyring.open(&entry.key, &entry.value) {
                    Ok(Deciphered { stale: false, .. }) => {}
                    Ok(Deciphered { value, .. }) => {
                        let value = self.seal(&entry.key, value.into())?;
                        let when = Precondition::ModifiedAt(entry.modified);
                        match self.inner.update(&entry.key, value, when).await {
                            Ok(_) => done.rewritten += 1,
                            Err(Error::Conflict(_)) => {}
                            Err(error) => return Err(error),
                        }
                    }
                    Err(_) => done.undecipherable.push(Arc::clone(&entry.key)),
                }
            }
        }
        Ok(done)
    }

    /// The error of a write, with what is there deciphered.
    fn opened_error(&self, error: Error) -> Error {
        match error {
            Error::Exists(there) => Error::Exists(pass(&self.covered, there)),
            Error::Conflict(there) => Error::Conflict(there.map(|there| pass(&self.covered, there))),
            other => other,
        }
    }
}

fn keyring<'a>(covered: &'a [Covered], key: &str) -> Option<&'a Keyring> {
    covered.iter().find(|(prefix, _)| key.starts_with(prefix)).map(|(_, keyring)| &**keyring)
}

/// The entry with its value deciphered.
fn open(covered: &[Covered], entry: Arc<Entry>) -> Result<Arc<Entry>, Error> {
    let Some(keyring) = keyring(covered, &entry.key) else { return Ok(entry) };
    match keyring.open(&entry.key, &entry.value) {
        Ok(Deciphered { value, .. }) => Ok(Arc::new(Entry { value: value.into(), ..(*entry).clone() })),
        Err(why) => Err(Error::Undecipherable { key: Arc::clone(&entry.key), why: why.to_string() }),
    }
}

/// As [`open`], but what cannot be deciphered is handed on as it is: one such value must not end a watch
/// of all.
fn pass(covered: &[Covered], entry: Arc<Entry>) -> Arc<Entry> {
    open(covered, Arc::clone(&entry)).unwrap_or_else(|error| {
        tracing::error!(%error, "a stored value cannot be read");
        entry
    })
}

fn pass_change(covered: &[Covered], change: Change) -> Change {
    match change {
        Change::Put { entry, previous } => Change::Put {
            entry: pass(covered, entry),
            previous: previous.map(|previous| pass(covered, previous)),
        },
        Change::Delete { previous, revision } => {
            Change::Delete { previous: pass(covered, previous), revision }
        }
    }
}

#[async_trait]
impl Store for Encrypted {
    async fn get(&self, key: &str) -> Result<Option<Arc<Entry>>, Error> {
        self.inner.get(key).await?.map(|entry| open(&self.covered, entry)).transpose()
    }

    async fn list(&self, prefix: &str, list: List) -> Result<Page, Error> {
        let mut page = self.inner.list(prefix, list).await?;
        page.entries = page.entries.into_iter().map(|entry| pass(&self.covered, entry)).collect();
        Ok(page)
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<Arc<Entry>, Error> {
        let sealed = self.seal(key, value.clone())?;
        let written = self.inner.create(key, sealed).await.map_err(|error| self.opened_error(error))?;
        Ok(Arc::new(Entry { value, ..(*written).clone() }))
    }

    async fn update(&self, key: &str, value: Bytes, when: Precondition) -> Result<Arc<Entry>, Error> {
        let sealed = self.seal(key, value.clone())?;
        let written = self.inner.update(key, sealed, when).await.map_err(|error| self.opened_error(error))?;
        Ok(Arc::new(Entry { value, ..(*written).clone() }))
    }

    async fn delete(&self, key: &str, when: Precondition) -> Result<Revision, Error> {
        self.inner.delete(key, when).await.map_err(|error| self.opened_error(error))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, Error> {
        let covered = Arc::clone(&self.covered);
        let watch = self.inner.watch(prefix, after).await?;
        Ok(Box::pin(watch.map(move |event| {
            Ok(match event? {
                Event::Changes(changes) => {
                    Event::Changes(changes.into_iter().map(|change| pass_change(&covered, change)).collect())
                }
                progress @ Event::Progress(_) => progress,
            })
        })))
    }

    async fn progress(&self) -> Result<(), Error> {
        self.inner.progress().await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.inner.revision().await
    }

    async fn size(&self) -> Result<u64, Error> {
        self.inner.size().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.compact(revision).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enciphered_value_says_what_it_is() {
        assert_eq!(undeciphered(b"{}"), None);
        assert_eq!(undeciphered(b"k8s:enc:"), None);
        let told = undeciphered(b"k8s:enc:aesgcm:v1:key1:\xff\x00").unwrap();
        assert!(told.contains("\"aesgcm\"") && told.contains("\"key1\""), "{told}");
        assert!(undeciphered(&[b"k8s:enc:x:v1:".as_slice(), &[b'a'; 1 << 20]].concat()).unwrap().len() < 400);
    }
}
