//! nf_tables transactions on one table of the family `ip`.
//!
//! What always holds: a [`Transaction`] is applied as a whole or not at all, and packets see the rules
//! from before it or from after it. Anything that the kernel refuses (a chain that is in use, an element
//! that is missing) fails the whole, so that a rule set that differs from what we believe is noticed.

use super::Error;
use super::expression::{Rule, verdict_write};
use super::socket::{ACK, APPEND, CREATE, Family, REQUEST, Socket};
use super::wire::Encoder;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
/// The type of a map's values that are verdicts.
const DATA_VERDICT: u32 = 0xffff_ff00;
const DATA_VALUE: u16 = 1;
const LIST_ELEMENT: u16 = 1;

/// Bits per part of a compound type, as the `nft` program reads it.
const TYPE_BITS: u32 = 6;
/// A number in the machine's order: `nft` lists compound keys only of types whose length it knows.
const TYPE_MARK: u32 = 19;
const TYPE_ADDRESS: u32 = 7;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;

/// The most elements of a set that rules fill: each is about 100 bytes of kernel memory.
const DYNAMIC_SIZE: u32 = 1 << 16;
/// An element is at most 300 bytes (a key, and the name of a chain): this many fit an attribute.
const ELEMENTS_PER_MESSAGE: usize = 150;

/// Where a base chain hangs, and when it runs among others there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    /// `nat` chains see the first packet of a connection, `filter` chains every packet.
    pub(crate) kind: &'static str,
    /// The point of the packet's way.
    pub(crate) point: Point,
    /// Lower runs earlier.
    pub(crate) priority: i32,
}

/// The points of a packet's way through the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// Came in, not routed yet.
    Prerouting = 0,
    /// Came in and goes on to somebody else.
    Forward = 2,
    /// Made here.
    Output = 3,
    /// Leaves.
    Postrouting = 4,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict<'a> {
    /// It is lost.
    Drop,
    /// The base chain lets it pass.
    Accept,
    /// The chain that came here goes on.
    Return,
    /// The chain decides.
    Goto(&'a str),
    /// The chain decides, and what comes after goes on if it returns.
    Jump(&'a str),
}

/// What keys or values of a set are made of; each part takes whole 32-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// A chain's id and a number, in the machine's order.
    Slot,
    /// An IPv4 address.
    Address,
    /// Source and destination.
    AddressPair,
    /// Address and port.
    Target,
    /// Address, protocol and port.
    ServiceIp,
    /// Protocol and port.
    ServicePort,
    /// A set's id in two words, and an address.
    Member,
    /// The same with protocol and port.
    MemberPort,
}

impl Type {
    /// The type's number, and its length in bytes.
    fn describe(self) -> (u32, u32) {
        let parts: &[u32] = match self {
            Self::Slot => &[TYPE_MARK, TYPE_MARK, TYPE_MARK],
            Self::Address => &[TYPE_ADDRESS],
            Self::AddressPair => &[TYPE_ADDRESS, TYPE_ADDRESS],
            Self::Target => &[TYPE_ADDRESS, TYPE_PORT],
            Self::ServiceIp => &[TYPE_ADDRESS, TYPE_PROTOCOL, TYPE_PORT],
            Self::ServicePort => &[TYPE_PROTOCOL, TYPE_PORT],
            Self::Member => &[TYPE_MARK, TYPE_MARK, TYPE_ADDRESS],
            Self::MemberPort => &[TYPE_MARK, TYPE_MARK, TYPE_ADDRESS, TYPE_PROTOCOL, TYPE_PORT],
        };
        parts.iter().fold((0, 0), |(number, length), part| (number << TYPE_BITS | part, length + 4))
    }
}

/// What a set maps its keys to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// Nothing: it only has members.
    None,
    /// Verdicts.
    Verdicts,
    /// Values of a type.
    Of(Type),
}

/// A named set or map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set<'a> {
    /// Its name in the table.
    pub(crate) name: &'a str,
    /// Its keys.
    pub(crate) keys: Type,
    /// Its values.
    pub(crate) values: Values,
    /// Rules fill it, and elements that were not used for so many seconds go.
    pub(crate) timeout_seconds: Option<u32>,
}

/// A member of a set.
#[derive(Clone, Debug)]
pub(crate) struct Element<'a> {
    /// Its key: each part padded to four bytes.
    pub(crate) key: Vec<u8>,
    /// Its value.
    pub(crate) value: Value<'a>,
}

/// The value of an element.
#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    /// None: only a member.
    None,
    /// A verdict.
    Verdict(Verdict<'a>),
    /// Bytes of the map's type.
    Bytes(Vec<u8>),
}

/// Changes of one table, applied as one.
#[derive(Debug)]
pub(crate) struct Transaction<'t> {
    encoder: Encoder,
    table: &'t str,
    sequence: u32,
    sets: u32,
    last: usize,
}

impl<'t> Transaction<'t> {
    /// A transaction on the table of that name.
    pub(crate) fn new(table: &'t str) -> Self {
        let mut encoder = Encoder::default();
        batch_mark(&mut encoder, BATCH_BEGIN, 0);
        Self { encoder, table, sequence: 0, sets: 0, last: 0 }
    }

    /// Makes the table, empty, whatever there was.
    pub(crate) fn table_replace(&mut self) {
        self.table_ensure();
        self.message(DELETE_TABLE, 0, |_| {});
        self.table_ensure();
    }

    /// Deletes the table with all that is in it, if it exists.
    pub(crate) fn table_delete(&mut self) {
        self.table_ensure();
        self.message(DELETE_TABLE, 0, |_| {});
    }

    fn table_ensure(&mut self) {
        self.message(NEW_TABLE, CREATE, |_| {});
    }

    /// Makes a chain to be gone to.
    pub(crate) fn chain_create(&mut self, name: &str) {
        self.message(NEW_CHAIN, CREATE, |m| m.attr_str(3, name));
    }

    /// Makes a chain that packets enter at `hook`.
    pub(crate) fn chain_base(&mut self, name: &str, hook: Hook) {
        self.message(NEW_CHAIN, CREATE, |m| {
            m.attr_str(3, name);
            m.nest(4, |h| {
                h.attr_be32(1, hook.point as u32);
                h.attr_be32(2, hook.priority.cast_unsigned());
            });
            m.attr_be32(5, libc::NF_ACCEPT.cast_unsigned());
            m.attr_str(7, hook.kind);
        });
    }

    /// Deletes the rules of a chain.
    pub(crate) fn chain_flush(&mut self, name: &str) {
        self.message(DELETE_RULE, 0, |m| m.attr_str(2, name));
    }

    /// Deletes a chain that nothing goes to.
    pub(crate) fn chain_delete(&mut self, name: &str) {
        self.message(DELETE_CHAIN, 0, |m| m.attr_str(3, name));
    }

    /// Makes a set or map.
    pub(crate) fn set_create(&mut self, set: Set<'_>) {
        self.sets += 1;
        let id = self.sets;
        let dynamic = if set.timeout_seconds.is_some() { SET_TIMEOUT | SET_EVAL } else { 0 };
        self.message(NEW_SET, CREATE, |m| {
            set_write(m, set.name, id, dynamic, set.keys, set.values);
            if let Some(seconds) = set.timeout_seconds {
                m.attr_be64(11, u64::from(seconds) * 1000);
                m.nest(9, |description| description.attr_be32(1, DYNAMIC_SIZE));
            }
        });
    }

    /// Deletes a set that no rule uses.
    pub(crate) fn set_delete(&mut self, name: &str) {
        self.message(DELETE_SET, 0, |m| m.attr_str(2, name));
    }

    /// Adds elements to a set.
    pub(crate) fn elements_add(&mut self, set: &str, elements: &[Element<'_>]) {
        self.elements(NEW_ELEMENT, CREATE, set, elements);
    }

    /// Deletes elements of a set; each must be there.
    pub(crate) fn elements_delete(&mut self, set: &str, elements: &[Element<'_>]) {
        self.elements(DELETE_ELEMENT, 0, set, elements);
    }

    /// Appends a rule to a chain.
    pub(crate) fn rule(&mut self, chain: &str, fill: impl FnOnce(&mut Rule<'_>)) {
        self.message(NEW_RULE, CREATE | APPEND, |m| {
            m.attr_str(2, chain);
            m.nest(4, |list| fill(&mut Rule(list)));
        });
    }

    /// Applies all changes, or none. Returns how many messages it took.
    ///
    /// # Errors
    /// The kernel refused one of them, or could not be spoken to.
    pub(crate) fn commit(mut self, socket: &mut Socket) -> Result<u32, Error> {
        if self.sequence == 0 {
            return Ok(0);
        }
        // Only the last change is acknowledged: errors are reported in any case.
        self.encoder.message_flag(self.last, ACK);
        batch_mark(&mut self.encoder, BATCH_END, self.sequence + 1);
        socket.batch(&self.encoder, self.sequence)?;
        Ok(self.sequence)
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &str, elements: &[Element<'_>]) {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.message(kind, flags, |m| {
                m.attr_str(2, set);
                m.nest(3, |list| chunk.iter().for_each(|element| element_write(list, element)));
            });
        }
    }

    /// A message about this table; every kind of object has the table's name as its first attribute.
    fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Encoder)) {
        self.sequence += 1;
        self.last = self.encoder.bytes().len();
        let table = self.table;
        self.encoder.message(SUBSYSTEM << 8 | kind, REQUEST | flags, self.sequence, |m| {
            m.raw(&[libc::AF_INET as u8, 0, 0, 0]);
            m.attr_str(1, table);
            fill(m);
        });
    }
}

fn batch_mark(encoder: &mut Encoder, kind: u16, sequence: u32) {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    encoder.message(kind, REQUEST, sequence, |m| m.raw(&[libc::AF_UNSPEC as u8, 0, high, low]));
}

fn set_write(m: &mut Encoder, name: &str, id: u32, flags: u32, keys: Type, values: Values) {
    let (key_type, key_length) = keys.describe();
    let map = if values == Values::None { 0 } else { SET_MAP };
    m.attr_str(2, name);
    m.attr_be32(3, flags | map);
    m.attr_be32(4, key_type);
    m.attr_be32(5, key_length);
    match values {
        Values::None => {}
        Values::Verdicts => {
            m.attr_be32(6, DATA_VERDICT);
            m.attr_be32(7, 0);
        }
        Values::Of(data) => {
            let (data_type, data_length) = data.describe();
            m.attr_be32(6, data_type);
            m.attr_be32(7, data_length);
        }
    }
    m.attr_be32(10, id);
}

fn element_write(list: &mut Encoder, element: &Element<'_>) {
    list.nest(LIST_ELEMENT, |e| {
        e.nest(1, |key| key.attr(DATA_VALUE, &element.key));
        match &element.value {
            Value::None => {}
            Value::Verdict(verdict) => e.nest(2, |data| verdict_write(data, *verdict)),
            Value::Bytes(bytes) => e.nest(2, |data| data.attr(DATA_VALUE, bytes)),
        }
    });
}

/// A socket for transactions in the namespace of the calling thread.
pub(crate) fn open() -> Result<Socket, Error> {
    Socket::open(Family::Netfilter)
}
