//! Netlink's wire format: messages of attributes that nest. One encoder and one reader serve rtnetlink,
//! nf_tables and conntrack.
//!
//! We encode ourselves, where three crates would be needed otherwise: nothing but this format is shared
//! by the three families, and a synchronous socket needs no connection task per network namespace.
//!
//! What always holds: every message and attribute is padded to four bytes, and its length is patched in
//! when it is complete, so that a message is never sent half-written.

use std::net::Ipv4Addr;

/// The length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
const ALIGNMENT: usize = 4;
/// `NLA_F_NESTED`: the attribute holds attributes.
const NESTED: u16 = 1 << 15;
/// Both flag bits of an attribute's type.
const TYPE_MASK: u16 = 0x3fff;

/// A buffer of whole messages, sent with one system call.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// Appends a message with what `fill` writes after its header.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, sequence: u32, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        // The kernel fills in the port.
        self.bytes.extend_from_slice(&[0; 4]);
        fill(self);
        let length = u32::try_from(self.bytes.len() - start).expect("a message is far smaller than 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    /// Appends the family's own header, such as `struct nfgenmsg`.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// Appends an attribute.
    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) {
        self.open(kind, |encoder| encoder.bytes.extend_from_slice(value));
    }

    /// Appends a byte.
    pub(crate) fn attr_u8(&mut self, kind: u16, value: u8) {
        self.attr(kind, &[value]);
    }

    /// Appends a number in network order, as netfilter has it.
    pub(crate) fn attr_be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Appends a number in network order, as netfilter has it.
    pub(crate) fn attr_be64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Appends a number in the machine's order, as rtnetlink has it.
    pub(crate) fn attr_u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Appends an address.
    pub(crate) fn attr_ip(&mut self, kind: u16, value: Ipv4Addr) {
        self.attr(kind, &value.octets());
    }

    /// Appends a string with its terminator.
    pub(crate) fn attr_str(&mut self, kind: u16, value: &str) {
        self.open(kind, |encoder| {
            encoder.bytes.extend_from_slice(value.as_bytes());
            encoder.bytes.push(0);
        });
    }

    /// Appends an attribute that holds the attributes that `fill` writes.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.open(kind | NESTED, fill);
    }

    /// Sets flags of the message that begins at `start`.
    pub(crate) fn message_flag(&mut self, start: usize, flags: u16) {
        let low = self.bytes[start + 6] | flags.to_ne_bytes()[0];
        let high = self.bytes[start + 7] | flags.to_ne_bytes()[1];
        self.bytes[start + 6] = low;
        self.bytes[start + 7] = high;
    }

    /// The messages.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn open(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("callers split lists below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

/// A message that the kernel sent, or one of ours read back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    /// `nlmsg_type`.
    pub(crate) kind: u16,
    /// `nlmsg_seq`.
    pub(crate) sequence: u32,
    /// What follows the header.
    pub(crate) payload: &'a [u8],
}

/// The messages in `bytes`; ends at the first that is cut off.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let payload = bytes.get(HEADER..length)?;
        let message = Message { kind: u16_at(bytes, 4)?, sequence: u32_at(bytes, 8)?, payload };
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes`, as type and value; ends at the first that is cut off.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let attribute = (u16_at(bytes, 2)? & TYPE_MASK, bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The value of the first attribute of the type `kind`.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A string without its terminator.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

/// A number in the machine's order at `offset`.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut encoder = Encoder::default();
        encoder.message(7, 5, 42, |m| {
            m.raw(&[1, 2, 3, 4]);
            m.attr_str(1, "lo");
            m.nest(2, |n| n.attr_be32(3, 9));
        });
        encoder.message(8, 0, 43, |m| m.attr_u8(1, 1));
        let read: Vec<_> = messages(encoder.bytes()).collect();
        assert_eq!((read.len(), read[0].kind, read[0].sequence), (2, 7, 42));
        let attrs = &read[0].payload[4..];
        assert_eq!(attribute(attrs, 1).and_then(text), Some("lo"));
        assert_eq!(attribute(attribute(attrs, 2).unwrap(), 3), Some([0, 0, 0, 9].as_slice()));
        assert_eq!(attribute(read[1].payload, 1), Some([1].as_slice()));
    }

    #[test]
    fn a_message_that_is_cut_off_is_not_read() {
        let mut encoder = Encoder::default();
        encoder.message(7, 5, 42, |m| m.attr_str(1, "a longer text"));
        for end in 0..encoder.bytes().len() - 4 {
            assert_eq!(messages(&encoder.bytes()[..end]).count(), 0, "cut at {end}");
        }
    }
}
