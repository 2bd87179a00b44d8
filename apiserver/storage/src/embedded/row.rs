//! One change as bytes, in the database and in the journal.

use crate::{Change, Revision};

pub(super) const PUT: u8 = 1;
pub(super) const DELETE: u8 = 2;
/// Kind, revision of creation, length of the key.
const HEAD: usize = 1 + 8 + 4;

/// What a row says.
pub(super) struct Row<'a> {
    pub(super) kind: u8,
    pub(super) created: Revision,
    pub(super) key: &'a str,
    pub(super) value: &'a [u8],
}

/// How many bytes the row of a change has.
pub(super) fn length(change: &Change) -> usize {
    HEAD + change.key().len() + value(change).len()
}

/// Hands out the row of a change, part by part.
pub(super) fn parts(change: &Change, mut each: impl FnMut(&[u8])) {
    let kind = match change {
        Change::Put { .. } => PUT,
        Change::Delete { .. } => DELETE,
    };
    let key = change.key().as_bytes();
    let key_length = u32::try_from(key.len()).expect("the store bounds its keys");
    each(&[kind]);
    each(&change.entry().created.to_le_bytes());
    each(&key_length.to_le_bytes());
    each(key);
    each(value(change));
}

fn value(change: &Change) -> &[u8] {
    match change {
        Change::Put { entry, .. } => &entry.value,
        Change::Delete { .. } => &[],
    }
}

/// Reads a row, or says what is wrong with it.
pub(super) fn read(row: &[u8]) -> Result<Row<'_>, &'static str> {
    let (head, rest) = row.split_at_checked(HEAD).ok_or("the row is cut off")?;
    let created = u64::from_le_bytes(head[1..9].try_into().expect("eight bytes"));
    let key_length = u32::from_le_bytes(head[9..13].try_into().expect("four bytes")) as usize;
    let (key, value) = rest.split_at_checked(key_length).ok_or("the key is cut off")?;
    let key = std::str::from_utf8(key).map_err(|_| "the key is not UTF-8")?;
    Ok(Row { kind: head[0], created, key, value })
}
