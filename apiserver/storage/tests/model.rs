//! The store beside the simplest thing that could be one: a list of all that ever happened.

#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use decapod_storage::embedded::{History, Options};
use decapod_storage::{Embedded, Error, Event, List, Precondition, Revision, Store};
use futures::StreamExt;
use proptest::prelude::*;
use tempfile::TempDir;

#[derive(Clone, Debug)]
enum Step {
    Create { key: u8, size: u16 },
    Update { key: u8, size: u16, stale: bool },
    Delete { key: u8, stale: bool },
    Compact { back: u8 },
    Reopen,
    List { back: u8, limit: u8 },
    Watch { back: u8, folder: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..12u8;
    let size = 0..3_000u16;
    let stale = prop::bool::weighted(0.2);
    prop_oneof![
        4 => (key.clone(), size.clone()).prop_map(|(key, size)| Step::Create { key, size }),
        6 => (key.clone(), size, stale)
            .prop_map(|(key, size, stale)| Step::Update { key, size, stale }),
        3 => (key, stale).prop_map(|(key, stale)| Step::Delete { key, stale }),
        1 => (0..20u8).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
        3 => (0..30u8, 1..6u8).prop_map(|(back, limit)| Step::List { back, limit }),
        3 => (0..30u8, 0..4u8).prop_map(|(back, folder)| Step::Watch { back, folder }),
    ]
}

fn folder_of(key: u8) -> String {
    format!("/m/{}/", key % 3)
}

fn name_of(key: u8) -> String {
    format!("{}{key}", folder_of(key))
}

/// `None` where the key was deleted.
type Happening = (String, Option<Bytes>);

#[derive(Default)]
struct Model {
    /// What each revision did, the first at 0.
    happenings: Vec<Happening>,
    oldest: Revision,
}

impl Model {
    fn revision(&self) -> Revision {
        self.happenings.len() as Revision
    }

    fn at(&self, revision: Revision) -> BTreeMap<&str, (&Bytes, Revision)> {
        let mut there = BTreeMap::new();
        for (number, (key, value)) in self.happenings[..revision as usize].iter().enumerate() {
            match value {
                Some(value) => there.insert(key.as_str(), (value, number as Revision + 1)),
                None => there.remove(key.as_str()),
            };
        }
        there
    }

    fn modified(&self, key: &str) -> Option<Revision> {
        self.at(self.revision()).get(key).map(|(_, modified)| *modified)
    }

    /// Which of the revisions is meant, if it is kept.
    fn back(&self, back: u8) -> (Revision, bool) {
        let revision = self.revision().saturating_sub(back.into());
        (revision, revision >= self.oldest)
    }
}

struct World {
    folder: TempDir,
    store: Option<Embedded>,
    model: Model,
}

impl World {
    fn new() -> Self {
        let mut world = Self { folder: TempDir::new().unwrap(), store: None, model: Model::default() };
        world.reopen();
        world
    }

    fn reopen(&mut self) {
        // Nothing is forgotten by itself: the model would have to know when.
        let history = History { changes: usize::MAX / 2, ..History::default() };
        let options = Options { history, ..Options::default() };
        drop(self.store.take());
        self.store = Some(Embedded::open(&self.folder.path().join("db"), options).unwrap());
    }

    fn store(&self) -> &Embedded {
        self.store.as_ref().unwrap()
    }

    async fn run(&mut self, number: usize, step: Step) {
        let value = |size: u16| Bytes::from(vec![b'a' + (number % 26) as u8; size.into()]);
        match step {
            Step::Create { key, size } => self.create(name_of(key), value(size)).await,
            Step::Update { key, size, stale } => self.write(name_of(key), Some(value(size)), stale).await,
            Step::Delete { key, stale } => self.write(name_of(key), None, stale).await,
            Step::Compact { back } => {
                let (revision, _) = self.model.back(back);
                self.store().compact(revision).await.unwrap();
                self.model.oldest = self.model.oldest.max(revision);
            }
            Step::Reopen => self.reopen(),
            Step::List { back, limit } => self.list(back, limit.into()).await,
            Step::Watch { back, folder } => self.watch(back, folder).await,
        }
        assert_eq!(self.store().revision().await.unwrap(), self.model.revision());
    }

    async fn create(&mut self, key: String, value: Bytes) {
        let result = self.store().create(&key, value.clone()).await;
        match (result, self.model.modified(&key)) {
            (Ok(entry), None) => {
                self.model.happenings.push((key, Some(value)));
                assert_eq!(entry.modified, self.model.revision());
            }
            (Err(Error::Exists(there)), Some(modified)) => assert_eq!(there.modified, modified),
            other => panic!("{other:?}"),
        }
    }

    async fn write(&mut self, key: String, value: Option<Bytes>, stale: bool) {
        let known = self.model.modified(&key);
        let when = Precondition::ModifiedAt(known.unwrap_or(1) + u64::from(stale));
        let result = match value.clone() {
            Some(value) => self.store().update(&key, value, when).await.map(|entry| entry.modified),
            None => self.store().delete(&key, when).await,
        };
        match (result, known) {
            (Ok(revision), Some(_)) if !stale => {
                self.model.happenings.push((key, value));
                assert_eq!(revision, self.model.revision());
            }
            (Err(Error::Conflict(there)), known) if stale || known.is_none() => {
                assert_eq!(there.map(|entry| entry.modified), known);
            }
            other => panic!("{other:?}"),
        }
    }

    async fn list(&self, back: u8, limit: usize) {
        let (revision, kept) = self.model.back(back);
        let mut list = List { at: Some(revision), limit: Some(limit), after: None };
        let mut found = Vec::new();
        loop {
            let page = match self.store().list("/m/", list.clone()).await {
                Ok(page) => page,
                Err(Error::Compacted { .. }) if !kept => return,
                Err(other) => panic!("{other}"),
            };
            assert!(kept && page.revision == revision);
            list.after = page.entries.last().map(|entry| Arc::clone(&entry.key));
            found.extend(page.entries);
            if page.remaining == 0 {
                break;
            }
        }
        let found: Vec<_> = found.iter().map(|entry| (&*entry.key, (&entry.value, entry.modified))).collect();
        assert_eq!(found, self.model.at(revision).into_iter().collect::<Vec<_>>());
    }

    async fn watch(&self, back: u8, folder: u8) {
        let (after, kept) = self.model.back(back);
        let prefix = if folder == 3 { "/m/".to_owned() } else { folder_of(folder) };
        let mut watch = match self.store().watch(&prefix, after).await {
            Ok(watch) => watch,
            Err(Error::Compacted { .. }) if !kept => return,
            Err(other) => panic!("{other}"),
        };
        assert!(kept);
        self.store().progress().await.unwrap();
        let mut seen = Vec::new();
        loop {
            match watch.next().await.unwrap().unwrap() {
                Event::Changes(changes) => seen.extend(changes),
                Event::Progress(revision) => {
                    assert_eq!(revision, self.model.revision());
                    break;
                }
            }
        }
        let mut expected = Vec::new();
        for revision in after + 1..=self.model.revision() {
            let (key, value) = &self.model.happenings[revision as usize - 1];
            if key.starts_with(&prefix) {
                let before = self.model.at(revision - 1).get(key.as_str()).map(|(_, at)| *at);
                expected.push((key.clone(), value.clone(), revision, before));
            }
        }
        let seen: Vec<_> = seen
            .iter()
            .map(|change| {
                let put = matches!(change, decapod_storage::Change::Put { .. });
                let value = put.then(|| change.entry().value.clone());
                let before = change.previous().map(|entry| entry.modified);
                (change.key().to_string(), value, change.revision(), before)
            })
            .collect();
        assert_eq!(seen, expected);
    }
}

proptest! {
    // Each case writes durably some hundred times.
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_what_the_model_is(steps in prop::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            for (number, step) in steps.into_iter().enumerate() {
                world.run(number, step).await;
            }
        });
    }
}
