//! Validation of every kind: what a field must be on its own is a line of a rules table, what fields
//! must be together is a check of the type that has them.
//!
//! A walk goes over a normalized object along its declared types. Each struct is held against its
//! type's rules, then its type's check, whichever object it is part of: a rule of a container holds
//! in pods and in all templates. What an update leaves as it was is not looked at again, so that
//! objects stored under older rules can still be changed elsewhere.

mod at;
mod checks;
mod difference;
mod form;
mod rules;

pub(crate) use at::{At, Errors};

use serde_json::Value;

use crate::facts::{self, Shape, Type};
use crate::field::Error;

/// What of an object a request changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All but its status.
    Main,
    /// Its status.
    Status,
    /// A pod's ephemeral containers.
    Ephemeral,
    /// A pod's resources.
    Resize,
    /// What the server itself works out, such as a binding.
    Whole,
}

/// All that is wrong with a normalized object of this type (its metadata apart).
pub(crate) fn object(ty: &'static Type, new: &Value, old: Option<&Value>, scope: Scope) -> Vec<Error> {
    let mut errors = Errors::default();
    let seen = checks::as_seen(ty, new);
    let root = At::root(seen.as_ref().unwrap_or(new), old);
    checks::run_root(&root, ty, scope, &mut errors);
    if scope == Scope::Status {
        if let Some(status) = ty.fields.get("status") {
            shape(&root.get("status"), &status.shape, &mut errors);
        }
    } else {
        rules::apply(&root, ty, &mut errors);
        checks::run(&root, ty, &mut errors);
        children(&root, ty, &mut errors, &["metadata", "status"]);
    }
    errors.list()
}

fn visit(at: &At<'_>, ty: &'static Type, errors: &mut Errors) {
    rules::apply(at, ty, errors);
    checks::run(at, ty, errors);
    children(at, ty, errors, &[]);
}

fn children(at: &At<'_>, ty: &'static Type, errors: &mut Errors, skipped: &[&str]) {
    for name in at.value.as_object().into_iter().flatten().map(|(name, _)| name) {
        if skipped.contains(&name.as_str()) {
            continue;
        }
        if let Some(field) = ty.fields.get(name.as_str()).filter(|f| holds_types(&f.shape)) {
            shape(&at.get(name), &field.shape, errors);
        }
    }
}

/// Whether values of this shape can have structs in them.
fn holds_types(shape: &Shape) -> bool {
    match shape {
        Shape::Ref(_) => shape.resolve().is_some(),
        Shape::List(item) | Shape::Map(item) => holds_types(item),
        _ => false,
    }
}

fn shape(at: &At<'_>, shape_: &'static Shape, errors: &mut Errors) {
    if at.unchanged() {
        return;
    }
    match shape_ {
        Shape::List(item) => at.items().for_each(|item_at| shape(&item_at, item, errors)),
        Shape::Map(item) => at.entries().for_each(|(_, entry)| shape(&entry, item, errors)),
        Shape::Ref(name) => {
            if let Some(ty) = facts::lookup(name).filter(|t| t.alias.is_none()) {
                visit(at, ty, errors);
            }
        }
        _ => {}
    }
}
