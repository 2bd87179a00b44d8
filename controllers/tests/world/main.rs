//! The controllers on a real API server, with a stand-in for kubelet and scheduler, over a transport that
//! fails in all the ways that a network does: what they keep, they must keep then.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod autoscalers;
mod claims;
mod collecting;
mod crashes;
mod daemons;
mod disruptions;
mod faults;
mod jobs;
mod limits;
mod lost;
mod quotas;
mod rollouts;
mod rootca;
mod stateful;
mod support;
mod survival;
mod tokens;
