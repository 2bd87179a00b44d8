//! Labels as a few bits, to pass over objects without looking at them.
//!
//! A selector over 100,000 objects spends its time waiting for memory: that of each object, and that of its labels.
//! The marks of an object lie beside its key, where the selector goes through anyway.
//!
//! **Invariant**: an object that a selector matches has the selector's marks. One that has them need not match.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use decapod_api::labels::{Operator, Selector};

/// Bits of some labels: two of 64 for each name with its value. Of objects with four labels each, one in 200 has
/// those of a label that it does not have; one with 20 labels is looked at in one case of five.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks(u64);

impl Marks {
    /// Those of every label there is.
    pub(super) const ALL: Self = Self(u64::MAX);

    /// Those that whatever a selector matches has.
    pub(super) fn of(selector: &Selector) -> Self {
        let exact = selector.requirements().iter().filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => match values.as_slice() {
                [value] => Some((requirement.key.as_str(), value.as_str())),
                _ => None,
            },
            _ => None,
        });
        exact.collect()
    }

    /// Whether these are among them.
    pub(super) fn have(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Marks {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(labels: I) -> Self {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let bits = labels.into_iter().map(|label| {
            let hash = hasher.hash_one(label);
            1 << (hash % 64) | 1 << (hash / 64 % 64)
        });
        Self(bits.fold(0, |all: u64, bits: u64| all | bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(labels: &[(&str, &str)]) -> Marks {
        labels.iter().copied().collect()
    }

    fn wanted(selector: &str) -> Marks {
        Marks::of(&selector.parse().unwrap())
    }

    #[test]
    fn whoever_matches_has_the_marks() {
        let object = marks(&[("app", "web"), ("tier", "front"), ("empty", "")]);
        for selector in
            ["", "app=web", "app in (web),tier=front", "empty=", "app in (web,db)", "app", "!x", "tier!=back"]
        {
            assert!(object.have(wanted(selector)), "{selector}");
            assert!(Marks::ALL.have(wanted(selector)), "{selector}");
        }
    }

    #[test]
    fn most_others_have_not() {
        let all = (0..1000).map(|n| n.to_string());
        let others = all.filter(|n| marks(&[("app", n), ("pod", "x")]).have(wanted("app=web"))).count();
        assert!(others < 20, "{others}");
        // Neither what a name is made of nor where it ends is taken for another.
        assert_ne!(marks(&[("ab", "c")]), marks(&[("a", "bc")]));
    }
}
