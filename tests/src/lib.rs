//! What the end-to-end tests share: a real cluster, real clients, real images, and the search for what
//! a test leaves behind.

pub mod cluster;
pub mod contract;
pub mod etcd;
pub mod images;
pub mod leaks;
pub mod machine;
pub mod node;
pub mod nodes;
pub mod poll;
pub mod redis;
pub mod registry;
pub mod server;
pub mod suite;
pub mod tools;
pub mod transcript;
