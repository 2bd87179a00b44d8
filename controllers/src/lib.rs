//! The controllers: each watches a part of the cluster and moves it towards what its objects ask for.
//!
//! Each has a folder with a pure `plan` (what is to be done, tested without a cluster) and an `apply`
//! that makes no choices of its own. They are driven by keys, not by events: a controller that was away,
//! missed a change or crashed between two writes finds out by looking. They speak to the API server only,
//! as a client among others.

mod bootstrap;
pub mod certificates;
mod clusterrole;
mod common;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod ephemeralvolume;
mod garbage;
mod job;
pub mod loadbalancer;
mod localpath;
mod namespace;
pub mod nodeipam;
pub mod nodelifecycle;
mod persistentvolume;
mod podautoscaler;
mod podgc;
mod replicaset;
mod resourcequota;
mod rootca;
mod serviceaccount;
mod servicecidr;
mod statefulset;
mod storageprotection;
mod ttlafterfinished;

use std::sync::Arc;
use std::time::Duration;

use decapod_client::clock::Clock;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use kube::Client;

use common::Context;
use common::catalog::Catalog;

/// How the controllers run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Objects of one kind that a controller works on at a time.
    pub workers: usize,
    /// The certificate bundle in PEM that is published to all namespaces; nothing is published without.
    pub root_ca: Option<String>,
    /// Who signs certificates and the tokens of Secrets; neither is signed without.
    pub authority: Option<Arc<dyn certificates::Authority>>,
    /// For how long a token that was made for a service account unasked must be without use to be put out of use, and then
    /// removed (Kubernetes' LegacyServiceAccountTokenCleanUp).
    pub unused_tokens: Duration,
    /// When nodes count as lost.
    pub node_lifecycle: nodelifecycle::Options,
    /// How the pod network is divided among the nodes; `None` where something else does that.
    pub node_ipam: Option<nodeipam::Options>,
    /// Which addresses Services of type LoadBalancer have; `None` where something else gives them.
    pub load_balancers: Option<loadbalancer::Options>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 5,
            root_ca: None,
            authority: None,
            unused_tokens: Duration::from_secs(365 * 24 * 60 * 60),
            node_lifecycle: nodelifecycle::Options::default(),
            node_ipam: Some(nodeipam::Options::default()),
            load_balancers: Some(loadbalancer::Options::default()),
        }
    }
}

/// Starts all controllers as tasks of `supervisor`. They work as long as it does; `informers` may be
/// shared with other components of the process.
pub fn run(
    options: &Options,
    client: Client,
    informers: Informers,
    supervisor: Supervisor,
    clock: Arc<dyn Clock>,
) {
    let context = Context { client, informers, supervisor, clock };
    deployment::start(&context, options.workers);
    endpoints::start(&context, options.workers);
    replicaset::start(&context, options.workers);
    job::start(&context, options.workers);
    cronjob::start(&context, options.workers);
    ttlafterfinished::start(&context, options.workers);
    statefulset::start(&context, options.workers);
    daemonset::start(&context, options.workers);
    let catalog = Catalog::new(context.client.clone());
    garbage::start(&context, &catalog, options.workers);
    namespace::start(&context, &catalog, options.workers);
    clusterrole::start(&context);
    disruption::start(&context, &catalog, options.workers);
    podautoscaler::start(&context, &catalog, options.workers);
    resourcequota::start(&context, &catalog, options.workers);
    servicecidr::start(&context);
    storageprotection::start(&context);
    persistentvolume::start(&context);
    ephemeralvolume::start(&context);
    localpath::start(&context, options.workers);
    serviceaccount::start(&context);
    serviceaccount::cleaner::start(&context, options.unused_tokens);
    bootstrap::start(&context);
    if let Some(authority) = &options.authority {
        certificates::start(&context, authority.clone(), options.workers);
        serviceaccount::tokens::start(&context, authority.clone(), options.root_ca.clone());
    }
    nodelifecycle::start(&context, options.node_lifecycle, options.workers);
    podgc::start(&context);
    if let Some(certificate) = &options.root_ca {
        rootca::start(&context, certificate.clone());
    }
    if let Some(load_balancers) = &options.load_balancers {
        loadbalancer::start(&context, load_balancers.clone());
    }
    if let Some(ipam) = options.node_ipam {
        nodeipam::start(&context, ipam);
    }
}
