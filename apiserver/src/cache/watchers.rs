//! Who waits for events of a row.
//!
//! A watcher holds no queue: it remembers how far it is and reads the rest from the window. An event
//! leaves a note, the first revision to look at, with those watchers whose trigger it meets, and
//! they are woken: one of a thousand nodes is not woken by the pods of the others.

use std::collections::HashMap;
use std::sync::Arc;

use decapod_storage::Revision;
use tokio::sync::Notify;

use super::event::Event;
use super::select::Trigger;

#[derive(Debug, Default)]
pub(super) struct Watchers {
    any: Slots,
    keys: HashMap<Arc<str>, Slots>,
    names: HashMap<Arc<str>, Slots>,
    folders: HashMap<Arc<str>, Slots>,
    fields: HashMap<Arc<str>, HashMap<Arc<str>, Slots>>,
    next: u64,
}

type Slots = HashMap<u64, Slot>;

/// What is noted for one watcher.
#[derive(Debug)]
pub(super) struct Slot {
    /// The first revision that it has yet to look at, if there is one.
    pub(super) pending: Option<Revision>,
    pub(super) wake: Arc<Notify>,
}

impl Watchers {
    pub(super) fn add(&mut self, trigger: &Trigger, pending: Option<Revision>, wake: Arc<Notify>) -> u64 {
        self.next += 1;
        let id = self.next;
        let slots = match trigger {
            Trigger::Any => &mut self.any,
            Trigger::Key(key) => self.keys.entry(Arc::clone(key)).or_default(),
            Trigger::Name(name) => self.names.entry(Arc::clone(name)).or_default(),
            Trigger::Folder(folder) => self.folders.entry(Arc::clone(folder)).or_default(),
            Trigger::Field(field, value) => {
                let values = self.fields.entry(Arc::clone(field)).or_default();
                values.entry(Arc::clone(value)).or_default()
            }
        };
        slots.insert(id, Slot { pending, wake });
        id
    }

    pub(super) fn slot(&mut self, trigger: &Trigger, id: u64) -> Option<&mut Slot> {
        self.slots(trigger)?.get_mut(&id)
    }

    fn slots(&mut self, trigger: &Trigger) -> Option<&mut Slots> {
        match trigger {
            Trigger::Any => Some(&mut self.any),
            Trigger::Key(key) => self.keys.get_mut(key),
            Trigger::Name(name) => self.names.get_mut(name),
            Trigger::Folder(folder) => self.folders.get_mut(folder),
            Trigger::Field(field, value) => self.fields.get_mut(field)?.get_mut(value),
        }
    }

    pub(super) fn remove(&mut self, trigger: &Trigger, id: u64) {
        let Some(slots) = self.slots(trigger) else { return };
        slots.remove(&id);
        if !slots.is_empty() {
            return;
        }
        match trigger {
            Trigger::Any => {}
            Trigger::Key(key) => drop(self.keys.remove(key)),
            Trigger::Name(name) => drop(self.names.remove(name)),
            Trigger::Folder(folder) => drop(self.folders.remove(folder)),
            Trigger::Field(field, value) => {
                if let Some(values) = self.fields.get_mut(field) {
                    values.remove(value);
                    if values.is_empty() {
                        self.fields.remove(field);
                    }
                }
            }
        }
    }

    /// Notes an event for those that it may concern, and adds whom to wake: once the row is no longer locked, or
    /// they would wait for it at once.
    pub(super) fn note(&mut self, event: &Event, woken: &mut Vec<Arc<Notify>>) {
        let revision = event.revision;
        let key = &**event.key();
        let (folder, name) = key.split_at(key.rfind('/').map_or(0, |slash| slash + 1));
        note(Some(&mut self.any), revision, woken);
        note(self.keys.get_mut(key), revision, woken);
        note(self.names.get_mut(name), revision, woken);
        note(self.folders.get_mut(folder), revision, woken);
        for (field, values) in &mut self.fields {
            for object in event.states() {
                note(object.field(field).and_then(|value| values.get_mut(value)), revision, woken);
            }
        }
    }

    /// Wakes all, because the row ended.
    pub(super) fn wake_all(&self) {
        let fields = self.fields.values().flat_map(HashMap::values);
        let named = self.keys.values().chain(self.names.values()).chain(self.folders.values());
        for slot in std::iter::once(&self.any).chain(named).chain(fields).flat_map(HashMap::values) {
            slot.wake.notify_one();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let fields = self.fields.values().flat_map(HashMap::values);
        let named = self.keys.values().chain(self.names.values()).chain(self.folders.values());
        self.any.len() + named.chain(fields).map(HashMap::len).sum::<usize>()
    }
}

fn note(slots: Option<&mut Slots>, revision: Revision, woken: &mut Vec<Arc<Notify>>) {
    for slot in slots.into_iter().flat_map(HashMap::values_mut) {
        if slot.pending.is_none() {
            slot.pending = Some(revision);
            woken.push(Arc::clone(&slot.wake));
        }
    }
}
