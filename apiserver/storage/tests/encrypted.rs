//! Encryption at rest: the contract through it, what lies below it, and the rotation of keys.

#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod suite;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use decapod_storage::encryption::{Config, Refreshed};
use decapod_storage::{Change, Embedded, Encrypted, Error, Event, List, Precondition, Store, embedded};
use futures::StreamExt;
use tempfile::TempDir;

const SECRET: &str = "a-text-that-nobody-else-writes";

fn config(folder: &Path, providers: &str) -> Config {
    let path = folder.join("encryption.yaml");
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
         resources:\n- resources: [secrets]\n  providers: {providers}\n"
    );
    std::fs::write(&path, text).unwrap();
    Config::read(&path).unwrap()
}

/// A key of the provider: 32 times the same byte.
fn key(provider: &str, name: &str, byte: char) -> String {
    let secret = match byte {
        'a' => "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=",
        _ => "YmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmI=",
    };
    format!("{provider}: {{keys: [{{name: {name}, secret: {secret}}}]}}")
}

fn over(inner: &suite::Any, prefix: &str, config: &Config) -> Arc<Encrypted> {
    let covered = vec![(prefix.to_owned(), Arc::clone(&config.rules[0].keys))];
    Arc::new(Encrypted::new(Arc::clone(inner), covered))
}

fn plain(folder: &TempDir) -> suite::Any {
    Arc::new(Embedded::open(&folder.path().join("db/state.redb"), embedded::Options::default()).unwrap())
}

async fn everything_encrypted() -> (suite::Any, TempDir) {
    let folder = TempDir::new().unwrap();
    let config = config(folder.path(), &format!("[{}]", key("secretbox", "k", 'a')));
    (over(&plain(&folder), "/", &config), folder)
}

store_contract!(everything_encrypted);

/// Whether the bytes are anywhere in the files of a folder.
fn found(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).unwrap().any(|item| {
        let path = item.unwrap().path();
        if path.is_dir() {
            return found(&path, text);
        }
        let bytes = std::fs::read(&path).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[tokio::test]
async fn nothing_secret_lies_on_the_disk() {
    let folder = TempDir::new().unwrap();
    let config = config(folder.path(), &format!("[{}, identity: {{}}]", key("aesgcm", "k", 'a')));
    let inner = plain(&folder);
    let store = over(&inner, "/registry/secrets/", &config);
    let made = store.create("/registry/secrets/default/a", SECRET.into()).await.unwrap();
    let when = Precondition::ModifiedAt(made.modified);
    store.update("/registry/secrets/default/a", format!("{SECRET}!").into(), when).await.unwrap();
    store.create("/registry/configmaps/default/a", "something-public".into()).await.unwrap();
    assert_eq!(store.get("/registry/secrets/default/a").await.unwrap().unwrap().value, format!("{SECRET}!"));
    let below = inner.get("/registry/secrets/default/a").await.unwrap().unwrap();
    assert!(below.value.starts_with(b"k8s:enc:aesgcm:v1:k:"));
    drop((store, inner));
    assert!(found(folder.path(), "something-public"), "the search finds what is there");
    assert!(!found(folder.path(), SECRET));
}

#[tokio::test]
async fn keys_rotate_and_plain_text_is_taken_over() {
    let folder = TempDir::new().unwrap();
    let inner = plain(&folder);
    let secrets = "/registry/secrets/";
    let (one, two) = (key("aescbc", "one", 'a'), key("aesgcm", "two", 'b'));
    inner.create("/registry/secrets/default/old", SECRET.into()).await.unwrap();
    // First a key over plain text, then a second key before it, at last the first key is gone.
    let first = config(folder.path(), &format!("[{one}, identity: {{}}]"));
    let store = over(&inner, secrets, &first);
    store.create("/registry/secrets/default/new", SECRET.into()).await.unwrap();
    assert_eq!(store.get("/registry/secrets/default/old").await.unwrap().unwrap().value, SECRET);
    assert_eq!(store.refresh().await.unwrap(), Refreshed { rewritten: 1, undecipherable: vec![] });
    assert_eq!(store.refresh().await.unwrap(), Refreshed::default());
    let store = over(&inner, secrets, &config(folder.path(), &format!("[{two}, {one}]")));
    assert_eq!(store.list(secrets, List::default()).await.unwrap().entries[0].value, SECRET);
    assert_eq!(store.refresh().await.unwrap().rewritten, 2);
    let store = over(&inner, secrets, &config(folder.path(), &format!("[{two}]")));
    let page = store.list(secrets, List::default()).await.unwrap();
    assert!(page.entries.iter().all(|entry| entry.value == SECRET), "{page:?}");
}

#[tokio::test]
async fn a_missing_or_wrong_key_names_the_object_and_stops_nothing_else() {
    let folder = TempDir::new().unwrap();
    let inner = plain(&folder);
    let mine = config(folder.path(), &format!("[{}]", key("aesgcm", "k", 'a')));
    let secrets = "/registry/secrets/";
    let lost = "/registry/secrets/default/lost";
    over(&inner, secrets, &mine).create(lost, SECRET.into()).await.unwrap();
    for (provider, name) in [("aesgcm", "k"), ("aesgcm", "other"), ("secretbox", "k")] {
        let theirs = config(folder.path(), &format!("[{}]", key(provider, name, 'b')));
        let store = over(&inner, secrets, &theirs);
        match store.get(lost).await {
            Err(Error::Undecipherable { key, .. }) => assert_eq!(&*key, lost),
            other => panic!("{other:?}"),
        }
        // Others are read, lists and watches go on; the value says what it is.
        let good = format!("/registry/secrets/default/{provider}-{name}");
        let revision = store.create(&good, "fine".into()).await.unwrap().modified;
        assert_eq!(store.get(&good).await.unwrap().unwrap().value, "fine");
        let page = store.list(secrets, List::default()).await.unwrap();
        let entry = page.entries.iter().find(|entry| &*entry.key == lost).unwrap();
        assert!(decapod_storage::encryption::undeciphered(&entry.value).unwrap().contains("\"k\""));
        let mut watch = store.watch(secrets, revision - 1).await.unwrap();
        match watch.next().await.unwrap().unwrap() {
            Event::Changes(changes) => {
                assert!(matches!(&changes[0], Change::Put { entry, .. } if entry.value == "fine"))
            }
            other => panic!("{other:?}"),
        }
        assert!(store.refresh().await.unwrap().undecipherable.contains(&lost.into()));
    }
}

#[tokio::test]
async fn a_value_that_was_moved_to_another_key_is_refused() {
    let folder = TempDir::new().unwrap();
    let inner = plain(&folder);
    let config = config(folder.path(), &format!("[{}]", key("aesgcm", "k", 'a')));
    let store = over(&inner, "/registry/secrets/", &config);
    store.create("/registry/secrets/kube-system/admin", SECRET.into()).await.unwrap();
    let stolen = inner.get("/registry/secrets/kube-system/admin").await.unwrap().unwrap();
    inner.create("/registry/secrets/mine/copy", stolen.value.clone()).await.unwrap();
    let read = store.get("/registry/secrets/mine/copy").await;
    assert!(matches!(read, Err(Error::Undecipherable { .. })), "{read:?}");
    let conflict = store.create("/registry/secrets/kube-system/admin", Bytes::new()).await;
    assert!(matches!(conflict, Err(Error::Exists(entry)) if entry.value == SECRET));
}
