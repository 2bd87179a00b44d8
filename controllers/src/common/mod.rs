//! What several controllers need: claiming what belongs to an owner, knowing one's own writes before the
//! cache shows them, the history of templates, and the facts about pods that status and scaling rest on.

pub(crate) mod amount;
pub(crate) mod batch;
pub(crate) mod catalog;
pub(crate) mod claim;
pub(crate) mod condition;
pub(crate) mod error;
pub(crate) mod expect;
pub(crate) mod family;
pub(crate) mod history;
pub(crate) mod namespaces;
pub(crate) mod placement;
pub(crate) mod pods;
pub(crate) mod template;

use std::sync::Arc;

use decapod_client::clock::Clock;
use decapod_client::event::Recorder;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use kube::Client;

pub(crate) use error::{Error, Result, Says};

/// What every controller is given.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) informers: Informers,
    pub(crate) supervisor: Supervisor,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Context {
    /// A recorder of Events in the name of `component`.
    pub(crate) fn recorder(&self, component: &str) -> Recorder {
        Recorder::new(self.client.clone(), component, "", &self.supervisor, self.clock.clone())
    }
}
