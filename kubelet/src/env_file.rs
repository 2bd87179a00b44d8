//! Files of variables, as `fileKeyRef` reads them: `NAME='value'` on a line of its own, in single quotes that may
//! span lines and within which nothing is special. Blank lines and comments may stand between.

/// The most that is read of such a file: far more than the kernel lets any process have in its environment.
pub(crate) const LIMIT: u64 = 1 << 20;

/// What is wrong with a file, and in which line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    #[error("invalid environment variable format at line {0}: missing '='")]
    NoAssignment(usize),
    #[error("invalid environment variable format at line {0}: empty variable name")]
    NoName(usize),
    #[error("invalid environment variable format at line {0}: whitespace before '=' is not allowed")]
    SpaceBeforeAssignment(usize),
    #[error("invalid environment variable format at line {0}: value must be enclosed in single quotes")]
    NoQuotes(usize),
    #[error("invalid environment variable format at line {0}: unexpected content after closing quote")]
    AfterQuotes(usize),
    #[error("invalid environment variable format starting at line {0}: unclosed single quote")]
    OpenQuotes(usize),
}

/// The value of the first variable called `key`; what comes behind it is not looked at.
pub(crate) fn find(text: &str, key: &str) -> Result<Option<String>, Error> {
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    while let Some((number, line)) = lines.next() {
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or(Error::NoAssignment(number))?;
        let trimmed = name.trim_end_matches([' ', '\t']);
        if trimmed.is_empty() {
            return Err(Error::NoName(number));
        }
        if trimmed != name {
            return Err(Error::SpaceBeforeAssignment(number));
        }
        if value.starts_with([' ', '\t']) {
            // To a shell this sets nothing, and what follows would be a command.
            if name == key {
                return Ok(Some(String::new()));
            }
            continue;
        }
        let mut rest = value.strip_prefix('\'').ok_or(Error::NoQuotes(number))?.to_owned();
        let end = loop {
            if let Some(end) = rest.find('\'') {
                break end;
            }
            let (_, next) = lines.next().ok_or(Error::OpenQuotes(number))?;
            rest.push('\n');
            rest.push_str(next);
        };
        let after = rest[end + 1..].trim_start_matches([' ', '\t']);
        if !after.is_empty() && !after.starts_with('#') {
            return Err(Error::AfterQuotes(number));
        }
        if name == key {
            rest.truncate(end);
            return Ok(Some(rest));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_single_quotes() {
        let text = "# first\n\n  A='1 $X \\n' # why\nB='two\n lines'\nC= 'nothing'\n";
        assert_eq!(find(text, "A").unwrap().as_deref(), Some("1 $X \\n"));
        assert_eq!(find(text, "B").unwrap().as_deref(), Some("two\n lines"));
        assert_eq!(find(text, "C").unwrap().as_deref(), Some(""));
        assert_eq!(find(text, "D").unwrap(), None);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line() {
        assert_eq!(find("A='1'\nB", "C"), Err(Error::NoAssignment(2)));
        assert_eq!(find("='1'", "C"), Err(Error::NoName(1)));
        assert_eq!(find("A ='1'", "C"), Err(Error::SpaceBeforeAssignment(1)));
        assert_eq!(find("A=1", "C"), Err(Error::NoQuotes(1)));
        assert_eq!(find("A='1'2", "C"), Err(Error::AfterQuotes(1)));
        assert_eq!(find("\nA='1\n\n", "C"), Err(Error::OpenQuotes(2)));
    }
}
