//! Names with values in one piece of memory: a selector over 100,000 objects spends its time waiting
//! for memory, so what it looks at lies together.

/// A few names with their values. Compact, looked up by going through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pairs(Box<[u8]>);

/// The length of a text, before it.
const LENGTH: usize = size_of::<u32>();

impl Pairs {
    /// The value of a name; the first if it is there more than once.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let mut rest = &*self.0;
        while let (Some(found), Some(value)) = (take(&mut rest), take(&mut rest)) {
            if found == name.as_bytes() {
                return Some(text(value));
            }
        }
        None
    }

    /// All, in the order in which they were put in.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || Some((text(take(&mut rest)?), text(take(&mut rest)?))))
    }

    /// What it takes in memory.
    pub(super) fn size(&self) -> usize {
        self.0.len()
    }
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_at_checked(LENGTH)?;
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    let (text, after) = after.split_at(length);
    *rest = after;
    Some(text)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("only texts are put in")
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut builder = Builder::default();
        for (name, value) in pairs {
            builder.push(name.as_ref(), value.as_ref());
        }
        builder.build()
    }
}

/// Makes [`Pairs`].
#[derive(Debug, Default)]
pub(super) struct Builder(Vec<u8>);

impl Builder {
    pub(super) fn push(&mut self, name: &str, value: &str) {
        for text in [name, value] {
            let length = u32::try_from(text.len()).expect("an object is far below 4 GiB");
            self.0.extend_from_slice(&length.to_le_bytes());
            self.0.extend_from_slice(text.as_bytes());
        }
    }

    pub(super) fn build(self) -> Pairs {
        Pairs(self.0.into_boxed_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_in_comes_out() {
        let put = [("app", "web"), ("", ""), ("tier", "ü/9")];
        let pairs: Pairs = put.into_iter().collect();
        assert_eq!(pairs.iter().collect::<Vec<_>>(), put);
        assert_eq!(pairs.get("tier"), Some("ü/9"));
        assert_eq!(pairs.get(""), Some(""));
        assert_eq!(pairs.get("ap"), None);
        assert_eq!(Pairs::default().get("app"), None);
    }
}
