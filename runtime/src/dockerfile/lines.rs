//! From the text of a Dockerfile to its instructions' lines: directives, comments, continuations, heredocs.

use super::{Error, Place};

/// An instruction in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it begins.
    pub(super) place: Place,
    /// What follows the instruction's name, without the breaks of the lines.
    pub(super) rest: String,
    /// The texts that follow the line.
    pub(super) heredocs: Vec<Heredoc>,
}

/// A text that follows an instruction's line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Heredoc {
    /// The word that ends it.
    pub(super) name: String,
    /// As it was written after `<<`: with the quotes.
    pub(super) marker: String,
    /// Without tabs before each line, where `<<-` asked for that.
    pub(super) content: String,
    /// False where the name was quoted.
    pub(super) expand: bool,
}

/// Splits a Dockerfile; also returns the character that quotes.
pub(super) fn split(file: &str, text: &str) -> Result<(char, Vec<Line>), Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let physical: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let place = |line: usize, instruction: &str| Place {
        file: file.to_owned(),
        line: line + 1,
        instruction: instruction.to_owned(),
    };
    let escape = escape_directive(&physical)
        .map_err(|(line, found)| place(line, "escape").error(format!("{found:?}: expected \\ or `")))?;
    let mut lines = Vec::new();
    let mut at = 0;
    while at < physical.len() {
        let begin = at;
        at += 1;
        if is_blank_or_comment(physical[begin]) {
            continue;
        }
        let mut whole = String::new();
        let mut piece = physical[begin].trim_start();
        while let Some(before) = continued(piece, escape) {
            whole.push_str(before);
            while at < physical.len() && is_blank_or_comment(physical[at]) {
                at += 1;
            }
            piece = physical.get(at).copied().unwrap_or_default();
            at += 1;
        }
        whole.push_str(piece);
        let whole = whole.trim();
        let (word, rest) = whole.split_once(char::is_whitespace).unwrap_or((whole, ""));
        if word.is_empty() {
            continue;
        }
        let place = place(begin, &word.to_ascii_uppercase());
        let rest = rest.trim().to_owned();
        let heredocs = match place.instruction.as_str() {
            "RUN" | "COPY" | "ADD" => {
                heredocs(&rest, &physical, &mut at).map_err(|what| place.error(what))?
            }
            _ => Vec::new(),
        };
        lines.push(Line { place, rest, heredocs });
    }
    Ok((escape, lines))
}

/// `# escape=` among the first lines, which all have this form.
fn escape_directive<'a>(lines: &[&'a str]) -> Result<char, (usize, &'a str)> {
    for (number, line) in lines.iter().enumerate() {
        let Some((key, value)) = line.trim().strip_prefix('#').and_then(|line| line.split_once('=')) else {
            break;
        };
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            break;
        }
        if key.eq_ignore_ascii_case("escape") {
            return match value.trim() {
                "\\" => Ok('\\'),
                "`" => Ok('`'),
                other => Err((number, other)),
            };
        }
    }
    Ok('\\')
}

fn is_blank_or_comment(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

/// What stands before the character at the end by which the next line belongs to this one. Two of them
/// at the end are that character itself.
fn continued(line: &str, escape: char) -> Option<&str> {
    let before = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    (!before.ends_with(escape)).then_some(before)
}

/// Reads the texts that the line announces.
fn heredocs(rest: &str, physical: &[&str], at: &mut usize) -> Result<Vec<Heredoc>, String> {
    let mut found = Vec::new();
    for Marker { name, written, strip, expand } in markers(rest) {
        let mut content = String::new();
        loop {
            let Some(line) = physical.get(*at) else {
                return Err(format!("the text after <<{name} does not end: expected a line {name:?}"));
            };
            *at += 1;
            let line = if strip { line.trim_start_matches('\t') } else { line };
            if line == name {
                break;
            }
            content.push_str(line);
            content.push('\n');
        }
        found.push(Heredoc { name, marker: written, content, expand });
    }
    Ok(found)
}

/// `<<NAME`
struct Marker {
    name: String,
    written: String,
    strip: bool,
    expand: bool,
}

/// The announcements on a line, outside of quotes.
fn markers(rest: &str) -> Vec<Marker> {
    let mut found = Vec::new();
    if rest.starts_with('[') {
        return found;
    }
    let bytes = rest.as_bytes();
    let mut quote = None;
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        match quote {
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if byte == b'\\' => at += 1,
            None if matches!(byte, b'\'' | b'"') => quote = Some(byte),
            None if bytes[at..].starts_with(b"<<<") => at += 2,
            None if bytes[at..].starts_with(b"<<") => {
                let (marker, length) = marker(&rest[at..]);
                found.extend(marker);
                at += length;
                continue;
            }
            None => {}
        }
        at += 1;
    }
    found
}

/// The announcement that the text begins with, and how long it is.
fn marker(text: &str) -> (Option<Marker>, usize) {
    let after = &text[2..];
    let strip = after.starts_with('-');
    let word = if strip { &after[1..] } else { after };
    let before = text.len() - word.len();
    let quote = word.chars().next().filter(|first| matches!(first, '\'' | '"'));
    let (name, length) = match quote {
        Some(quote) => match word[1..].find(quote) {
            Some(end) => (&word[1..=end], end + 2),
            None => return (None, before),
        },
        None => {
            let end = word.find(|c: char| c.is_whitespace() || "<>|&;()'\"".contains(c));
            let end = end.unwrap_or(word.len());
            (&word[..end], end)
        }
    };
    if name.is_empty() {
        return (None, before + length);
    }
    let written = text[..before + length].to_owned();
    (Some(Marker { name: name.to_owned(), written, strip, expand: quote.is_none() }), before + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rests(text: &str) -> Vec<(usize, String, String)> {
        let (_, lines) = split("Dockerfile", text).unwrap();
        lines.into_iter().map(|line| (line.place.line, line.place.instruction, line.rest)).collect()
    }

    #[test]
    fn lines_are_joined_and_comments_left_out() {
        let text =
            "\u{feff}# a comment\r\n\nfrom a\r\nRUN one && \\  \n  # inside\n\n  two \\\n\nCMD x\\\\\n";
        let found = rests(text);
        assert_eq!(found[0], (3, "FROM".into(), "a".into()));
        assert_eq!(found[1], (4, "RUN".into(), "one &&   two CMD x\\\\".into()));
    }

    #[test]
    fn the_escape_directive_comes_first() {
        let (escape, lines) =
            split("f", "# syntax=docker/dockerfile:1\n# escape=`\nRUN a `\n b\\\nCMD c").unwrap();
        assert_eq!(escape, '`');
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].rest, "a  b\\");
        assert_eq!(split("f", "FROM a\n# escape=`").unwrap().0, '\\');
        let error = split("f", "# escape=x").unwrap_err().to_string();
        assert_eq!(error, "f:1: escape: \"x\": expected \\ or `");
    }

    #[test]
    fn heredocs_follow_their_line() {
        let text =
            "RUN <<EOF cat <<-'TWO' > x\na\n# no comment\nEOF\n\tb $c\n\tTWO\nCOPY <<a <<b /\n1\na\n2\nb\n";
        let (_, lines) = split("f", text).unwrap();
        let [first, second] = lines[0].heredocs.as_slice() else { panic!("{lines:?}") };
        assert_eq!((first.content.as_str(), first.expand), ("a\n# no comment\n", true));
        assert_eq!((second.content.as_str(), second.expand), ("b $c\n", false));
        assert_eq!(second.marker, "<<-'TWO'");
        assert_eq!(lines[1].heredocs.len(), 2);
        assert_eq!(lines[1].place.line, 7);
        let error = split("f", "FROM a\nRUN <<EOF\nx").unwrap_err().to_string();
        assert_eq!(error, "f:2: RUN: the text after <<EOF does not end: expected a line \"EOF\"");
    }

    #[test]
    fn quotes_and_here_strings_are_no_heredocs() {
        for text in
            ["RUN echo '<<EOF'", "RUN cat <<<word", "RUN [\"a\", \"<<b\"]", "RUN echo \\<<", "RUN a << "]
        {
            assert!(split("f", text).unwrap().1[0].heredocs.is_empty(), "{text}");
        }
    }
}
