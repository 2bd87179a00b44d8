//! Patterns of paths, as `.dockerignore` and `COPY` have them.
//!
//! `*` and `?` match within a name, `[a-z]` one character, `**` any number of names. Matching takes a time of
//! at most the product of both lengths: patterns come with the context.

/// A path's pattern, by names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(Vec<String>);

impl Pattern {
    /// Reads a pattern; slashes around it, `.` and `..` within it go, as far as they can.
    pub(super) fn new(text: &str) -> Self {
        let mut names: Vec<String> = Vec::new();
        for name in text.split('/') {
            match name {
                "" | "." => {}
                ".." => drop(names.pop()),
                name => names.push(name.to_owned()),
            }
        }
        Pattern(names)
    }

    /// Whether it has no name: it means the root.
    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path, if it is one: without anything that matches more than itself.
    pub(super) fn literal(&self) -> Option<String> {
        let special = |name: &String| name.contains(['*', '?', '[', '\\']);
        (!self.0.iter().any(special)).then(|| self.0.join("/"))
    }

    /// Whether it matches the path, by names.
    pub(super) fn matches(&self, path: &[&str]) -> bool {
        self.prefixes(path).last().copied().unwrap_or(false)
    }

    /// Whether it matches the path or a directory above it.
    pub(super) fn matches_or_parent(&self, path: &[&str]) -> bool {
        self.prefixes(path).into_iter().skip(1).any(|matches| matches)
    }

    /// For each number of leading names of the path, whether those match.
    fn prefixes(&self, path: &[&str]) -> Vec<bool> {
        let mut reached = vec![false; path.len() + 1];
        reached[0] = true;
        for name in &self.0 {
            let mut next = vec![false; path.len() + 1];
            if name == "**" {
                let mut any = false;
                for (at, slot) in next.iter_mut().enumerate() {
                    any |= reached[at];
                    *slot = any;
                }
            } else {
                for (at, found) in path.iter().enumerate() {
                    next[at + 1] = reached[at] && name_matches(name, found);
                }
            }
            reached = next;
        }
        reached
    }
}

/// One part of a name's pattern.
enum Part {
    Any,
    One,
    Char(char),
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Part {
    fn takes(&self, c: char) -> bool {
        match self {
            Part::Any | Part::One => true,
            Part::Char(own) => *own == c,
            Part::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

fn parts(pattern: &str) -> Vec<Part> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut parts = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        at += 1;
        parts.push(match c {
            '*' => Part::Any,
            '?' => Part::One,
            '\\' => {
                let quoted = chars.get(at).copied().unwrap_or('\\');
                at += 1;
                Part::Char(quoted)
            }
            '[' => match class(&chars[at..]) {
                Some((part, length)) => {
                    at += length;
                    part
                }
                // A bracket that is not closed stands for itself.
                None => Part::Char('['),
            },
            c => Part::Char(c),
        });
    }
    parts
}

fn class(chars: &[char]) -> Option<(Part, usize)> {
    let negated = matches!(chars.first(), Some('^' | '!'));
    let mut at = usize::from(negated);
    let mut ranges = Vec::new();
    loop {
        let low = match *chars.get(at)? {
            ']' if !ranges.is_empty() => return Some((Part::Class { negated, ranges }, at + 1)),
            '\\' => {
                at += 1;
                *chars.get(at)?
            }
            c => c,
        };
        at += 1;
        let mut high = low;
        if chars.get(at) == Some(&'-') && chars.get(at + 1).is_some_and(|c| *c != ']') {
            high = chars[at + 1];
            at += 2;
        }
        ranges.push((low, high));
    }
}

/// Whether a name matches; goes back to the last star only, which suffices.
fn name_matches(pattern: &str, name: &str) -> bool {
    let parts = parts(pattern);
    let chars: Vec<char> = name.chars().collect();
    let (mut part, mut at) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while at < chars.len() {
        match parts.get(part) {
            Some(Part::Any) => {
                star = Some((part, at));
                part += 1;
            }
            Some(one) if one.takes(chars[at]) => {
                part += 1;
                at += 1;
            }
            _ => match star {
                Some((back, from)) => {
                    star = Some((back, from + 1));
                    part = back + 1;
                    at = from + 1;
                }
                None => return false,
            },
        }
    }
    parts[part..].iter().all(|rest| matches!(rest, Part::Any))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Pattern::new(pattern).matches(&path.split('/').collect::<Vec<_>>())
    }

    #[test]
    fn patterns_match_names() {
        for (pattern, path, expected) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "d/a.txt", false),
            ("**/*.txt", "d/e/a.txt", true),
            ("**/*.txt", "a.txt", true),
            ("a/**", "a/b/c", true),
            ("a/**/z", "a/z", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[!a]", "b", true),
            ("[]a]", "]", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("a[", "a[", true),
            ("./a//b/../c/", "a/c", true),
            ("*a*b*", "xaxbx", true),
            ("*a*b", "xaxbx", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
        assert!(Pattern::new("a").matches_or_parent(&["a", "b"]));
        assert!(!Pattern::new("a").matches_or_parent(&["b", "a"]));
        assert!(Pattern::new("./").is_root());
        assert_eq!(Pattern::new("/a/./b").literal().as_deref(), Some("a/b"));
        assert_eq!(Pattern::new("a*").literal(), None);
    }

    proptest! {
        #[test]
        fn nothing_panics_and_names_match_themselves(pattern in "[a-c*?\\[\\]\\\\^/.-]{0,20}", name in "[a-c]{1,8}") {
            matches(&pattern, &name);
            prop_assert!(matches(&name, &name));
            prop_assert!(matches("**", &name));
            let prefix = format!("{}*", &name[..1]);
            prop_assert!(matches(&prefix, &name));
        }
    }
}
