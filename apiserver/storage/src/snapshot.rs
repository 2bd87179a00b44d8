//! Snapshots: everything that a store holds at one revision, in one file, from either store into either.
//!
//! A file begins with lines that a person can read (`head -6`), then come the entries, then how many there are and the
//! SHA-256 of all before. Values are as they lie in the store: what is enciphered there stays so, and whoever restores it
//! needs the same keys.
//!
//! **Invariants:** nothing is restored from a file that is not whole. After a restore the store's revision is above every
//! one that a client of the old store can have seen, as far as that can be known, and older ones are compacted: whoever
//! watched goes on with a new list.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use crate::{Entry, Error as StoreError, List, Precondition, Revision, Store};

/// What all keys of a cluster begin with.
pub const PREFIX: &str = "/registry/";
/// The first line of a file.
const MARK: &str = "decapod-snapshot 1";
/// In place of the length of a key, behind the last entry.
const END: u32 = u32::MAX;
/// No key or value is longer: the store takes values of 1.5 MiB, and what is enciphered is a little longer.
const LONGEST: u32 = 4 << 20;
/// Lines in front of the entries, and their length: far more than there are.
const LINES: usize = 16;
const LONGEST_LINE: u64 = 1_024;
/// Writes at once, so that they share the store's commits.
const AT_ONCE: usize = 64;
/// How far above the snapshot's revision a restored store begins. After the snapshot the old cluster went on: clients
/// have seen revisions that it does not know. Embedded stores begin a thousand million higher, as etcd advises: nobody
/// made so many since. In etcd each revision is a write.
pub const AHEAD_EMBEDDED: Revision = 1_000_000_000;
/// See [`AHEAD_EMBEDDED`].
pub const AHEAD_ETCD: Revision = 10_000;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The cluster: the uid of its namespace `kube-system`; empty if that was not there.
    pub cluster: String,
    /// When it was taken, as RFC 3339.
    pub taken: String,
    /// The kind of store that it was taken of.
    pub store: String,
    /// The revision at which everything was read.
    pub revision: Revision,
}

/// What is in a whole snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// What it is of.
    pub header: Header,
    /// How many entries there are.
    pub entries: u64,
    /// The bytes of their keys and values.
    pub bytes: u64,
    /// The SHA-256 of the file without its last 32 bytes, which say the same.
    pub checksum: String,
}

/// Why a snapshot is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be read or written.
    #[error("the snapshot cannot be read or written")]
    Io(#[from] io::Error),
    /// It is none, or of another version of this program.
    #[error("this is no snapshot of format 1: it begins with {0:?}")]
    Format(String),
    /// It ends too early.
    #[error("the snapshot is cut off after {entries} entries")]
    Truncated {
        /// How many entries were whole.
        entries: u64,
    },
    /// It is not as it was written.
    #[error("the snapshot is damaged: {0}")]
    Damaged(String),
    /// The store refused or failed.
    #[error("the store failed")]
    Store(#[source] StoreError),
    /// The store is not empty.
    #[error("the store holds {0} objects already")]
    NotEmpty(usize),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Reads everything, at one revision.
///
/// # Errors
/// If the store fails, or has compacted the revision before all was read.
pub async fn take(store: &dyn Store) -> Result<(Vec<Arc<Entry>>, Revision), StoreError> {
    let page = store.list(PREFIX, List::default()).await?;
    Ok((page.entries, page.revision))
}

/// Counts and sums what passes.
struct Summing<T> {
    inner: T,
    sum: Context,
}

impl<T> Summing<T> {
    fn new(inner: T) -> Self {
        Self { inner, sum: Context::new(&SHA256) }
    }
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Summing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.sum.update(&buffer[..read]);
        Ok(read)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a snapshot.
///
/// # Errors
/// If it cannot be written, or a line of the header would be two.
pub fn write(out: impl Write, header: &Header, entries: &[Arc<Entry>]) -> Result<Summary, Error> {
    let mut out = Summing::new(io::BufWriter::new(out));
    let lines = [
        ("cluster", header.cluster.as_str()),
        ("taken", &header.taken),
        ("store", &header.store),
        ("revision", &header.revision.to_string()),
    ]
    .map(|(name, value)| format!("{name} {value}"));
    if lines.iter().any(|line| line.contains('\n')) {
        return Err(Error::Damaged("a line of its head contains a line break".to_owned()));
    }
    write!(out, "{MARK}\n{}\n\n", lines.join("\n"))?;
    let mut bytes = 0;
    for entry in entries {
        let length = |part: &[u8]| {
            let length = u32::try_from(part.len()).ok().filter(|length| *length <= LONGEST);
            length.ok_or_else(|| Error::Damaged(format!("the value of {} is too long", entry.key)))
        };
        out.write_all(&length(entry.key.as_bytes())?.to_le_bytes())?;
        out.write_all(&length(&entry.value)?.to_le_bytes())?;
        out.write_all(&entry.created.to_le_bytes())?;
        out.write_all(&entry.modified.to_le_bytes())?;
        out.write_all(entry.key.as_bytes())?;
        out.write_all(&entry.value)?;
        bytes += (entry.key.len() + entry.value.len()) as u64;
    }
    let count = entries.len() as u64;
    out.write_all(&END.to_le_bytes())?;
    out.write_all(&count.to_le_bytes())?;
    let Summing { mut inner, sum } = out;
    let sum = sum.finish();
    inner.write_all(sum.as_ref())?;
    inner.flush()?;
    Ok(Summary { header: header.clone(), entries: count, bytes, checksum: hex(sum.as_ref()) })
}

/// Reads a snapshot to its end and hands out each entry, which is good only if the whole is.
///
/// # Errors
/// If it is none, cut off or damaged.
pub fn read(input: impl Read, mut each: impl FnMut(Entry)) -> Result<Summary, Error> {
    let mut input = Summing::new(BufReader::new(input));
    let header = read_header(&mut input)?;
    let (mut entries, mut bytes) = (0_u64, 0_u64);
    let mut last: Arc<str> = "".into();
    let cut = |error: io::Error, entries| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated { entries },
        _ => Error::Io(error),
    };
    loop {
        let key_length = u32::from_le_bytes(part(&mut input).map_err(|e| cut(e, entries))?);
        if key_length == END {
            break;
        }
        let value_length = u32::from_le_bytes(part(&mut input).map_err(|e| cut(e, entries))?);
        if key_length > LONGEST || value_length > LONGEST {
            return Err(Error::Damaged(format!("entry {entries} has an impossible length")));
        }
        let created = u64::from_le_bytes(part(&mut input).map_err(|e| cut(e, entries))?);
        let modified = u64::from_le_bytes(part(&mut input).map_err(|e| cut(e, entries))?);
        let mut key = vec![0; key_length as usize];
        let mut value = vec![0; value_length as usize];
        input.read_exact(&mut key).map_err(|e| cut(e, entries))?;
        input.read_exact(&mut value).map_err(|e| cut(e, entries))?;
        let key = String::from_utf8(key).ok().filter(|key| key.starts_with(PREFIX) && **key > *last);
        let key = key.ok_or_else(|| Error::Damaged(format!("the key of entry {entries} makes no sense")))?;
        if created == 0 || created > modified || modified > header.revision {
            return Err(Error::Damaged(format!("the revisions of {key} make no sense")));
        }
        last = key.into();
        bytes += (last.len() + value.len()) as u64;
        entries += 1;
        each(Entry { key: last.clone(), value: value.into(), created, modified });
    }
    let count = u64::from_le_bytes(part(&mut input).map_err(|e| cut(e, entries))?);
    let Summing { mut inner, sum } = input;
    let sum = sum.finish();
    let said: [u8; SHA256_OUTPUT_LEN] = part(&mut inner).map_err(|e| cut(e, entries))?;
    if said != sum.as_ref() {
        return Err(Error::Damaged(format!(
            "its checksum is {}, expected {}",
            hex(sum.as_ref()),
            hex(&said)
        )));
    }
    if count != entries {
        return Err(Error::Damaged(format!("it holds {entries} entries, expected {count}")));
    }
    Ok(Summary { header, entries, bytes, checksum: hex(&said) })
}

fn part<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A line without its end, byte by byte: what follows the lines is no text.
fn line(input: &mut impl Read) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let mut one = BufReader::with_capacity(1, input).take(LONGEST_LINE);
    one.read_until(b'\n', &mut bytes)?;
    match bytes.pop() {
        Some(b'\n') => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        _ => Err(Error::Format(String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned())),
    }
}

fn read_header(input: &mut impl Read) -> Result<Header, Error> {
    let mark = line(input)?;
    if mark != MARK {
        return Err(Error::Format(mark.chars().take(40).collect()));
    }
    let mut header =
        Header { cluster: String::new(), taken: String::new(), store: String::new(), revision: 0 };
    for _ in 0..LINES {
        let line = line(input)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(' ').unwrap_or((&line, ""));
        match name {
            "cluster" => value.clone_into(&mut header.cluster),
            "taken" => value.clone_into(&mut header.taken),
            "store" => value.clone_into(&mut header.store),
            "revision" => {
                let number = value.parse().map_err(|_| Error::Damaged(format!("revision {value:?}")))?;
                header.revision = number;
            }
            // Later versions may say more.
            _ => {}
        }
    }
    if header.revision == 0 {
        return Err(Error::Damaged("its head names no revision".to_owned()));
    }
    Ok(header)
}

/// Puts the entries of a whole snapshot into a store that is empty, or is made so; returns the store's revision
/// afterwards. What goes wrong half way leaves a part: it is begun again with `force`.
///
/// # Errors
/// If the store is not empty, or fails.
pub async fn restore(
    store: &dyn Store,
    entries: Vec<Entry>,
    above: Revision,
    force: bool,
) -> Result<Revision, Error> {
    let (there, _) = take(store).await?;
    if !there.is_empty() && !force {
        return Err(Error::NotEmpty(there.len()));
    }
    let gone = stream::iter(there)
        .map(|entry| async move { store.delete(&entry.key, Precondition::ModifiedAt(entry.modified)).await });
    gone.buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
    let made = stream::iter(entries).map(|entry| async move { store.create(&entry.key, entry.value).await });
    made.buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
    let missing = above.saturating_sub(store.revision().await?);
    // Each writes and deletes a key of its own, so that none has to wait for another.
    let rounds = missing.div_ceil(2 * AT_ONCE as u64);
    let raised = stream::iter(0..AT_ONCE).map(|n| async move {
        let key = format!("{PREFIX}decapod/restored/{n}");
        for _ in 0..rounds {
            let made = store.create(&key, Bytes::new()).await?;
            store.delete(&key, Precondition::ModifiedAt(made.modified)).await?;
        }
        Ok::<_, StoreError>(())
    });
    raised.buffer_unordered(AT_ONCE).try_for_each(|()| async { Ok(()) }).await?;
    let revision = store.revision().await?;
    store.compact(revision).await?;
    Ok(revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str, created: Revision, modified: Revision) -> Arc<Entry> {
        let value = Bytes::copy_from_slice(value.as_bytes());
        Arc::new(Entry { key: key.into(), value, created, modified })
    }

    fn written() -> Vec<u8> {
        let header = Header {
            cluster: "u-1".to_owned(),
            taken: "2026-11-22T18:00:00Z".to_owned(),
            store: "embedded".to_owned(),
            revision: 9,
        };
        let entries = [entry("/registry/a", "x\n\ny", 1, 4), entry("/registry/b", "", 9, 9)];
        let mut out = Vec::new();
        let summary = write(&mut out, &header, &entries).unwrap();
        assert_eq!((summary.entries, summary.bytes), (2, 26));
        out
    }

    fn refused(bytes: &[u8]) -> String {
        read(bytes, |_| {}).unwrap_err().to_string()
    }

    #[test]
    fn what_was_written_is_read() {
        let mut entries = Vec::new();
        let summary = read(&*written(), |entry| entries.push(entry)).unwrap();
        assert_eq!((summary.entries, summary.header.revision, &*summary.header.cluster), (2, 9, "u-1"));
        assert_eq!(entries[0], *entry("/registry/a", "x\n\ny", 1, 4));
    }

    #[test]
    fn no_byte_can_be_other_or_missing() {
        let whole = written();
        for at in 0..whole.len() {
            assert!(read(&whole[..at], |_| {}).is_err(), "cut at {at}");
            let mut other = whole.clone();
            other[at] ^= 1;
            assert!(read(&*other, |_| {}).is_err(), "changed at {at}");
        }
        assert!(refused(&whole[..whole.len() - 1]).contains("cut off after 2 entries"));
        assert!(refused(b"hello\n").contains("begins with \"hello\""));
        let mut damaged = whole.clone();
        let last = damaged.len() - 40;
        damaged[last - 8] ^= 1;
        let why = refused(&damaged);
        assert!(why.contains("damaged") || why.contains("cut off"), "{why}");
    }
}
