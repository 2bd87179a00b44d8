//! Sets of completion indexes, as runs: a Job may have a hundred thousand, nearly all of which succeed in order.

use std::fmt;

/// A set of indexes: ordered runs, from first to last, that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// The indexes below `completions` that a status or a policy lists: `1,3-5`. What cannot be read is left out.
    pub(super) fn parse(text: &str, completions: i32) -> Self {
        let mut all = Self::default();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else { continue };
            if first >= 0 && first <= last && first < completions {
                all.add(first, last.min(completions - 1));
            }
        }
        all
    }

    /// Adds one index, which is not negative.
    pub(super) fn insert(&mut self, index: i32) {
        self.add(index, index);
    }

    /// Adds all of `other`.
    pub(super) fn extend(&mut self, other: &Self) {
        other.0.iter().for_each(|(first, last)| self.add(*first, *last));
    }

    fn add(&mut self, first: i32, last: i32) {
        let start = self.0.partition_point(|run| run.1 < first - 1);
        let end = self.0.partition_point(|run| run.0 <= last.saturating_add(1));
        let merged = match self.0.get(start..end) {
            Some([one]) => (first.min(one.0), last.max(one.1)),
            Some([one, .., other]) => (first.min(one.0), last.max(other.1)),
            _ => (first, last),
        };
        self.0.splice(start..end, [merged]);
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        let at = self.0.partition_point(|run| run.1 < index);
        self.0.get(at).is_some_and(|run| run.0 <= index)
    }

    /// How many there are.
    pub(super) fn count(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// How many are also in `other`.
    pub(super) fn shared(&self, other: &Self) -> i32 {
        let shared = |run: &(i32, i32)| {
            let from = other.0.partition_point(|one| one.1 < run.0);
            let near = other.0[from..].iter().take_while(|one| one.0 <= run.1);
            near.map(|one| run.1.min(one.1) - run.0.max(one.0) + 1).sum::<i32>()
        };
        self.0.iter().map(shared).sum()
    }

    /// The indexes below `completions` that are not in the set, in order.
    pub(super) fn missing(&self, completions: i32) -> impl Iterator<Item = i32> {
        let starts = std::iter::once(0).chain(self.0.iter().map(|run| run.1 + 1));
        let ends = self.0.iter().map(|run| run.0).chain(std::iter::once(completions));
        starts.zip(ends).flat_map(move |(start, end)| start..end.min(completions))
    }
}

impl FromIterator<i32> for Indexes {
    fn from_iter<T: IntoIterator<Item = i32>>(indexes: T) -> Self {
        let mut all = Self::default();
        indexes.into_iter().for_each(|index| all.insert(index));
        all
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (first, last)) in self.0.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms() {
        for (text, completions, shown) in [
            ("", 9, ""),
            ("3,1", 9, "1,3"),
            ("1,2", 9, "1,2"),
            ("1,2,3,5", 9, "1-3,5"),
            ("0-20", 5, "0-4"),
            ("x,2,4-1,7-", 9, "2"),
            ("6-8", 5, ""),
        ] {
            assert_eq!(Indexes::parse(text, completions).to_string(), shown, "{text}");
        }
    }

    proptest! {
        #[test]
        fn runs_are_a_set(one in prop::collection::vec(0..60_i32, 0..40), other in prop::collection::vec(0..60_i32, 0..40)) {
            let (a, b): (Indexes, Indexes) = (one.iter().copied().collect(), other.iter().copied().collect());
            let (plain, second): (BTreeSet<i32>, BTreeSet<i32>) = (one.into_iter().collect(), other.into_iter().collect());
            prop_assert_eq!(a.count() as usize, plain.len());
            prop_assert_eq!(a.shared(&b) as usize, plain.intersection(&second).count());
            prop_assert!((0..60).all(|index| a.contains(index) == plain.contains(&index)));
            prop_assert_eq!(a.missing(50).collect::<Vec<_>>(), (0..50).filter(|i| !plain.contains(i)).collect::<Vec<_>>());
            prop_assert_eq!(&Indexes::parse(&a.to_string(), 60), &a);
            let mut union = a;
            union.extend(&b);
            prop_assert_eq!(union.count() as usize, plain.union(&second).count());
        }
    }
}
