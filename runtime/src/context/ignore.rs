//! `.dockerignore`: what of a context is not there for a build.

use super::pattern::Pattern;

/// Patterns of one file; each is held against each path.
const MAX_PATTERNS: usize = 10_000;

/// The rules of a `.dockerignore`, the later ones going before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// `!`: what matches is there after all.
    exception: bool,
    pattern: Pattern,
}

impl Ignore {
    /// Reads the file's text.
    pub(crate) fn parse(text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().filter(|line| !line.starts_with('#')).map(str::trim);
        let rules = lines.filter_map(|line| {
            let (exception, pattern) = match line.strip_prefix('!') {
                Some(rest) => (true, Pattern::new(rest.trim())),
                None => (false, Pattern::new(line)),
            };
            (!pattern.is_root()).then_some(Rule { exception, pattern })
        });
        Ignore { rules: rules.take(MAX_PATTERNS).collect() }
    }

    /// The same with more patterns of what is left out.
    pub(crate) fn with(&self, patterns: &[String]) -> Self {
        let more = patterns.iter().map(|text| Rule { exception: false, pattern: Pattern::new(text) });
        Ignore { rules: self.rules.iter().cloned().chain(more).collect() }
    }

    /// Whether the path, by its names, is left out.
    pub(super) fn excludes(&self, path: &[&str]) -> bool {
        let last = self.rules.iter().rev().find(|rule| rule.pattern.matches_or_parent(path));
        last.is_some_and(|rule| !rule.exception)
    }

    /// Whether all below a directory that is left out is left out, too.
    pub(super) fn is_final(&self) -> bool {
        !self.rules.iter().any(|rule| rule.exception)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(rules: &str, path: &str) -> bool {
        Ignore::parse(rules).excludes(&path.split('/').collect::<Vec<_>>())
    }

    #[test]
    fn later_rules_go_before() {
        let rules = "# comment\n\n*.md\n!README.md\nnode_modules/\n/target\n**/*.tmp\n docs \n!docs/keep\n";
        for (path, expected) in [
            ("a.md", true),
            ("README.md", false),
            ("sub/a.md", false),
            ("node_modules/x/y", true),
            ("target", true),
            ("sub/target", false),
            ("a/b/c.tmp", true),
            ("c.tmp", true),
            ("docs/a", true),
            ("docs/keep/b", false),
            ("# comment", false),
        ] {
            assert_eq!(excludes(rules, path), expected, "{path}");
        }
        assert!(!excludes("", "a"));
        assert!(excludes("*\n!a", "b") && !excludes("*\n!a", "a/b"));
        assert!(excludes("!a\na", "a"));
        let more = Ignore::parse("").with(&["*.o".to_owned()]);
        assert!(more.excludes(&["x.o"]) && more.is_final());
    }
}
