//! What was committed and is not in the database yet: a file of fixed size, written from its beginning to its
//! end and then from its beginning again.
//!
//! A commit of the database writes a handful of pages that lie apart, and its own bookkeeping; a record here is
//! one write beside the last one, and its sync has no more to do than the disk. The file is full of zeros when it
//! is made, so that a sync never has to note that it grew.
//!
//! **Invariants:** a record is whole or it is not there: its sum says so. Records follow each other without a gap in
//! their revisions, and the first that does not ends them. What an earlier round, an earlier opening or a value that
//! looks like a record left behind the last one is none: each opening draws a new salt, which enters every sum.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rand::Rng;

use super::row;
use crate::{Change, Revision};

/// How much a journal holds: some two thousand changes, which together cost the database little more than one. More
/// would take longer to read at a start, and hold up a write for longer when they are carried over.
pub(super) const CAPACITY: u64 = 4 << 20;
/// What is written at a time, whole and from a multiple of it: what disks and file systems want of who passes by the
/// cache.
const BLOCK: usize = 4_096;
/// In front of the records: the mark and the salt, in a block of their own.
const FIRST_RECORD: u64 = BLOCK as u64;
const MARK: [u8; 8] = *b"dcpjrnl1";
const SALT: usize = 16;
/// Sum, length of what follows the head, the first revision.
const HEAD: usize = 4 + 4 + 8;
/// In front of each row: its length.
const ROW_HEAD: usize = 4;
/// A buffer that one batch of large values needed is not kept for small ones.
const KEPT_BUFFER: usize = 256 << 10;

/// What a journal lies on.
pub(super) trait Medium: Send + std::fmt::Debug {
    fn length(&self) -> io::Result<u64>;
    /// Fills the buffer from there.
    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes whole [blocks](BLOCK) from an address that is a multiple of their size: once it returns they are there
    /// whatever happens next.
    fn put(&mut self, at: u64, blocks: &[u8]) -> io::Result<()>;
}

impl Medium for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, at)
    }

    fn put(&mut self, at: u64, blocks: &[u8]) -> io::Result<()> {
        self.write_all_at(blocks, at)?;
        self.sync_data()
    }
}

/// A file that is written past the system's cache where the file system can: a third of the CPU time of a write goes
/// into keeping pages that nobody reads.
#[derive(Debug)]
pub(super) struct Direct {
    cached: File,
    direct: Option<File>,
}

impl Direct {
    /// Opens the file, which its owner alone may read.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let cached = super::disk::private_file(path)?;
        let flags = libc::O_DIRECT | libc::O_DSYNC;
        // Whoever refuses it (a file system in memory) is written the other way.
        let direct = File::options().write(true).custom_flags(flags).open(path).ok();
        Ok(Self { cached, direct })
    }
}

impl Medium for Direct {
    fn length(&self) -> io::Result<u64> {
        self.cached.length()
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.cached.read(at, buffer)
    }

    fn put(&mut self, at: u64, blocks: &[u8]) -> io::Result<()> {
        match &self.direct {
            None => self.cached.put(at, blocks),
            Some(direct) => match direct.write_all_at(blocks, at) {
                // Some find out only now that they cannot, or want larger blocks.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.direct = None;
                    self.cached.put(at, blocks)
                }
                result => result,
            },
        }
    }
}

/// Memory that begins where a block may.
#[derive(Debug, Default)]
struct Blocks {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Blocks {
    /// Makes it so long, with what fits of what it held in front, and zeros behind.
    fn resize(&mut self, length: usize) {
        let kept = self.length.min(length);
        if self.bytes.len() < length + BLOCK {
            let mut bytes = vec![0; length + BLOCK];
            let start = bytes.as_ptr().align_offset(BLOCK);
            bytes[start..start + kept].copy_from_slice(&self[..kept]);
            (self.bytes, self.start) = (bytes, start);
        }
        self.bytes[self.start + kept..self.start + length].fill(0);
        self.length = length;
    }

    /// Keeps only what is from there on.
    fn drop_front(&mut self, front: usize) {
        let (start, length) = (self.start, self.length);
        self.bytes.copy_within(start + front..start + length, start);
        self.length -= front;
        if self.bytes.len() > KEPT_BUFFER {
            let mut small = Self::default();
            small.resize(self.length);
            small.copy_from_slice(self);
            *self = small;
        }
    }
}

impl Deref for Blocks {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

impl DerefMut for Blocks {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

#[derive(Debug)]
pub(super) struct Journal {
    medium: Box<dyn Medium>,
    capacity: u64,
    salt: [u8; SALT],
    /// The first block that is not full.
    block: u64,
    /// What it holds: the next record goes behind it.
    tail: Blocks,
}

impl Journal {
    /// Opens what is there; a new medium is filled. What it holds must be read, and then the journal
    /// [started](Self::start).
    pub(super) fn open(mut medium: Box<dyn Medium>, capacity: u64) -> io::Result<Self> {
        let mut salt = [0; SALT];
        let found = medium.length()?;
        if found >= FIRST_RECORD {
            let mut head = [0; MARK.len() + SALT];
            medium.read(0, &mut head)?;
            if head[..MARK.len()] == MARK {
                salt.copy_from_slice(&head[MARK.len()..]);
            }
        }
        if found < capacity {
            // Only one that was not filled to its end has a part of a block.
            let filled = found - found % BLOCK as u64;
            let mut zeros = Blocks::default();
            zeros.resize(usize::try_from(capacity - filled).expect("a journal fits into memory"));
            medium.put(filled, &zeros)?;
        }
        Ok(Self { medium, capacity: capacity.max(found), salt, block: FIRST_RECORD, tail: Blocks::default() })
    }

    /// Hands the rows of all records to `each`, with their revisions. Where `each` fails the rest is not read.
    pub(super) fn read<E: From<io::Error>>(
        &self,
        mut each: impl FnMut(Revision, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // Bounded, and read once in the life of a process: no reason to read it in parts.
        let mut bytes = vec![0; usize::try_from(self.capacity - FIRST_RECORD).expect("bounded at opening")];
        self.medium.read(FIRST_RECORD, &mut bytes)?;
        let mut rest: &[u8] = &bytes;
        let mut next = None;
        while let Some((first, mut rows, behind)) = self.record(rest) {
            if next.is_some_and(|next| next != first) {
                break;
            }
            let mut revision = first;
            while let Some((row, more)) = row_split(rows) {
                each(revision, row)?;
                revision += 1;
                rows = more;
            }
            next = Some(revision);
            rest = behind;
        }
        Ok(())
    }

    /// The record at the beginning of these bytes: its first revision, its rows, and what is behind it.
    fn record<'a>(&self, bytes: &'a [u8]) -> Option<(Revision, &'a [u8], &'a [u8])> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let (rows, behind) = rest.split_at_checked(word(4) as usize)?;
        let whole = !rows.is_empty() && word(0) == self.sum(&head[4..], rows);
        let first = u64::from_le_bytes(head[8..].try_into().expect("eight bytes"));
        whole.then_some((first, rows, behind))
    }

    fn sum(&self, head: &[u8], rows: &[u8]) -> u32 {
        let mut sum = crc32fast::Hasher::new();
        sum.update(&self.salt);
        sum.update(head);
        sum.update(rows);
        sum.finalize()
    }

    /// Begins anew with nothing in it: what it held is in the database.
    pub(super) fn start(&mut self) -> io::Result<()> {
        rand::rng().fill(&mut self.salt);
        let mut head = Blocks::default();
        head.resize(BLOCK);
        head[..MARK.len()].copy_from_slice(&MARK);
        head[MARK.len()..MARK.len() + SALT].copy_from_slice(&self.salt);
        self.medium.put(0, &head)?;
        self.rewind();
        Ok(())
    }

    /// Begins from the front again: what it held is in the database.
    pub(super) fn rewind(&mut self) {
        self.block = FIRST_RECORD;
        self.tail.resize(0);
    }

    /// Adds changes in one durable record; says no where they do not fit any more, and does nothing then.
    pub(super) fn append(&mut self, changes: &[Change]) -> io::Result<bool> {
        let Some(first) = changes.first() else { return Ok(true) };
        let rows: usize = changes.iter().map(|change| ROW_HEAD + row::length(change)).sum();
        let (start, record) = (self.tail.len(), HEAD + rows);
        let whole = (start + record).next_multiple_of(BLOCK);
        let fits = self.block + whole as u64 <= self.capacity;
        let (Ok(length), true) = (u32::try_from(rows), fits) else { return Ok(false) };
        self.tail.resize(whole);
        let mut at = start + 4;
        let tail = &mut self.tail;
        let mut put = |part: &[u8]| {
            tail[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        put(&length.to_le_bytes());
        put(&first.revision().to_le_bytes());
        for change in changes {
            let length = u32::try_from(row::length(change)).expect("shorter than the record");
            put(&length.to_le_bytes());
            row::parts(change, &mut put);
        }
        let (head, rows) = self.tail[start..start + record].split_at(HEAD);
        let sum = self.sum(&head[4..], rows);
        self.tail[start..start + 4].copy_from_slice(&sum.to_le_bytes());
        self.medium.put(self.block, &self.tail)?;
        self.tail.resize(start + record);
        let full = (start + record) / BLOCK * BLOCK;
        self.tail.drop_front(full);
        self.block += full as u64;
        Ok(true)
    }
}

/// The first row of a record, and the others.
fn row_split(rows: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = rows.split_first_chunk::<ROW_HEAD>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::Entry;

    const SMALL: u64 = 16 << 10;

    fn put(revision: Revision, value: Vec<u8>) -> Change {
        let entry = Entry { key: "/a".into(), value: value.into(), created: revision, modified: revision };
        Change::Put { entry: Arc::new(entry), previous: None }
    }

    fn journal(file: &File) -> Journal {
        Journal::open(Box::new(file.try_clone().unwrap()), SMALL).unwrap()
    }

    fn started(file: &File) -> Journal {
        let mut journal = journal(file);
        journal.start().unwrap();
        journal
    }

    fn found(journal: &Journal) -> Vec<(Revision, Bytes)> {
        let mut found = Vec::new();
        let each = |revision, row: &[u8]| {
            found.push((revision, Bytes::copy_from_slice(row::read(row).unwrap().value)));
            Ok::<_, io::Error>(())
        };
        journal.read(each).unwrap();
        found
    }

    #[test]
    fn records_are_found_again_and_end_where_one_is_broken() {
        let file = tempfile::tempfile().unwrap();
        let mut first = started(&file);
        assert!(first.append(&[put(5, vec![1]), put(6, vec![2, 2])]).unwrap());
        assert!(first.append(&[put(7, vec![3])]).unwrap());
        let second = first.block + first.tail.len() as u64;
        assert!(first.append(&[put(8, vec![4])]).unwrap());
        let revisions = |journal: &Journal| found(journal).iter().map(|row| row.0).collect::<Vec<_>>();
        assert_eq!(found(&journal(&file))[1], (6, Bytes::from_static(&[2, 2])));
        assert_eq!(revisions(&journal(&file)), [5, 6, 7, 8]);
        file.write_all_at(&[9], second + HEAD as u64 + 2).unwrap();
        assert_eq!(revisions(&journal(&file)), [5, 6, 7]);
    }

    #[test]
    fn what_an_earlier_round_or_opening_left_is_not_taken_up() {
        let file = tempfile::tempfile().unwrap();
        let mut journal = started(&file);
        for revision in 1..=4 {
            assert!(journal.append(&[put(revision, vec![0; 100])]).unwrap());
        }
        journal.rewind();
        // As long as before, so that the next record begins where an older one does.
        assert!(journal.append(&[put(5, vec![0; 100])]).unwrap());
        assert_eq!(found(&self::journal(&file)).len(), 1);
        assert_eq!(found(&started(&file)).len(), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_leaves_no_trace() {
        let file = tempfile::tempfile().unwrap();
        let mut journal = started(&file);
        assert!(journal.append(&[put(1, vec![0; 5_000])]).unwrap());
        assert!(!journal.append(&[put(2, vec![0; 9_000])]).unwrap());
        assert_eq!(found(&self::journal(&file)).len(), 1);
        assert!(journal.append(&[put(2, vec![0; 5_000])]).unwrap());
        assert_eq!(found(&self::journal(&file)).len(), 2);
    }

    #[test]
    fn records_lie_side_by_side_whatever_their_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let open = || Journal::open(Box::new(Direct::open(&path).unwrap()), 1 << 20).unwrap();
        let mut journal = open();
        journal.start().unwrap();
        let length = |revision: u64| (revision as usize * 977) % 9_000;
        for revision in 1..=60 {
            assert!(journal.append(&[put(revision, vec![revision as u8; length(revision)])]).unwrap());
            assert!(journal.tail.len() < BLOCK);
        }
        let found = found(&open());
        assert_eq!(found.len(), 60);
        for (revision, value) in found {
            assert_eq!(value, vec![revision as u8; length(revision)]);
        }
    }
}
