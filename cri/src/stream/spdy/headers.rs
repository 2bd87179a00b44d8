//! Header blocks: names and values behind zlib with a dictionary that both sides know.
//!
//! What clients send is inflated; what we send (empty blocks, in answers that carry nothing) goes as stored blocks,
//! which every inflater reads.

use std::sync::LazyLock;

use bytes::Buf;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// How far back deflate looks.
const WINDOW: usize = 32 * 1024;
/// The largest block that is read: a client sends a handful of short headers.
const BLOCK_MAX: usize = 64 * 1024;
/// Its checksum, by which a stream names the dictionary.
const DICTIONARY_ID: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];
/// The head of a zlib stream with a dictionary.
const ZLIB_HEAD: [u8; 2] = [0x78, 0xbb];
/// A stored block of nothing: deflate's way to flush.
const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];
/// In the second byte of that head: the name of a dictionary follows.
const HAS_DICTIONARY: u8 = 0x20;

/// The first part of SPDY/3's dictionary: each word behind its length.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
/// The rest of it, as it is.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 \
    Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
    Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=\
    utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    for word in WORDS.split(' ') {
        let length = u32::try_from(word.len()).expect("words are short");
        bytes.extend(length.to_be_bytes());
        bytes.extend(word.replace('_', " ").bytes());
    }
    bytes.extend(TAIL.bytes());
    bytes
});

/// A header block that cannot be read; the connection is lost with it, since the blocks depend on each other.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("a header block is not zlib with SPDY/3's dictionary")]
    Zlib,
    #[error("a header block is larger than {BLOCK_MAX} bytes")]
    TooLarge,
    #[error("a header block is cut short")]
    Short,
}

/// The headers of one stream, names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header; empty and missing are the same.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).unwrap_or_default()
    }

    fn parse(mut block: &[u8]) -> Result<Self, Error> {
        let count = block.try_get_u32().map_err(|_| Error::Short)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let (name, value) = (text(&mut block)?, text(&mut block)?);
            headers.push((name.to_ascii_lowercase(), value));
        }
        Ok(Self(headers))
    }
}

fn text(block: &mut &[u8]) -> Result<String, Error> {
    let length = block.try_get_u32().map_err(|_| Error::Short)?;
    let length = usize::try_from(length).map_err(|_| Error::Short)?;
    let (text, rest) = block.split_at_checked(length).ok_or(Error::Short)?;
    *block = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// The state of the client's compression, which goes on from block to block.
pub(super) struct Inflater {
    state: Box<DecompressorOxide>,
    window: Box<[u8]>,
    at: usize,
    begun: bool,
}

impl Inflater {
    pub(super) fn new() -> Self {
        Self { state: Box::default(), window: vec![0; WINDOW].into(), at: 0, begun: false }
    }

    /// Reads the next block.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, Error> {
        let mut input = if self.begun { block } else { self.begin(block)? };
        self.begun = true;
        let mut plain = Vec::new();
        loop {
            let (status, read, written) =
                decompress(&mut self.state, input, &mut self.window, self.at, TINFL_FLAG_HAS_MORE_INPUT);
            plain.extend_from_slice(&self.window[self.at..self.at + written]);
            if plain.len() > BLOCK_MAX {
                return Err(Error::TooLarge);
            }
            self.at = (self.at + written) % WINDOW;
            input = &input[read..];
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput | TINFLStatus::Done => break,
                _ => return Err(Error::Zlib),
            }
        }
        Headers::parse(&plain)
    }

    /// Takes the head off the first block, and what it says about the dictionary.
    fn begin<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], Error> {
        let (head, rest) = block.split_at_checked(2).ok_or(Error::Short)?;
        if head[0] & 0x0f != 8 {
            return Err(Error::Zlib);
        }
        if head[1] & HAS_DICTIONARY == 0 {
            return Ok(rest);
        }
        let rest = rest.strip_prefix(&DICTIONARY_ID).ok_or(Error::Zlib)?;
        self.window[..DICTIONARY.len()].copy_from_slice(&DICTIONARY);
        self.at = DICTIONARY.len();
        Ok(rest)
    }
}

/// The state of our compression: whether its head was sent.
#[derive(Debug, Default)]
pub(crate) struct Deflater {
    begun: bool,
}

impl Deflater {
    /// A block without headers.
    pub(super) fn empty(&mut self) -> Vec<u8> {
        self.block(&[])
    }

    /// A block of some short headers.
    pub(super) fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            block.extend(ZLIB_HEAD);
            block.extend(DICTIONARY_ID);
        }
        let number = |length: usize| u32::try_from(length).expect("headers are short").to_be_bytes();
        let mut content = number(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            content.extend(number(text.len()));
            content.extend(text.bytes());
        }
        let length = u16::try_from(content.len()).expect("headers are short");
        // A stored block that is not the last.
        block.push(0);
        block.extend(length.to_le_bytes());
        block.extend((!length).to_le_bytes());
        block.extend(content);
        // An empty one, at which inflaters give out what they hold.
        block.extend(FLUSH);
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block as a client sends it, without help of the dictionary.
    fn block(first: bool, headers: &[(&str, &str)]) -> Vec<u8> {
        Deflater::after(!first).block(headers)
    }

    impl Deflater {
        /// One that has said its head already, or not.
        pub(in crate::stream::spdy) fn after(begun: bool) -> Self {
            Self { begun }
        }
    }

    #[test]
    fn the_dictionary_is_spdys() {
        assert_eq!(DICTIONARY.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((b << 16 | a).to_be_bytes(), DICTIONARY_ID);
    }

    #[test]
    fn blocks_go_on_from_each_other() {
        let mut inflater = Inflater::new();
        let first = inflater.read(&block(true, &[("streamType", "data"), ("port", "8080")])).unwrap();
        assert_eq!((first.get("streamtype"), first.get("port"), first.get("x")), ("data", "8080", ""));
        for _ in 0..2000 {
            let next = inflater.read(&block(false, &[("requestid", "17")])).unwrap();
            assert_eq!(next.get("requestid"), "17");
        }
    }

    #[test]
    fn deflated_blocks_use_the_dictionary() {
        let plain: Vec<u8> = [&1u32.to_be_bytes()[..], b"\0\0\0\x04host\0\0\0\x06origin"].concat();
        let compressed = [FIRST_DEFLATED, SECOND_DEFLATED];
        let mut inflater = Inflater::new();
        for block in compressed {
            let headers = inflater.read(block).unwrap();
            assert_eq!(headers, Headers::parse(&plain).unwrap());
        }
    }

    #[test]
    fn bad_blocks_are_refused() {
        assert!(matches!(Inflater::new().read(b"x"), Err(Error::Short)));
        assert!(matches!(Inflater::new().read(b"GET / HTTP/1.1"), Err(Error::Zlib)));
        assert!(matches!(Inflater::new().read(b"\x78\xbb\xe3\xc6\xa7\xc2\xff\xff"), Err(Error::Zlib)));
        assert!(Headers::parse(&[0, 0, 0, 9]).is_err());
        assert!(Headers::parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(matches!(Inflater::new().read(BOMB), Err(Error::TooLarge)));
    }

    #[test]
    fn our_own_blocks_can_be_read() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::new());
        for _ in 0..3 {
            assert_eq!(inflater.read(&deflater.empty()).unwrap(), Headers::default());
        }
    }

    /// `host: origin` as zlib writes it with the dictionary, and once more.
    const FIRST_DEFLATED: &[u8] =
        b"\x78\xf9\xe3\xc6\xa7\xc2\x02\xa6\x23\x46\xa4\xf2\x00\x9a\xa6\x00\x00\x00\x00\xff\xff";
    const SECOND_DEFLATED: &[u8] = b"\xc2\x2e\x0a\x00\x00\x00\xff\xff";
    /// 300,000 zeros.
    const BOMB: &[u8] = b"\x78\xf9\xe3\xc6\xa7\xc2\xec\xc1\x01\x0d\x00\x00\x00\xc2\x20\xfb\xa7\x7e\x0f\x07\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x8e\x04\x00\x00\xff\xff";
}
