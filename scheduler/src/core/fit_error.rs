//! Why no node would do, in the words that people and tools know from Kubernetes.

use std::collections::BTreeMap;
use std::fmt;

use super::plugin::{Plugin, Set};
use super::plugins::Rejection;
use super::preempt::Useless;

/// All nodes were looked at, and none will do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FitError {
    /// The nodes that exist.
    pub(crate) nodes: usize,
    /// Why no node at all would do; then none was looked at.
    refusal: Option<String>,
    /// How often each reason was given.
    reasons: BTreeMap<String, usize>,
    /// What preemption found, per reason; `None` where it was not considered.
    preemption: Option<Preempt>,
    /// The plugins that rejected a node.
    pub(crate) plugins: Set,
}

/// What came of the thought of removing other pods.
#[derive(Debug, PartialEq, Eq)]
enum Preempt {
    NotEligible(&'static str),
    Tried(BTreeMap<String, usize>),
}

impl FitError {
    pub(crate) fn new(nodes: usize) -> Self {
        let (reasons, plugins) = (BTreeMap::new(), Set::default());
        Self { nodes, refusal: None, reasons, preemption: None, plugins }
    }

    /// No node at all will do: `plugin` says so.
    pub(crate) fn refused(nodes: usize, plugin: Plugin, why: &str) -> Self {
        let mut error = Self::new(nodes);
        error.plugins.insert(plugin);
        error.refusal = Some(why.to_owned());
        error
    }

    /// Notes that so many nodes were rejected.
    pub(crate) fn note(&mut self, rejection: &Rejection, nodes: usize) {
        self.plugins.insert(rejection.plugin);
        for reason in &rejection.reasons {
            *self.reasons.entry(reason.clone().into_owned()).or_default() += nodes;
        }
    }

    /// Notes that the pod may not remove others, and why.
    pub(crate) fn note_not_eligible(&mut self, why: &'static str) {
        self.preemption = Some(Preempt::NotEligible(why));
    }

    /// Notes why removing pods of lower priority from each node brings nothing.
    pub(crate) fn note_preemption(&mut self, outcomes: impl IntoIterator<Item = (Useless, usize)>) {
        let mut tried: BTreeMap<String, usize> = BTreeMap::new();
        for (useless, nodes) in outcomes {
            for reason in useless.0 {
                *tried.entry(reason.into_owned()).or_default() += nodes;
            }
        }
        self.preemption = Some(Preempt::Tried(tried));
    }
}

/// `2 b, 10 a`: sorted as text, as Kubernetes does it.
fn join(reasons: &BTreeMap<String, usize>) -> String {
    let mut texts: Vec<_> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    texts.sort();
    texts.join(", ")
}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        match &self.refusal {
            Some(why) => write!(f, "0/{} nodes are available: {why}.", self.nodes)?,
            None => write!(f, "0/{} nodes are available: {}.", self.nodes, join(&self.reasons))?,
        }
        // Kubernetes asks dynamic resource allocation first, which has nothing to give back.
        const CLAIMS: &str = "no new claims to deallocate";
        match &self.preemption {
            None => Ok(()),
            Some(Preempt::NotEligible(why)) => write!(f, " {CLAIMS}, preemption: {why}."),
            Some(Preempt::Tried(tried)) => {
                write!(f, " {CLAIMS}, preemption: 0/{} nodes are available: {}.", self.nodes, join(tried))
            }
        }
    }
}

impl std::error::Error for FitError {}
