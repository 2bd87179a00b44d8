//! NetworkPolicy: what the pods of this node may receive and send, as nf_tables rules.
//!
//! [`parse`] reads policies, [`engine`] decides, [`ruleset`] knows what differs, [`render`] writes messages;
//! this module follows the cluster and applies them, as one transaction per change.
//!
//! What always holds: a pod's traffic is never open between its start and its rules, since
//! [`Policies::attach`] answers when its rules are in place; where they cannot be known, it fails. The rules
//! stay when the process ends; the next one replaces them as a whole once it knows all policies. Without any
//! policy in the cluster there is no rule, and neither pods nor namespaces are followed.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use decapod_client::clock::Clock;
use decapod_client::informer::{Change, Changes, Informers};
use decapod_client::task::Supervisor;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use tokio::sync::{mpsc, oneshot};

use self::engine::Engine;
use self::ruleset::Ruleset;
use crate::netlink::nft::{self, Transaction};
use crate::netlink::{self, Socket};
use crate::netns::{self, Netns};

mod engine;
mod parse;
mod render;
mod ruleset;

#[cfg(test)]
mod tests;

pub use self::engine::PodIdentity;

/// The wait after a failed transaction: the kernel refuses for reasons that do not pass in microseconds.
const RETRY: Duration = Duration::from_secs(1);
/// Pods that wait for their rules: each waits with its sandbox, and a node starts a few dozen at a time.
const WAITING: usize = 256;
/// How long a pod waits for its rules before its start fails, and is tried again: far longer than an API
/// server takes to answer that is there.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the policies of a node are kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's network namespace.
    pub netns: Netns,
    /// The name of the nf_tables table.
    pub table: String,
    /// The node's name, by which pods are local.
    pub node: String,
}

impl Options {
    /// The defaults of a cluster, for the node of that name.
    pub fn new(node: impl Into<String>) -> Self {
        Self { netns: Netns::Own, table: "decapod-policies".into(), node: node.into() }
    }
}

/// Why a pod's policies could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("cannot change the rules of network policies")]
    Kernel(#[from] netlink::Error),
    /// The node's namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The policies are not known, or the kernel goes on refusing.
    #[error("the network policies of the pod are not in place: the API server did not tell them in time")]
    Late,
    /// The process ends.
    #[error("the process is shutting down")]
    Shutdown,
}

enum Order {
    Attach { address: Ipv4Addr, pod: PodIdentity, done: oneshot::Sender<()> },
    Detach(Ipv4Addr),
}

/// By which whoever starts pods has their policies put in place first. Clones are the same.
#[derive(Clone)]
pub struct Policies {
    orders: mpsc::Sender<Order>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policies").finish_non_exhaustive()
    }
}

impl Policies {
    /// A handle, and what [`run`] is to be given.
    pub fn new(clock: Arc<dyn Clock>) -> (Self, Orders) {
        let (orders, inbox) = mpsc::channel(WAITING);
        (Self { orders, clock }, Orders(inbox))
    }

    /// Puts the policies of a pod in place that is about to start with this address.
    ///
    /// # Errors
    /// They could not be known or applied in time. The pod must not start then; the call may be repeated.
    pub async fn attach(&self, address: Ipv4Addr, pod: PodIdentity) -> Result<(), Error> {
        let (done, applied) = oneshot::channel();
        let asked = async {
            let order = Order::Attach { address, pod, done };
            self.orders.send(order).await.map_err(|_| Error::Shutdown)?;
            applied.await.map_err(|_| Error::Shutdown)
        };
        tokio::select! {
            result = asked => result,
            () = self.clock.sleep(PATIENCE) => Err(Error::Late),
        }
    }

    /// Takes note that the address is nobody's any more.
    pub async fn detach(&self, address: Ipv4Addr) {
        // If nobody listens any more, the process ends.
        let _told = self.orders.send(Order::Detach(address)).await.is_ok();
    }
}

/// What pods wait for.
pub struct Orders(mpsc::Receiver<Order>);

impl std::fmt::Debug for Orders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orders").finish_non_exhaustive()
    }
}

/// Follows the cluster until the supervisor shuts down; the rules stay.
pub async fn run(
    options: Options,
    orders: Orders,
    informers: Informers,
    supervisor: Supervisor,
    clock: Arc<dyn Clock>,
) {
    let shutdown = supervisor.shutdown_token();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = follow(options, orders.0, informers, clock) => {}
    }
}

/// Removes all rules, whether or not a process keeps them.
///
/// # Errors
/// The kernel's refusal.
pub fn remove(options: &Options) -> Result<(), Error> {
    let mut transaction = Transaction::new(&options.table);
    transaction.table_delete();
    options.netns.run(|| transaction.commit(&mut nft::open()?))??;
    Ok(())
}

/// What is followed of the cluster; pods and namespaces only while there are policies.
struct Feed {
    informers: Informers,
    policies: Changes<NetworkPolicy>,
    others: Option<(Changes<Pod>, Changes<Namespace>)>,
}

impl Feed {
    async fn synced(informers: Informers) -> Self {
        let policies = informers.of::<NetworkPolicy>();
        policies.synced().await;
        Self { policies: policies.subscribe(), others: None, informers }
    }

    /// Makes all pending changes, and follows what there is to follow now.
    async fn pending(&mut self, engine: &mut Engine) {
        while let Some(change) = self.policies.try_next() {
            take_policy(engine, &change);
        }
        match (engine.is_idle(), &self.others) {
            (true, Some(_)) => {
                self.others = None;
                engine.forget();
            }
            (false, None) => {
                let (pods, namespaces) = (self.informers.of::<Pod>(), self.informers.of::<Namespace>());
                pods.synced().await;
                namespaces.synced().await;
                self.others = Some((pods.subscribe(), namespaces.subscribe()));
            }
            _ => {}
        }
        let Some((pods, namespaces)) = &mut self.others else { return };
        while let Some(change) = namespaces.try_next() {
            engine.namespace_set(&change.key.name, change.new.as_deref());
        }
        while let Some(change) = pods.try_next() {
            engine.pod_set(change.key, change.new.as_deref());
        }
    }

    /// Waits for a change and makes it; `None` once the informers have ended.
    async fn changed(&mut self, engine: &mut Engine) -> Option<()> {
        let Some((pods, namespaces)) = &mut self.others else {
            take_policy(engine, &self.policies.next().await?);
            return Some(());
        };
        tokio::select! {
            change = self.policies.next() => take_policy(engine, &change?),
            change = pods.next() => {
                let change = change?;
                engine.pod_set(change.key, change.new.as_deref());
            }
            change = namespaces.next() => {
                let change = change?;
                engine.namespace_set(&change.key.name, change.new.as_deref());
            }
        }
        Some(())
    }
}

fn take_policy(engine: &mut Engine, change: &Change<NetworkPolicy>) {
    engine.policy_set(&change.key, change.new.as_deref());
}

async fn follow(
    options: Options,
    mut orders: mpsc::Receiver<Order>,
    informers: Informers,
    clock: Arc<dyn Clock>,
) {
    let mut engine = Engine::new(&options.node);
    let mut feed = Feed::synced(informers).await;
    let mut kernel = Kernel::new(options);
    let mut waiting = Vec::new();
    loop {
        feed.pending(&mut engine).await;
        while let Ok(order) = orders.try_recv() {
            take_order(&mut engine, order, &mut waiting);
        }
        let (returned, applied) = kernel.apply_elsewhere(engine.rules()).await;
        kernel = returned;
        match applied {
            Ok(()) => waiting.drain(..).for_each(|done: oneshot::Sender<()>| {
                // Who gave up waiting asks again.
                let _heard = done.send(()).is_ok();
            }),
            Err(error) => {
                let error = decapod_client::error::chain(&error);
                tracing::error!(error, "network policies not applied");
                clock.sleep(RETRY).await;
                continue;
            }
        }
        tokio::select! {
            order = orders.recv() => match order {
                Some(order) => take_order(&mut engine, order, &mut waiting),
                None => std::future::pending().await,
            },
            change = feed.changed(&mut engine) => if change.is_none() { return },
        }
    }
}

fn take_order(engine: &mut Engine, order: Order, waiting: &mut Vec<oneshot::Sender<()>>) {
    match order {
        Order::Attach { address, pod, done } => {
            engine.attached_set(address, Some(pod));
            waiting.push(done);
        }
        Order::Detach(address) => engine.attached_set(address, None),
    }
}

/// What the kernel has.
struct Kernel {
    options: Options,
    /// The rules that it has; unknown at the start and after a refusal.
    installed: Option<Ruleset>,
    /// Kept open: closing waits for what transactions removed.
    socket: Option<Socket>,
}

impl Kernel {
    fn new(options: Options) -> Self {
        Self { options, installed: None, socket: None }
    }

    /// [`Self::apply`], away from the async runtime.
    async fn apply_elsewhere(mut self, rules: Ruleset) -> (Self, Result<(), Error>) {
        if self.installed.as_ref() == Some(&rules) {
            return (self, Ok(()));
        }
        let applied = tokio::task::spawn_blocking(move || {
            let applied = self.apply(rules);
            (self, applied)
        });
        match applied.await {
            Ok(applied) => applied,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime shuts down: nobody is left to notice that this never ends.
            Err(_) => std::future::pending().await,
        }
    }

    /// Brings the kernel in step with the rules: by the difference, or all anew.
    fn apply(&mut self, rules: Ruleset) -> Result<(), Error> {
        let table = self.options.table.clone();
        if let Some(before) = self.installed.take().filter(|before| !before.is_empty() && !rules.is_empty()) {
            let mut transaction = Transaction::new(&table);
            render::delta(&mut transaction, &rules.since(&before));
            match self.commit(transaction) {
                Ok(()) => {
                    self.installed = Some(rules);
                    return Ok(());
                }
                Err(error) => {
                    // Somebody changed our table, or deleted it.
                    let error = decapod_client::error::chain(&error);
                    tracing::warn!(error, "replacing all rules of network policies");
                }
            }
        }
        let mut transaction = Transaction::new(&table);
        if rules.is_empty() {
            transaction.table_delete();
        } else {
            render::base(&mut transaction);
            render::delta(&mut transaction, &rules.since(&Ruleset::default()));
        }
        self.commit(transaction)?;
        self.installed = Some(rules);
        Ok(())
    }

    fn commit(&mut self, transaction: Transaction<'_>) -> Result<(), Error> {
        let mut open = match self.socket.take() {
            Some(open) => open,
            None => self.options.netns.run(nft::open)??,
        };
        // After an error the socket is dropped: it may hold answers that nobody read.
        transaction.commit(&mut open)?;
        self.socket = Some(open);
        Ok(())
    }
}
