//! Which objects of a row a reader wants.

use std::sync::Arc;

use decapod_api::{fields, labels};

use super::marks::Marks;
use super::object::Object;
use super::state::{self, Live};

/// A part of a row: the keys under a prefix whose objects match both selectors.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    /// The row's prefix, or that of one namespace in it.
    pub(crate) prefix: Arc<str>,
    /// What the labels must be.
    pub(crate) labels: labels::Selector,
    /// What the fields must be.
    pub(crate) fields: fields::Selector,
}

impl Selection {
    /// Everything under a prefix.
    #[cfg(test)]
    pub(crate) fn all(prefix: &str) -> Self {
        Self {
            prefix: prefix.into(),
            labels: labels::Selector::default(),
            fields: fields::Selector::default(),
        }
    }

    /// Whether the prefix alone decides.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// What of a state may be selected, after a key if one is given, by key.
    pub(super) fn under<'a>(
        &'a self,
        live: &'a Live,
        after: Option<&str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        state::under(live, &self.prefix, after, Marks::of(&self.labels))
    }

    pub(super) fn matches(&self, object: &Object) -> bool {
        object.key().starts_with(&*self.prefix) && self.selects(object)
    }

    /// Whether the selectors match an object that is under the prefix. One that cannot be read does
    /// in any case: nobody knows that it does not.
    pub(super) fn selects(&self, object: &Object) -> bool {
        self.is_everything()
            || object.readable().is_err()
            || (self.labels.matches_with(|name| object.labels().get(name))
                && self.fields.matches(|name| object.field(name)))
    }

    /// What an event must have in common with the selection to be of any interest to it. The row's
    /// prefix and fields are given.
    pub(super) fn trigger(&self, row: &str, known: impl Fn(&str) -> bool) -> Trigger {
        let inside = self.prefix.strip_prefix(row).unwrap_or_default();
        let folder = inside.ends_with('/') && !inside[..inside.len() - 1].contains('/');
        if let Some(name) = self.fields.exact("metadata.name")
            && (folder || inside.is_empty())
        {
            return match folder {
                true => Trigger::Key(format!("{}{name}", self.prefix).into()),
                false => Trigger::Name(name.into()),
            };
        }
        let exact = self.fields.terms().iter().find(|term| term.equal && known(&term.field));
        if let Some(term) = exact {
            return Trigger::Field(term.field.as_str().into(), term.value.as_str().into());
        }
        if folder { Trigger::Folder(Arc::clone(&self.prefix)) } else { Trigger::Any }
    }
}

/// What an event must have for a watcher to be woken: it then looks at the rest of its selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    /// Nothing.
    Any,
    /// This key.
    Key(Arc<str>),
    /// This name, in any namespace.
    Name(Arc<str>),
    /// A key in this folder: the namespace.
    Folder(Arc<str>),
    /// A field with this value, before or after.
    Field(Arc<str>, Arc<str>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trigger(prefix: &str, fields: &str) -> Trigger {
        let selection = Selection { fields: fields.parse().unwrap(), ..Selection::all(prefix) };
        selection.trigger("/r/pods/", |field| field == "spec.nodeName")
    }

    #[test]
    fn the_narrowest_trigger_is_taken() {
        assert_eq!(trigger("/r/pods/", ""), Trigger::Any);
        assert_eq!(trigger("/r/pods/web/", ""), Trigger::Folder("/r/pods/web/".into()));
        assert_eq!(trigger("/r/pods/web/", "metadata.name=a"), Trigger::Key("/r/pods/web/a".into()));
        assert_eq!(trigger("/r/pods/", "metadata.name=a"), Trigger::Name("a".into()));
        let node = Trigger::Field("spec.nodeName".into(), "n1".into());
        assert_eq!(trigger("/r/pods/", "spec.nodeName=n1"), node);
        assert_eq!(trigger("/r/pods/web/", "status.phase!=Running,spec.nodeName=n1"), node);
        assert_eq!(trigger("/r/pods/", "spec.nodeName!=n1"), Trigger::Any);
        assert_eq!(trigger("/r/pods/", "status.phase=Running"), Trigger::Any);
        // Not a whole folder.
        assert_eq!(trigger("/r/pods/we", ""), Trigger::Any);
    }
}
