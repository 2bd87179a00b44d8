//! The API server as its clients see it: the router with the embedded store, over TLS and in
//! process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod access;
mod admission;
mod apply;
mod audit;
mod authorization;
mod autoscalers;
mod certificates;
mod completed;
mod conformance;
mod deletion;
mod harness;
mod node_identity;
mod objects;
mod operations;
mod peers;
mod plugins;
mod pods;
mod proxy;
mod reads;
mod renewal;
mod reviews;
mod routes;
mod services;
mod strict;
mod tokens;
mod tokens_more;
mod usage;
mod watch;
mod watch_socket;
