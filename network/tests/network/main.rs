//! The network of a node against the real kernel, in network namespaces made for each test.

mod api;
mod dns;
mod pods;
mod services;
mod support;
