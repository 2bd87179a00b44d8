//! Words of a Dockerfile: quoting, and variables by their values.

/// Variables in the default of a variable in the default of…: nobody needs more.
const MAX_DEPTH: usize = 16;

/// Longest result of an expansion: each round of `ENV A=$A$A` doubles it.
const MAX_LENGTH: usize = 1 << 20;

/// The value of a variable.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces variables and takes quotes away.
pub(crate) fn expand(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String, String> {
    let mut expander = Expander { rest: text, escape, lookup, output: String::new() };
    expander.run(None, 0)?;
    Ok(expander.output)
}

/// Splits at blanks outside of quotes. Quotes and escapes stay as they are.
pub(crate) fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if matches!(c, '\'' | '"') => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        word.push(c);
        if c == escape && quote != Some('\'') {
            word.extend(chars.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

struct Expander<'a> {
    rest: &'a str,
    escape: char,
    lookup: Lookup<'a>,
    output: String,
}

impl Expander<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    /// Up to the end of the text, or to `until`, which is taken.
    fn run(&mut self, until: Option<char>, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err("variables are nested too deeply".to_owned());
        }
        loop {
            if self.output.len() > MAX_LENGTH {
                return Err(format!("it becomes longer than {MAX_LENGTH} bytes"));
            }
            match self.next() {
                None if until.is_none() => return Ok(()),
                None => return Err("a variable's \"${\" does not end: expected \"}\"".to_owned()),
                Some(c) if Some(c) == until => return Ok(()),
                Some('\'') => self.single_quoted()?,
                Some('"') => self.double_quoted(depth)?,
                Some('$') => self.variable(depth)?,
                Some(c) if c == self.escape => {
                    let next = self.next().unwrap_or(self.escape);
                    self.output.push(next);
                }
                Some(c) => self.output.push(c),
            }
        }
    }

    fn single_quoted(&mut self) -> Result<(), String> {
        let (inside, rest) = self.rest.split_once('\'').ok_or("a single quote is not closed")?;
        self.output.push_str(inside);
        self.rest = rest;
        Ok(())
    }

    fn double_quoted(&mut self, depth: usize) -> Result<(), String> {
        loop {
            match self.next() {
                None => return Err("a double quote is not closed".to_owned()),
                Some('"') => return Ok(()),
                Some('$') => self.variable(depth)?,
                Some(c) if c == self.escape => match self.next() {
                    Some(next) if next == '"' || next == '$' || next == self.escape => self.output.push(next),
                    next => {
                        self.output.push(c);
                        self.output.extend(next);
                    }
                },
                Some(c) => self.output.push(c),
            }
        }
    }

    fn name(&mut self) -> String {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = match self.rest.chars().next() {
            // Positional parameters have one digit, and are never set.
            Some(first) if first.is_ascii_digit() => 1,
            _ => self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len()),
        };
        let (name, rest) = self.rest.split_at(length);
        self.rest = rest;
        name.to_owned()
    }

    fn variable(&mut self, depth: usize) -> Result<(), String> {
        let braced = self.rest.starts_with('{');
        if braced {
            self.next();
        }
        let name = self.name();
        if !braced {
            match name.is_empty() {
                true => self.output.push('$'),
                false => self.output.extend((self.lookup)(&name)),
            }
            return Ok(());
        }
        if name.is_empty() {
            return Err("\"${\" without a variable's name".to_owned());
        }
        let value = (self.lookup)(&name);
        let mut modifier = self.next();
        let or_empty = modifier == Some(':');
        if or_empty {
            modifier = self.next();
        }
        let usable = value.as_ref().is_some_and(|value| !(or_empty && value.is_empty()));
        match modifier {
            Some('}') if !or_empty => self.output.extend(value),
            Some(kind @ ('-' | '+' | '?')) => {
                let before = self.output.len();
                self.run(Some('}'), depth + 1)?;
                let word = self.output.split_off(before);
                match (kind, usable) {
                    ('-', true) => self.output.extend(value),
                    ('-', false) | ('+', true) => self.output.push_str(&word),
                    ('+', false) => {}
                    (_, true) => self.output.extend(value),
                    (_, false) if word.is_empty() => return Err(format!("the variable {name} is not set")),
                    (_, false) => return Err(format!("{name}: {word}")),
                }
            }
            Some(other) => {
                let colon = if or_empty { ":" } else { "" };
                return Err(format!(
                    "\"${{{name}{colon}{other}\": after the name expected }} or one of - + ? (with : before it, \
                     an empty value counts as none)"
                ));
            }
            None => return Err(format!("\"${{{name}\" does not end: expected \"}}\"")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(name: &str) -> Option<String> {
        match name {
            "a" => Some("A".into()),
            "b" => Some("B b".into()),
            "empty" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn variables_have_docker_s_forms() {
        for (text, expected) in [
            ("$a", "A"),
            ("${a}x$b.", "AxB b."),
            ("$none|${none}|", "||"),
            ("${none:-d}${none-d}${empty:-d}${empty-d}", "ddd"),
            ("${a:+y}${none:+y}${empty:+y}${empty+y}", "yy"),
            ("${none:-${a}/${b:-c}}", "A/B b"),
            ("${none:-a b}", "a b"),
            (r"\$a '$a' \\", r"$a $a \"),
            (r#""$a \"q\" \n" x"#, r#"A "q" \n x"#),
            ("5$ $", "5$ $"),
            ("$1x", "x"),
            ("${a:?no}", "A"),
        ] {
            assert_eq!(expand(text, '\\', &value).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn errors_say_what_was_expected() {
        for (text, expected) in [
            ("${a", "does not end"),
            ("${none:-x", "does not end"),
            ("${}", "without a variable's name"),
            ("${a%x}", "expected } or one of"),
            ("'a", "single quote"),
            ("\"a", "double quote"),
            ("${none:?is needed}", "none: is needed"),
            ("${none?}", "the variable none is not set"),
        ] {
            let error = expand(text, '\\', &value).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let deep = "${none:-".repeat(40) + &"}".repeat(40);
        assert!(expand(&deep, '\\', &value).unwrap_err().contains("deeply"));
    }

    #[test]
    fn words_keep_their_quotes() {
        let words = split(r#"a="b c" d\ e 'f g'h  i"#, '\\');
        assert_eq!(words, [r#"a="b c""#, r"d\ e", "'f g'h", "i"]);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[\\$\\{\\}:\\-+?'\"\\\\`a ]{0,40}") {
            drop(expand(&text, '\\', &value));
            drop(split(&text, '`'));
        }

        #[test]
        fn plain_text_stays(text in "[a-zA-Z0-9 /._=-]{0,40}") {
            prop_assert_eq!(expand(&text, '\\', &value), Ok(text));
        }
    }
}
