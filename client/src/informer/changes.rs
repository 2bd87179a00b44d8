//! What a subscriber of an informer hears.
//!
//! A subscriber that is slow loses nothing and costs little: per object there is one pending change, from
//! the state that the subscriber last took to the newest one. An object that came and went before he heard
//! of it is told as gone: whoever made it himself has to hear that.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::ObjectKey;

/// An object changed from what the subscriber last heard of it to what it is now.
///
/// `old` and `new` may have different uids: the object was deleted and made anew in between.
#[derive(Debug)]
pub struct Change<K> {
    /// Which object.
    pub key: ObjectKey,
    /// The state that this subscriber last heard of, or the last one of an object that came and went
    /// unheard; `None` if there was none before.
    pub old: Option<Arc<K>>,
    /// The newest state; `None` if the object is gone.
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The newest state, or the last one of an object that is gone.
    pub fn latest(&self) -> &Arc<K> {
        self.new.as_ref().or(self.old.as_ref()).expect("a change has at least one side")
    }

    /// Both sides, as far as there are any: for keys that depend on the old and on the new state.
    pub fn sides(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(&self.new)
    }
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), old: self.old.clone(), new: self.new.clone() }
    }
}

/// A subscription: the objects that existed when it began, and every change since, in the order in which
/// the objects first changed. Dropping it ends it.
#[derive(Debug)]
pub struct Changes<K> {
    pub(super) mailbox: Arc<Mailbox<K>>,
    /// Keeps the informer running.
    pub(super) _informer: Arc<dyn std::any::Any + Send + Sync>,
}

impl<K> Changes<K> {
    /// The next change; `None` once the informer has ended (at a shutdown) and all was heard.
    pub async fn next(&mut self) -> Option<Change<K>> {
        loop {
            let changed = self.mailbox.changed.notified();
            {
                let mut post = self.mailbox.lock();
                if let Some(change) = post.take() {
                    return Some(change);
                }
                if post.closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// The next change, if there is one now.
    pub fn try_next(&mut self) -> Option<Change<K>> {
        self.mailbox.lock().take()
    }
}

/// Pending changes of one subscriber: one an object that exists or existed since he last looked.
#[derive(Debug)]
pub(super) struct Mailbox<K> {
    post: Mutex<Post<K>>,
    changed: Notify,
}

#[derive(Debug)]
struct Post<K> {
    order: VecDeque<ObjectKey>,
    pending: HashMap<ObjectKey, Sides<K>>,
    closed: bool,
}

/// What a subscriber knew of an object, and what it is now.
type Sides<K> = (Option<Arc<K>>, Option<Arc<K>>);

impl<K> Mailbox<K> {
    pub(super) fn new() -> Self {
        let post = Post { order: VecDeque::new(), pending: HashMap::new(), closed: false };
        Self { post: Mutex::new(post), changed: Notify::new() }
    }

    /// Notes that the object `key` went from `old` to `new`.
    pub(super) fn put(&self, key: &ObjectKey, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        let mut post = self.lock();
        if let Some(sides) = post.pending.get_mut(key) {
            let last = std::mem::replace(&mut sides.1, new.cloned());
            if new.is_none() {
                sides.0 = sides.0.take().or(last);
            }
        } else {
            post.pending.insert(key.clone(), (old.cloned(), new.cloned()));
            post.order.push_back(key.clone());
        }
        drop(post);
        self.changed.notify_one();
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Post<K>> {
        // Nothing panics while the lock is held, so the post is whole even if the lock is poisoned.
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Post<K> {
    fn take(&mut self) -> Option<Change<K>> {
        let key = self.order.pop_front()?;
        let (old, new) = self.pending.remove(&key).expect("an ordered key is pending");
        Some(Change { key, old, new })
    }
}
