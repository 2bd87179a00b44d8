//! The workers of pods that come from files of the node.

use std::sync::Arc;

use decapod_client::ObjectKey;
use decapod_client::informer::Change;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::mirror::{self, Local, mirrored};
use super::{Entry, Workers};
use crate::pod::observed::Owner;
use crate::pod::spec;
use crate::statics::{Pods, key_of};

impl Workers {
    /// Ends the pods whose files are gone or say something else, and begins those that are new.
    pub(super) fn locals_changed(&mut self, wanted: &Pods) {
        let now = self.shared.clock.now();
        let held: Vec<_> = self.locals.values().filter(|uid| !wanted.contains_key(*uid)).cloned().collect();
        for uid in held {
            let Some(entry) = self.entries.get_mut(&uid) else { continue };
            let lives = |pod: &&mut Arc<Pod>| pod.metadata.deletion_timestamp.is_none();
            if let Some(pod) = entry.pod.as_mut().filter(lives) {
                // As an API server words it.
                Arc::make_mut(pod).metadata.deletion_timestamp = Some(Time(now));
                self.wake(&uid);
            }
        }
        self.locals_begin(wanted);
    }

    /// Begins what is wanted and not there; two pods of one name follow each other.
    fn locals_begin(&mut self, wanted: &Pods) {
        for (uid, pod) in &**wanted {
            let key = key_of(pod);
            if self.entries.contains_key(uid) || self.locals.contains_key(&key) {
                continue;
            }
            let owner = Owner {
                namespace: spec::namespace(pod).to_owned(),
                name: spec::name(pod).to_owned(),
                uid: uid.clone(),
            };
            let mut entry = Entry::new(owner);
            entry.pod = Some(pod.clone());
            entry.local = Some(Local { mirror: self.mirrors.get(&key).cloned() });
            self.entries.insert(uid.clone(), entry);
            self.locals.insert(key, uid.clone());
            self.wake(uid);
        }
    }

    /// Nothing of a pod is left: another one may have waited for its name.
    pub(super) fn local_gone(&mut self, uid: &str) {
        self.locals.retain(|_, held| held != uid);
        let wanted = self.shared.statics.subscribe().borrow().clone();
        self.locals_begin(&wanted);
    }

    /// Takes mirrors out of what the API server says; what is left is about pods that it decides on.
    pub(super) fn mirror_changed(&mut self, change: Change<Pod>) -> Option<Change<Pod>> {
        let mirror = change.new.clone().filter(|pod| mirrored(pod).is_some());
        let known = match &mirror {
            Some(mirror) => {
                self.mirrors.insert(change.key.clone(), mirror.clone());
                true
            }
            None => self.mirrors.remove(&change.key).is_some(),
        };
        if !known {
            return Some(change);
        }
        self.mirror_hand_over(&change.key, mirror.as_ref());
        if mirror.is_none() {
            // The name may be an ordinary pod's now.
            return change.new.is_some().then_some(change);
        }
        // Or was one's until now, which is gone then.
        self.by_key.contains_key(&change.key).then_some(Change { new: None, ..change })
    }

    fn mirror_hand_over(&mut self, key: &ObjectKey, mirror: Option<&Arc<Pod>>) {
        if let Some(uid) = self.locals.get(key).cloned() {
            if let Some(entry) = self.entries.get_mut(&uid) {
                entry.local = Some(Local { mirror: mirror.cloned() });
            }
            self.wake(&uid);
        } else if let Some(mirror) = mirror.cloned() {
            // What it showed is no file of this node any more.
            let shared = self.shared.clone();
            self.shared.supervisor.spawn_until_shutdown("mirror-removal", async move {
                let _told_where_it_failed: bool = mirror::remove(&shared, &mirror).await;
            });
        }
    }
}
