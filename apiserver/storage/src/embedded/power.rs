//! What a power cut leaves: a disk on which of the bytes that were not synced any part may be there.
//! A killed process does not show this, because the system still writes what it was given.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::disk::{Disk, OpenError, builder};
use super::journal::{Journal, Medium};
use super::{Embedded, Options};
use crate::{List, Precondition, Revision, Store};

/// More than the power lasts for.
const WRITES: usize = 1_000;

/// A few of them fill the journal.
const LARGEST: usize = 5_000;

/// The sector of a disk: written whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug, Default, Clone)]
struct Platter {
    /// What is on the disk for sure.
    synced: Vec<u8>,
    /// What was written since, in order.
    written: Vec<(u64, Vec<u8>)>,
    length: u64,
}

/// What both files of a store hang on.
#[derive(Debug, Default)]
struct Power {
    syncs: usize,
    /// After this many syncs nothing reaches the disk any more: the power is gone.
    cut_after: Option<usize>,
}

impl Platter {
    fn apply(image: &mut Vec<u8>, offset: u64, data: &[u8]) {
        let start = offset as usize;
        if image.len() < start + data.len() {
            image.resize(start + data.len(), 0);
        }
        image[start..start + data.len()].copy_from_slice(data);
    }

    /// What is found after the power came back: each unsynced sector is there or not, by chance.
    fn remains(&self, chance: &mut StdRng) -> Vec<u8> {
        let mut image = self.synced.clone();
        for (offset, data) in &self.written {
            for (number, sector) in data.chunks(SECTOR).enumerate() {
                if chance.random_bool(0.5) {
                    Self::apply(&mut image, offset + (number * SECTOR) as u64, sector);
                }
            }
        }
        image.resize(self.length as usize, 0);
        image
    }
}

#[derive(Debug, Clone, Default)]
struct Drive {
    platter: Arc<Mutex<Platter>>,
    power: Arc<Mutex<Power>>,
}

impl Drive {
    fn with(image: Vec<u8>) -> Self {
        let length = image.len() as u64;
        let platter = Platter { synced: image, length, ..Platter::default() };
        Self { platter: Arc::new(Mutex::new(platter)), power: Arc::default() }
    }

    /// Another one on the same power.
    fn beside(&self) -> Self {
        Self { platter: Arc::default(), power: Arc::clone(&self.power) }
    }

    fn remains(&self, chance: &mut StdRng) -> Vec<u8> {
        self.platter.lock().unwrap().remains(chance)
    }
}

impl Medium for Drive {
    fn length(&self) -> std::io::Result<u64> {
        redb::StorageBackend::len(self)
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        redb::StorageBackend::read(self, at, buffer)
    }

    fn put(&mut self, at: u64, blocks: &[u8]) -> std::io::Result<()> {
        {
            let mut platter = self.platter.lock().unwrap();
            platter.length = platter.length.max(at + blocks.len() as u64);
            platter.written.push((at, blocks.to_vec()));
        }
        redb::StorageBackend::sync_data(self)
    }
}

impl redb::StorageBackend for Drive {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.platter.lock().unwrap().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let platter = self.platter.lock().unwrap();
        let (from, to) = (offset, offset + out.len() as u64);
        out.fill(0);
        let overlay = |out: &mut [u8], start: u64, data: &[u8]| {
            let (low, high) = (from.max(start), to.min(start + data.len() as u64));
            if low < high {
                let source = &data[(low - start) as usize..(high - start) as usize];
                out[(low - from) as usize..(high - from) as usize].copy_from_slice(source);
            }
        };
        overlay(out, 0, &platter.synced);
        for (start, data) in &platter.written {
            overlay(out, *start, data);
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> std::io::Result<()> {
        self.platter.lock().unwrap().length = length;
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        let mut power = self.power.lock().unwrap();
        if power.cut_after.is_some_and(|cut| power.syncs >= cut) {
            return Err(std::io::Error::other("the power is gone"));
        }
        power.syncs += 1;
        let mut platter = self.platter.lock().unwrap();
        for (offset, data) in std::mem::take(&mut platter.written) {
            Platter::apply(&mut platter.synced, offset, &data);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.platter.lock().unwrap().written.push((offset, data.to_vec()));
        Ok(())
    }
}

/// So small that it is carried over all the time.
const JOURNAL: u64 = 24 << 10;

fn open(database: &Drive, journal: &Drive) -> Result<Embedded, OpenError> {
    let failed = |error: redb::Error| panic!("{error}");
    let database = builder().create_with_backend(database.clone()).expect("the drive opens");
    let journal = Journal::open(Box::new(journal.clone()), JOURNAL).expect("the journal opens");
    let (disk, state) = Disk::with(database, journal, failed)?;
    let mut options = Options::default();
    // So small that compaction is at work all the time.
    options.history.changes = 16;
    Embedded::start(disk, state, options, std::path::Path::new("the drive"))
}

/// Writes until the power goes; returns which key was acknowledged at which revision last.
async fn write_until_cut(store: &Embedded, chance: &mut StdRng) -> BTreeMap<String, Option<Revision>> {
    let mut acknowledged = BTreeMap::new();
    for _ in 0..WRITES {
        let key = format!("/registry/{}", chance.random_range(0..20));
        let value = Bytes::from(vec![b'x'; chance.random_range(0..LARGEST)]);
        let known = acknowledged.get(&key).copied().flatten();
        let result = match known {
            None => store.create(&key, value).await.map(|entry| Some(entry.modified)),
            Some(at) if chance.random_bool(0.3) => {
                store.delete(&key, Precondition::ModifiedAt(at)).await.map(|_| None)
            }
            Some(at) => {
                let when = Precondition::ModifiedAt(at);
                store.update(&key, value, when).await.map(|entry| Some(entry.modified))
            }
        };
        match result {
            Ok(revision) => acknowledged.insert(key, revision),
            // Whether the last write is there is open, so the key proves nothing.
            Err(_) => {
                acknowledged.remove(&key);
                return acknowledged;
            }
        };
    }
    panic!("the power did not go: the store does not sync");
}

#[tokio::test]
async fn a_power_cut_loses_nothing_acknowledged() {
    for seed in 0..60 {
        let mut chance = StdRng::seed_from_u64(seed);
        let database = Drive::default();
        let journal = database.beside();
        let store = open(&database, &journal).unwrap();
        {
            let mut power = database.power.lock().unwrap();
            power.cut_after = Some(power.syncs + chance.random_range(1..150));
        }
        let acknowledged = write_until_cut(&store, &mut chance).await;
        let newest = store.revision().await.unwrap();
        let images = [database.remains(&mut chance), journal.remains(&mut chance)];
        drop(store);

        let [database, journal] = images.map(Drive::with);
        let store = open(&database, &journal).unwrap();
        assert!(store.revision().await.unwrap() >= newest, "seed {seed}");
        let there: BTreeMap<String, Revision> = store
            .list("/", List::default())
            .await
            .unwrap()
            .entries
            .iter()
            .map(|entry| (entry.key.to_string(), entry.modified))
            .collect();
        for (key, revision) in acknowledged {
            assert_eq!(there.get(&key).copied(), revision, "seed {seed}: {key}");
        }
    }
}
