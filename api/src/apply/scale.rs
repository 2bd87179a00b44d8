//! Ownership of a number of replicas, seen through the `scale` subresource: who owns `.spec.replicas`
//! of the object owns that of its `Scale`, and the other way round.

use super::entry::{Entry, Managers};
use super::set::FieldSet;

/// The version of `Scale`.
pub const API_VERSION: &str = "autoscaling/v1";
/// Where a `Scale`, and every kind that has one here, keeps the number.
const REPLICAS: [&str; 2] = ["spec", "replicas"];

/// The managers of an object's `Scale`.
pub fn of_object(managers: &Managers) -> Managers {
    let owners = managers.0.iter().filter(|entry| entry.fields.has(&REPLICAS));
    Managers(owners.map(|entry| with(entry, API_VERSION, FieldSet::path(&REPLICAS))).collect())
}

fn with(entry: &Entry, api_version: &str, fields: FieldSet) -> Entry {
    Entry { api_version: api_version.to_owned(), fields, ..entry.clone() }
}

/// The managers of the object after those of its `Scale` changed.
pub fn to_object(mut managers: Managers, scale: Managers, api_version: &str) -> Managers {
    let replicas = FieldSet::path(&REPLICAS);
    let mut owners: Vec<Entry> = scale.0.into_iter().filter(|entry| entry.fields.has(&REPLICAS)).collect();
    managers.0.retain_mut(|entry| {
        if !entry.fields.has(&REPLICAS) {
            return true;
        }
        let seen = with(entry, API_VERSION, FieldSet::default());
        if let Some(at) = owners.iter().position(|owner| owner.same_as(&seen)) {
            owners.swap_remove(at);
            return true;
        }
        entry.fields = entry.fields.difference(&replicas);
        !entry.fields.is_empty()
    });
    for owner in owners {
        let mut entry = with(&owner, api_version, replicas.clone());
        if let Some(known) = managers.0.iter().find(|known| known.same_as(&entry)) {
            entry.fields = entry.fields.union(&known.fields);
        }
        managers.put(entry);
    }
    managers
}
