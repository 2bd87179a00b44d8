//! The service proxy: Services and EndpointSlices as nf_tables maps.
//!
//! [`plan`] is pure and decides; [`ruleset`] knows what differs; [`render`] writes messages; this module
//! applies them, as one transaction per change.
//!
//! What always holds: packets see the rules of before or of after a change. The rules stay when the
//! process ends, so that traffic goes on without it; the next process replaces them as a whole.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::clock::Clock;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use self::ruleset::{Delta, Frontend, Ruleset};
use crate::netlink::nft::{self, Transaction};
use crate::netlink::{self, Socket, conntrack};
use crate::netns::{self, Netns};
use crate::world::{Feed, World};

mod endpoint;
mod flow;
mod health;
mod metrics;
mod plan;
mod render;
mod ruleset;
mod traffic;

#[cfg(test)]
mod tests;

pub use self::traffic::Traffic;

/// The wait after a failed transaction: the kernel refuses for reasons that do not pass in microseconds.
const RETRY: Duration = Duration::from_secs(1);

/// The label of nodes that says in which zone they are.
const ZONE: &str = "topology.kubernetes.io/zone";

/// How the service proxy of a node works.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's network namespace.
    pub netns: Netns,
    /// The name of the nf_tables table.
    pub table: String,
    /// The node's name, by which endpoints are local.
    pub node: String,
    /// The addresses of all pods: other sources are masqueraded on their way to a Service.
    pub cluster_cidr: Ipv4Net,
    /// The addresses of Services: what no Service has there is refused at once.
    pub service_cidrs: Vec<Ipv4Net>,
    /// On which of the node's addresses node ports answer; on all if none is given.
    pub node_port_addresses: Vec<Ipv4Net>,
}

impl Options {
    /// The defaults of a cluster, for the node of that name.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            netns: Netns::Own,
            table: "decapod".into(),
            node: node.into(),
            cluster_cidr: Ipv4Net::new_assert([10, 244, 0, 0].into(), 16),
            service_cidrs: vec![Ipv4Net::new_assert([10, 96, 0, 0].into(), 16)],
            node_port_addresses: Vec::new(),
        }
    }
}

/// Why the rules could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("cannot change the service rules")]
    Kernel(#[from] netlink::Error),
    /// The node's namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
}

/// The rules of a node and what they were made from.
///
/// [`ServiceProxy::run`] keeps one in step with the cluster; it can be driven by hand as well, by
/// [`ServiceProxy::service_set`], [`ServiceProxy::slice_set`] and [`ServiceProxy::apply`].
#[derive(Debug)]
pub struct ServiceProxy {
    options: Options,
    node: plan::Node,
    world: World,
    ruleset: Ruleset,
    dirty: BTreeSet<ObjectKey>,
    /// Services of which the rules changed since `traffic` was told.
    untold: BTreeSet<ObjectKey>,
    traffic: Traffic,
    /// The frontends of which flows may be stale.
    flows: BTreeSet<Frontend>,
    /// Kept open: the kernel frees what a transaction removed when its socket is closed, and makes the
    /// closing wait for that.
    socket: Option<Socket>,
    /// Whether the kernel has what `ruleset` says. If not, the next change replaces everything.
    installed: bool,
}

impl ServiceProxy {
    /// A proxy that knows no Services and has installed nothing yet.
    pub fn new(options: Options) -> Self {
        let node = plan::Node { name: options.node.clone(), zone: None, cluster_cidr: options.cluster_cidr };
        Self {
            options,
            node,
            world: World::default(),
            ruleset: Ruleset::default(),
            dirty: BTreeSet::new(),
            untold: BTreeSet::new(),
            traffic: Traffic::default(),
            flows: BTreeSet::new(),
            socket: None,
            installed: false,
        }
    }

    /// Follows the cluster until the supervisor shuts down, and tells `traffic` what was installed; the rules stay.
    pub async fn run(
        options: Options,
        traffic: Traffic,
        informers: Informers,
        supervisor: Supervisor,
        clock: Arc<dyn Clock>,
    ) {
        let follow = async {
            let own = format!("metadata.name={}", options.node);
            let mut proxy = Self { traffic, ..Self::new(options) };
            let health = health::start(&proxy.options.netns, &supervisor);
            let mut feed = Feed::synced(&informers).await;
            feed.pending(&mut proxy.world, &mut proxy.dirty);
            let node = informers.filtered::<Node>(&own);
            node.synced().await;
            let mut node = node.subscribe();
            loop {
                while let Some(change) = node.try_next() {
                    proxy.zone_set(change.new.as_deref());
                }
                let began = clock.monotonic();
                metrics::changes(proxy.dirty.len());
                let (returned, applied) = proxy.apply_elsewhere().await;
                proxy = returned;
                let took = clock.monotonic().saturating_sub(began);
                metrics::synced(applied.is_ok(), took, clock.now());
                if let Err(error) = applied {
                    tracing::error!(
                        error = decapod_client::error::chain(&error),
                        "service rules not applied"
                    );
                    clock.sleep(RETRY).await;
                    continue;
                }
                health.send_replace(proxy.ruleset.health());
                let heard = tokio::select! {
                    dirty = feed.changed(&mut proxy.world) => dirty.map(|dirty| proxy.dirty.extend(dirty)),
                    change = node.next() => change.map(|change| proxy.zone_set(change.new.as_deref())),
                };
                if heard.is_none() {
                    return;
                }
            }
        };
        let shutdown = supervisor.shutdown_token();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = follow => {}
        }
    }

    /// Takes note of the zone that the node is in.
    fn zone_set(&mut self, node: Option<&Node>) {
        let zone = node.and_then(|node| node.metadata.labels.as_ref()?.get(ZONE).cloned());
        if self.node.zone != zone {
            self.node.zone = zone;
            self.dirty.extend(self.world.keys().cloned());
        }
    }

    /// Takes note of a Service, or that it is gone.
    pub fn service_set(&mut self, key: ObjectKey, service: Option<Arc<Service>>) {
        self.world.service_set(key.clone(), service);
        self.dirty.insert(key);
    }

    /// Takes note of a slice in place of `old`, or that it is gone.
    pub fn slice_set(&mut self, old: Option<&EndpointSlice>, new: Option<Arc<EndpointSlice>>) {
        self.dirty.extend(self.world.slice_set(old, new));
    }

    /// Brings the kernel in step with what was noted. Returns how many messages that took. Blocks for
    /// milliseconds.
    ///
    /// # Errors
    /// The kernel's refusal, also of a replacement of the whole. The call may be repeated.
    pub fn apply(&mut self) -> Result<u32, Error> {
        let mut delta = Delta::default();
        for key in std::mem::take(&mut self.dirty) {
            let rules = plan::service(&self.world, &key, &self.node);
            self.ruleset.service_set(&key, rules, &mut delta);
            self.untold.insert(key);
        }
        self.flows.append(&mut delta.flows);
        let messages = if self.installed { self.apply_delta(&delta)? } else { self.apply_whole()? };
        let told = std::mem::take(&mut self.untold);
        self.traffic.publish(told.into_iter().map(|key| {
            let ready = traffic::ready(self.world.slices(&key));
            (key, ready)
        }));
        let flows = std::mem::take(&mut self.flows);
        if !flows.is_empty()
            && let Err(error) = self.flows_forget(&flows)
        {
            // The rules are right all the same, and only UDP clients that never pause are concerned.
            tracing::warn!(error = decapod_client::error::chain(&error), "cannot forget stale UDP flows");
        }
        Ok(messages)
    }

    /// Removes all rules, whether or not a process serves them.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove(options: &Options) -> Result<(), Error> {
        let mut transaction = Transaction::new(&options.table);
        transaction.table_delete();
        options.netns.run(|| transaction.commit(&mut nft::open()?))??;
        Ok(())
    }

    /// [`Self::apply`], away from the async runtime.
    async fn apply_elsewhere(mut self) -> (Self, Result<(), Error>) {
        let applied = tokio::task::spawn_blocking(move || {
            let applied = self.apply().map(drop);
            (self, applied)
        });
        match applied.await {
            Ok(applied) => applied,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime shuts down: nobody is left to notice that this never ends.
            Err(_) => std::future::pending().await,
        }
    }

    fn apply_delta(&mut self, delta: &Delta) -> Result<u32, Error> {
        if delta.is_empty() {
            return Ok(0);
        }
        let mut transaction = Transaction::new(&self.options.table);
        render::delta(&mut transaction, delta);
        match Self::commit(&mut self.socket, &self.options.netns, transaction) {
            Ok(count) => Ok(count),
            Err(error) => {
                // Somebody changed our table, or deleted it.
                tracing::warn!(error = decapod_client::error::chain(&error), "replacing all service rules");
                self.installed = false;
                self.apply_whole()
            }
        }
    }

    fn apply_whole(&mut self) -> Result<u32, Error> {
        let mut transaction = Transaction::new(&self.options.table);
        render::base(&mut transaction, &self.options);
        render::delta(&mut transaction, &self.ruleset.whole());
        let count = Self::commit(&mut self.socket, &self.options.netns, transaction)?;
        self.installed = true;
        self.flows.extend(self.ruleset.whole().flows);
        Ok(count)
    }

    fn commit(
        socket: &mut Option<Socket>,
        netns: &Netns,
        transaction: Transaction<'_>,
    ) -> Result<u32, Error> {
        let mut open = match socket.take() {
            Some(open) => open,
            None => netns.run(nft::open)??,
        };
        // After an error the socket is dropped: it may hold answers that nobody read.
        let count = transaction.commit(&mut open)?;
        *socket = Some(open);
        Ok(count)
    }

    fn flows_forget(&self, changed: &BTreeSet<Frontend>) -> Result<(), Error> {
        let stale = |flow: &conntrack::Flow| flow::is_stale(flow, changed, &self.ruleset);
        let count = self.options.netns.run(|| conntrack::forget(stale))??;
        if count > 0 {
            tracing::debug!(count, "forgot UDP flows of endpoints that are gone");
        }
        Ok(())
    }
}
