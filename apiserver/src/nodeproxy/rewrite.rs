//! What a proxied answer says about where things are, made true for a client on this side of the proxy: redirects, and
//! links in HTML.
//!
//! Only links that mean the proxied server itself are touched: paths from its root, and whole URLs with its name.

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use http_body_util::BodyStream;

use crate::http::Body;
use crate::http::body;

/// A tag longer than this is passed on as it is: nobody writes such links, and a page must not be held in memory.
const TAG_MAX: usize = 64 * 1024;

/// The attributes that are URLs, by the elements that have them (HTML 4 and 5).
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text, whatever it looks like.
const TEXT: &[&str] = &["script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"];

/// Where the proxied server is, seen from both sides.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Its root on this side, `/api/v1/namespaces/x/pods/y/proxy`.
    pub(super) prefix: String,
    /// Its own name: address and port.
    pub(super) authority: String,
    /// The name by which the client reached us.
    pub(super) host: String,
}

impl Place {
    /// The URL under which the client finds what the server calls `url`.
    pub(super) fn url(&self, url: &str) -> String {
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => (Some(scheme), rest),
            _ => match url.strip_prefix("//") {
                Some(rest) => (None, rest),
                None if url.starts_with('/') => return self.path(url),
                None => return url.to_owned(),
            },
        };
        let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if !path.starts_with('/') {
            return url.to_owned();
        }
        if host == self.authority {
            self.path(path)
        } else if host == self.host {
            let scheme = scheme.map(|s| format!("{s}:")).unwrap_or_default();
            format!("{scheme}//{host}{}", self.path(path))
        } else {
            url.to_owned()
        }
    }

    fn path(&self, path: &str) -> String {
        let inside = path
            .strip_prefix(&self.prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']));
        if inside { path.to_owned() } else { format!("{}{path}", self.prefix) }
    }

    /// A page with its links as the client needs them.
    pub(super) fn page(self, page: Body) -> Body {
        let rewriter = Rewriter::new(self);
        let chunks = stream::unfold(Some((BodyStream::new(page), rewriter)), |state| async {
            let (mut page, mut rewriter) = state?;
            match page.next().await {
                Some(Ok(frame)) => {
                    let bytes = frame.into_data().map(|data| rewriter.push(&data)).unwrap_or_default();
                    Some((Ok(bytes), Some((page, rewriter))))
                }
                Some(Err(error)) => Some((Err(error), None)),
                None => Some((Ok(rewriter.finish()), None)),
            }
        });
        body::stream(
            chunks.filter(|chunk| futures::future::ready(!matches!(chunk, Ok(b) if b.is_empty()))).boxed(),
        )
    }
}

/// Rewrites HTML as it comes; what is no link stays byte for byte.
struct Rewriter {
    place: Place,
    /// What cannot be judged yet.
    held: BytesMut,
    /// The element whose text we are in.
    text: Option<&'static str>,
}

impl Rewriter {
    fn new(place: Place) -> Self {
        Self { place, held: BytesMut::new(), text: None }
    }

    fn push(&mut self, bytes: &[u8]) -> Bytes {
        self.held.extend_from_slice(bytes);
        let mut out = BytesMut::new();
        while let Some(length) = self.step(&mut out) {
            let _done = self.held.split_to(length);
        }
        if self.held.len() > TAG_MAX {
            out.extend_from_slice(&self.held.split());
        }
        out.freeze()
    }

    fn finish(mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// Handles the next piece; returns its length, or `None` until more has come.
    fn step(&mut self, out: &mut BytesMut) -> Option<usize> {
        let held = &self.held[..];
        let start = match held.iter().position(|b| *b == b'<') {
            Some(0) => 0,
            Some(text) => {
                out.extend_from_slice(&held[..text]);
                return Some(text);
            }
            None if held.is_empty() => return None,
            None => {
                out.extend_from_slice(held);
                return Some(held.len());
            }
        };
        let next = *held.get(start + 1)?;
        let plain = |out: &mut BytesMut, length: usize| {
            out.extend_from_slice(&held[..length]);
            Some(length)
        };
        if let Some(element) = self.text {
            let wanted = element.len() + 3;
            let tail = held.get(2..wanted)?;
            let ends = next == b'/'
                && tail[..element.len()].eq_ignore_ascii_case(element.as_bytes())
                && !tail[element.len()].is_ascii_alphanumeric();
            if ends {
                self.text = None;
            }
            return plain(out, 1);
        }
        if held.starts_with(b"<!--") {
            let end = held.windows(3).skip(2).position(|w| w == b"-->")?;
            return plain(out, end + 5);
        }
        if held.len() < 4 && b"<!--".starts_with(held) {
            return None;
        }
        if !next.is_ascii_alphabetic() {
            return plain(out, 1);
        }
        let end = tag_end(held)?;
        let (name, tag) = self.tag(&held[..=end]);
        out.extend_from_slice(&tag);
        self.text = TEXT.iter().copied().find(|t| t.as_bytes().eq_ignore_ascii_case(&name));
        Some(end + 1)
    }

    /// The name of a tag, and the tag with its links rewritten.
    fn tag(&self, tag: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let name_end = tag.iter().position(|b| b.is_ascii_whitespace() || matches!(b, b'>' | b'/'));
        let name_end = name_end.unwrap_or(tag.len());
        let name = tag[1..name_end].to_ascii_lowercase();
        let links = LINKS.iter().find(|(element, _)| element.as_bytes() == name).map_or(&[][..], |(_, l)| l);
        let mut out = tag[..name_end].to_vec();
        let mut at = name_end;
        while at < tag.len() {
            let start = at;
            while at < tag.len() && !attribute_ends(tag[at]) && tag[at] != b'=' {
                at += 1;
            }
            let attribute = tag[start..at].to_ascii_lowercase();
            out.extend_from_slice(&tag[start..at]);
            let value = tag[at..].iter().position(|b| !b.is_ascii_whitespace()).map(|skip| at + skip);
            let Some(equals) = value.filter(|&v| tag[v] == b'=' && !attribute.is_empty()) else {
                out.extend(tag.get(at));
                at += 1;
                continue;
            };
            let begin = tag[equals + 1..].iter().position(|b| !b.is_ascii_whitespace());
            let begin = begin.map_or(tag.len(), |skip| equals + 1 + skip);
            out.extend_from_slice(&tag[at..begin]);
            let (open, end) = value_end(tag, begin);
            let text = &tag[begin + open..end];
            out.extend_from_slice(&tag[begin..begin + open]);
            let linked = links.iter().any(|l| l.as_bytes() == attribute);
            match std::str::from_utf8(text).ok().filter(|_| linked) {
                Some(url) => out.extend_from_slice(self.place.url(url).as_bytes()),
                None => out.extend_from_slice(text),
            }
            at = end;
        }
        (name, out)
    }
}

fn attribute_ends(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b'>' | b'/')
}

/// How many bytes open a value (its quote), and where it ends, before what closes it.
fn value_end(tag: &[u8], begin: usize) -> (usize, usize) {
    let rest = &tag[begin..];
    let found = |offset: usize, ends: &dyn Fn(u8) -> bool| {
        let length = rest[offset..].iter().position(|b| ends(*b)).unwrap_or(rest.len() - offset);
        (offset, begin + offset + length)
    };
    match rest.first() {
        Some(quote @ (b'"' | b'\'')) => found(1, &|b| b == *quote),
        // `/` is part of a value without quotes.
        _ => found(0, &|b| b.is_ascii_whitespace() || b == b'>'),
    }
}

/// Where a tag ends: at the first `>` outside of quoted values.
fn tag_end(tag: &[u8]) -> Option<usize> {
    let mut quote = None;
    let mut after_equals = false;
    for (index, byte) in tag.iter().enumerate() {
        match (quote, *byte) {
            (Some(open), byte) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'>') => return Some(index),
            (None, open @ (b'"' | b'\'')) if after_equals => quote = Some(open),
            (None, byte) if byte.is_ascii_whitespace() => continue,
            (None, byte) => {
                after_equals = byte == b'=';
                continue;
            }
        }
        after_equals = false;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            prefix: "/api/v1/namespaces/n/pods/p/proxy".into(),
            authority: "10.0.0.7:80".into(),
            host: "localhost:8001".into(),
        }
    }

    #[test]
    fn urls_of_the_server_lead_through_the_proxy() {
        let inside = "/api/v1/namespaces/n/pods/p/proxy";
        for (url, wanted) in [
            ("/x?y#z", format!("{inside}/x?y#z")),
            ("/", format!("{inside}/")),
            ("x/y", "x/y".to_owned()),
            ("mailto:a@b", "mailto:a@b".to_owned()),
            ("http://10.0.0.7:80/x", format!("{inside}/x")),
            ("//10.0.0.7:80/x", format!("{inside}/x")),
            ("https://localhost:8001/x", format!("https://localhost:8001{inside}/x")),
            ("https://example.com/x", "https://example.com/x".to_owned()),
            (&format!("{inside}/x"), format!("{inside}/x")),
        ] {
            assert_eq!(place().url(url), wanted, "{url}");
        }
    }

    fn rewrite(html: &str, chunk: usize) -> String {
        let mut rewriter = Rewriter::new(place());
        let mut out = Vec::new();
        for piece in html.as_bytes().chunks(chunk) {
            out.extend_from_slice(&rewriter.push(piece));
        }
        out.extend_from_slice(&rewriter.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn links_are_rewritten_however_the_page_arrives() {
        let html = "<!DOCTYPE html><!-- <a href='/c'> --><A class=\"x>y\" HREF = '/a' >1 < 2</a><img src=/i.png/ alt=''>\
            <script src=\"/s.js\">if (a < b) '<a href=\"/no\">'</script><p title=\"/t\"/><a href>x</a><a";
        let p = "/api/v1/namespaces/n/pods/p/proxy";
        let wanted = format!(
            "<!DOCTYPE html><!-- <a href='/c'> --><A class=\"x>y\" HREF = '{p}/a' >1 < 2</a><img src={p}/i.png/ alt=''>\
            <script src=\"{p}/s.js\">if (a < b) '<a href=\"/no\">'</script><p title=\"/t\"/><a href>x</a><a"
        );
        for chunk in [1, 2, 3, 7, 1000] {
            assert_eq!(rewrite(html, chunk), wanted, "in pieces of {chunk}");
        }
        let plain = "<a href=\"/rewriteme\">test</a>";
        assert_eq!(rewrite(plain, 1000), format!("<a href=\"{p}/rewriteme\">test</a>"));
    }

    #[test]
    fn a_tag_without_end_is_not_held() {
        let mut rewriter = Rewriter::new(place());
        let sent: usize = (0..40).map(|_| rewriter.push(&[b"<a ", &[b'x'; 4096][..]].concat()).len()).sum();
        assert!(sent > 0 && rewriter.held.len() <= TAG_MAX);
    }
}
