//! Frames as they are sent.

use bytes::{BufMut, Bytes, BytesMut};

use super::headers::Deflater;
use super::{Frame, StreamId};

/// The head of a frame: stream or type, flags, length.
pub(super) const HEAD: usize = 8;
/// SPDY/3.1 says 3 in its frames.
pub(super) const VERSION: u16 = 3;
/// Set in the first bit of frames that are not data.
pub(super) const CONTROL: u32 = 1 << 31;
/// The flag of a frame that is the last of its direction.
pub(super) const FIN: u8 = 1;

pub(super) const SYN_STREAM: u16 = 1;
pub(super) const SYN_REPLY: u16 = 2;
pub(super) const RST_STREAM: u16 = 3;
pub(super) const PING: u16 = 6;
pub(super) const GOAWAY: u16 = 7;
pub(super) const HEADERS: u16 = 8;

const REFUSED_STREAM: u32 = 3;
/// The largest length that a frame can say.
const LENGTH_MAX: usize = (1 << 24) - 1;

fn frame(first: u32, flags: u8, payload: &[u8]) -> Frame {
    debug_assert!(payload.len() <= LENGTH_MAX, "frames are made of chunks of a few KiB");
    let mut bytes = BytesMut::with_capacity(HEAD + payload.len());
    bytes.put_u32(first);
    bytes.put_u8(flags);
    bytes.put_uint(payload.len() as u64, 3);
    bytes.put_slice(payload);
    bytes.freeze()
}

fn control(kind: u16, payload: &[u8]) -> Frame {
    frame(CONTROL | u32::from(VERSION) << 16 | u32::from(kind), 0, payload)
}

/// Bytes of a stream; with `fin` the last ones.
pub(crate) fn data(stream: StreamId, fin: bool, bytes: &[u8]) -> Frame {
    frame(stream, if fin { FIN } else { 0 }, bytes)
}

/// A new stream.
pub(crate) fn open(stream: StreamId, headers: &[(&str, &str)], deflater: &mut Deflater) -> Frame {
    // The number; that of an associated stream, priority and slot: none.
    let mut payload = stream.to_be_bytes().to_vec();
    payload.extend([0; 6]);
    payload.extend(deflater.block(headers));
    control(SYN_STREAM, &payload)
}

/// That a stream is accepted.
pub(super) fn reply(stream: StreamId, deflater: &mut Deflater) -> Frame {
    let mut payload = stream.to_be_bytes().to_vec();
    payload.extend(deflater.empty());
    control(SYN_REPLY, &payload)
}

/// That a stream is not wanted.
pub(crate) fn refuse(stream: StreamId) -> Frame {
    control(RST_STREAM, &[stream.to_be_bytes(), REFUSED_STREAM.to_be_bytes()].concat())
}

/// The answer to a ping.
pub(super) fn pong(id: &[u8]) -> Bytes {
    control(PING, id)
}

/// The farewell: streams up to this one were served.
pub(crate) fn go_away(last: StreamId) -> Frame {
    control(GOAWAY, &[last.to_be_bytes(), [0; 4]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_the_specification_draws_them() {
        assert_eq!(&data(5, true, b"hi")[..], b"\0\0\0\x05\x01\0\0\x02hi");
        assert_eq!(&refuse(7)[..], b"\x80\x03\0\x03\0\0\0\x08\0\0\0\x07\0\0\0\x03");
        assert_eq!(&pong(&[0, 0, 0, 9])[..], b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x09");
        assert_eq!(&go_away(3)[..12], b"\x80\x03\0\x07\0\0\0\x08\0\0\0\x03");
        let reply = reply(1, &mut Deflater::default());
        assert_eq!((&reply[..4], &reply[8..12]), (&b"\x80\x03\0\x02"[..], &b"\0\0\0\x01"[..]));
    }
}
