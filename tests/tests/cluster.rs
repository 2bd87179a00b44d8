//! End-to-end tests on one real cluster.

fn main() {}
