//! placeholder
fn main() { let _ = (protox::Compiler::new(["."]), tonic_prost_build::configure()); }
