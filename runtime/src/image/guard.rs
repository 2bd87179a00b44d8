//! A bound for what a tar archive says about the next entry.
//!
//! Long names and PAX records are read into memory as a whole before anybody sees them, and a kilobyte of
//! gzip can make gigabytes of them. This reader looks at the headers that pass, and ends such a stream.

use std::io::{self, Read};

use tar::{EntryType, Header};

/// Bytes of a name or of records for one entry; the kernel takes names of 4 KiB, and attributes of 64 KiB.
const MAX_EXTENSION: u64 = 1 << 20;

/// Blocks of a sparse file's map: more than two hundred thousand holes.
const MAX_MAP: usize = 10_000;

const BLOCK: usize = 512;

/// Passes a tar stream through.
pub(super) struct Guard<R> {
    inner: R,
    state: State,
    block: Vec<u8>,
    /// The size that the records say the next entry has.
    size: Option<u64>,
    /// Blocks of the map so far.
    map: usize,
}

enum State {
    /// The next block is a header.
    Header,
    /// The next block goes on with the map of a sparse file, whose data has so many bytes.
    Sparse(u64),
    /// So many bytes of data, with padding, until the next header.
    Data(u64),
    /// So many bytes of records, and padding after them.
    Records(u64, u64),
    /// The archive has ended, or what reads it will say what is wrong with it.
    Over,
}

impl<R> Guard<R> {
    pub(super) fn new(inner: R) -> Self {
        Guard { inner, state: State::Header, block: Vec::new(), size: None, map: 0 }
    }

    fn look(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let wanted = match self.state {
                State::Over => return Ok(()),
                State::Header | State::Sparse(_) => BLOCK - self.block.len(),
                State::Data(left) => usize::try_from(left).unwrap_or(usize::MAX),
                State::Records(left, _) => usize::try_from(left).unwrap_or(usize::MAX) - self.block.len(),
            };
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            bytes = later;
            match self.state {
                State::Over => {}
                State::Data(left) => self.state = data(left - now.len() as u64),
                State::Header | State::Sparse(_) | State::Records(..) => {
                    self.block.extend_from_slice(now);
                    if now.len() == wanted {
                        let block = std::mem::take(&mut self.block);
                        self.whole(&block)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A header, a part of a map, or all records are here.
    fn whole(&mut self, block: &[u8]) -> io::Result<()> {
        self.state = match self.state {
            State::Header => self.header(block)?,
            State::Sparse(size) if block[504] == 1 => {
                self.map += 1;
                if self.map > MAX_MAP {
                    let what = format!("a sparse file's map of more than {MAX_MAP} blocks");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                State::Sparse(size)
            }
            State::Sparse(size) => data(padded(size)),
            State::Records(_, padding) => {
                self.size = records_size(block);
                data(padding)
            }
            State::Data(_) | State::Over => State::Over,
        };
        Ok(())
    }

    fn header(&mut self, block: &[u8]) -> io::Result<State> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(State::Header);
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        let Ok(own) = header.entry_size() else { return Ok(State::Over) };
        let kind = header.entry_type();
        if matches!(kind, EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader) {
            if own > MAX_EXTENSION {
                let what = format!("a name or attributes of {own} bytes: more than {MAX_EXTENSION}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            return Ok(match kind {
                EntryType::XHeader if own > 0 => State::Records(own, padded(own) - own),
                _ => data(padded(own)),
            });
        }
        self.map = 0;
        let size = self.size.take().unwrap_or(own);
        let more = kind == EntryType::GNUSparse && block[482] == 1;
        Ok(if more { State::Sparse(size) } else { data(padded(size)) })
    }
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.look(&buffer[..length])?;
        Ok(length)
    }
}

fn data(left: u64) -> State {
    if left == 0 { State::Header } else { State::Data(left) }
}

fn padded(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX)
}

/// What `size=` says in PAX records.
fn records_size(records: &[u8]) -> Option<u64> {
    let lines = records.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    let mut sizes = lines.filter_map(|line| line.split_once(' ')?.1.strip_prefix("size=")?.parse().ok());
    sizes.next()
}
