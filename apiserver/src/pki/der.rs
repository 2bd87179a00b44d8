//! The few pieces of DER that certificates are written with.
//!
//! rcgen writes names with at most one organization, and a client's groups are its organizations; so
//! certificates are put together here, from names and keys as requests hold them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

/// A value with its tag and length.
pub(super) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len();
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let significant = &bytes[(length.leading_zeros() / 8) as usize..];
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
    out.extend_from_slice(content);
    out
}

/// A sequence of values that are written already.
pub(super) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(SEQUENCE, &parts.concat())
}

/// An object identifier.
pub(super) fn oid(arcs: &[u64]) -> Vec<u8> {
    let mut content = Vec::new();
    if let [first, second, rest @ ..] = arcs {
        base128(first * 40 + second, &mut content);
        rest.iter().for_each(|&arc| base128(arc, &mut content));
    }
    tlv(OBJECT_ID, &content)
}

fn base128(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = vec![(value & 0x7f) as u8];
    value >>= 7;
    while value > 0 {
        digits.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    digits.reverse();
    out.extend(digits);
}

/// A bit string of whole bytes: a signature.
pub(super) fn bits(bytes: &[u8]) -> Vec<u8> {
    tlv(BIT_STRING, &[&[0], bytes].concat())
}

/// A bit string of named bits, the first of which is the highest of the first byte.
pub(super) fn named_bits(set: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0_u8; set.iter().max().map_or(0, |&bit| usize::from(bit) / 8 + 1)];
    for &bit in set {
        bytes[usize::from(bit) / 8] |= 0x80 >> (bit % 8);
    }
    let unused = bytes.last().map_or(0, |last| last.trailing_zeros() as u8);
    tlv(BIT_STRING, &[&[unused], bytes.as_slice()].concat())
}

/// A moment, in the form that certificates demand for its year.
pub(super) fn time(at: Timestamp) -> Vec<u8> {
    let date = at.to_zoned(TimeZone::UTC);
    if (1950..2050).contains(&date.year()) {
        tlv(UTC_TIME, date.strftime("%y%m%d%H%M%SZ").to_string().as_bytes())
    } else {
        tlv(GENERALIZED_TIME, date.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes())
    }
}

/// A distinguished name of organizations and a common name.
pub(super) fn name(common_name: &str, organizations: &[String]) -> Vec<u8> {
    const ORGANIZATION: [u64; 4] = [2, 5, 4, 10];
    const COMMON_NAME: [u64; 4] = [2, 5, 4, 3];
    let attribute =
        |kind: &[u64], text: &str| tlv(SET, &sequence(&[&oid(kind), &tlv(UTF8_STRING, text.as_bytes())]));
    let mut content: Vec<u8> = organizations.iter().flat_map(|o| attribute(&ORGANIZATION, o)).collect();
    content.extend(attribute(&COMMON_NAME, common_name));
    tlv(SEQUENCE, &content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_identifiers() {
        assert_eq!(tlv(OCTET_STRING, &[1, 2]), [4, 2, 1, 2]);
        assert_eq!(tlv(OCTET_STRING, &[0; 200])[..3], [4, 0x81, 200]);
        assert_eq!(tlv(OCTET_STRING, &[0; 300])[..4], [4, 0x82, 1, 44]);
        assert_eq!(oid(&[2, 5, 29, 15]), [6, 3, 0x55, 0x1d, 0x0f]);
        assert_eq!(oid(&[1, 2, 840, 10045, 4, 3, 2]), [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
    }

    #[test]
    fn bits_and_times() {
        assert_eq!(named_bits(&[0]), [3, 2, 7, 0x80]);
        assert_eq!(named_bits(&[0, 2]), [3, 2, 5, 0xa0]);
        assert_eq!(named_bits(&[8]), [3, 3, 7, 0, 0x80]);
        let at = |text: &str| time(text.parse().unwrap());
        assert_eq!(at("2026-11-22T08:00:01Z"), tlv(UTC_TIME, b"261122080001Z"));
        assert_eq!(at("2051-01-02T03:04:05Z"), tlv(GENERALIZED_TIME, b"20510102030405Z"));
    }
}
