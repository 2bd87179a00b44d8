//! The network of a node against the real kernel, in network namespaces made for each test.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod api;
mod dns;
mod ingress;
mod manifest;
mod mesh;
mod pods;
mod policies;
mod services;
mod support;
