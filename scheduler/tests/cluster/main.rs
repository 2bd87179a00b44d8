//! The scheduler on a real API server, with nodes that are objects only: what it binds, refuses, removes and says.
//! Tests whose names are entries of Kubernetes' conformance suite are written from the entries' descriptions.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod classes;
mod configuration;
mod predicates;
mod preemption;
mod ranges;
mod support;
