//! What a power cut leaves: a disk on which of the bytes that were not synced any part may be there.
//! A killed process does not show this, because the system still writes what it was given.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::disk::{Disk, OpenError, builder};
use super::{Embedded, Options};
use crate::{List, Precondition, Revision, Store};

/// More than the power lasts for.
const WRITES: usize = 1_000;

/// The sector of a disk: written whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug, Default, Clone)]
struct Platter {
    /// What is on the disk for sure.
    synced: Vec<u8>,
    /// What was written since, in order.
    written: Vec<(u64, Vec<u8>)>,
    length: u64,
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
struct Drive(Arc<Mutex<Platter>>);

impl redb::StorageBackend for Drive {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.lock().unwrap().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let platter = self.0.lock().unwrap();
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
        self.0.lock().unwrap().length = length;
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        if platter.cut_after.is_some_and(|cut| platter.syncs >= cut) {
            return Err(std::io::Error::other("the power is gone"));
        }
        platter.syncs += 1;
        for (offset, data) in std::mem::take(&mut platter.written) {
            Platter::apply(&mut platter.synced, offset, &data);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.lock().unwrap().written.push((offset, data.to_vec()));
        Ok(())
    }
}

fn open(drive: &Drive) -> Result<Embedded, OpenError> {
    let failed = |error: redb::Error| panic!("{error}");
    let database = builder().create_with_backend(drive.clone()).expect("the drive opens");
    let (disk, state) = Disk::with_database(database, failed)?;
    let mut options = Options::default();
    // So small that compaction is at work all the time.
    options.history.changes = 16;
    Embedded::start(disk, state, options)
}

/// Writes until the power goes; returns which key was acknowledged at which revision last.
async fn write_until_cut(store: &Embedded, chance: &mut StdRng) -> BTreeMap<String, Option<Revision>> {
    let mut acknowledged = BTreeMap::new();
    for _ in 0..WRITES {
        let key = format!("/registry/{}", chance.random_range(0..20));
        let value = Bytes::from(vec![b'x'; chance.random_range(0..5_000)]);
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
        let drive = Drive::default();
        let store = open(&drive).unwrap();
        let syncs = drive.0.lock().unwrap().syncs;
        drive.0.lock().unwrap().cut_after = Some(syncs + chance.random_range(1..150));
        let acknowledged = write_until_cut(&store, &mut chance).await;
        let newest = store.revision().await.unwrap();
        let image = drive.0.lock().unwrap().remains(&mut chance);
        drop(store);

        let length = image.len() as u64;
        let platter = Platter { synced: image, length, ..Platter::default() };
        let store = open(&Drive(Arc::new(Mutex::new(platter)))).unwrap();
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
