//! Wire contracts in protobuf.
//!
//! **Invariant**: names, numbers and types of all fields are those of the public interfaces, so
//! that each side can be exchanged for another implementation. The Rust code is generated from
//! `protos/*.proto` at build time, without protoc.

/// The Container Runtime Interface v1 (`runtime.v1`): messages, clients and servers.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the Container Runtime Interface documents the fields"
)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// Health of a gRPC server (`grpc.health.v1`), as gRPC probes ask for it.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; protos/health.proto documents the fields"
)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

impl std::fmt::Debug for cri::AuthConfig {
    /// Names the registry and the user; secrets are never shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("server_address", &self.server_address)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::cri;

    /// A slip in a field number would go unseen between our own two sides: compare with the
    /// bytes that another implementation sends.
    #[test]
    fn field_numbers_are_those_of_the_interface() {
        let image = cri::ImageSpec { image: "a".into(), image_ref: "b".into(), ..Default::default() };
        assert_eq!(image.encode_to_vec(), [0x0a, 1, b'a', 0xa2, 0x01, 1, b'b']);
        let config = cri::ContainerConfig { stop_signal: cri::Signal::Sigterm.into(), ..Default::default() };
        assert_eq!(config.encode_to_vec(), [0x90, 0x01, 23]);
        let context = cri::LinuxContainerSecurityContext {
            run_as_group: Some(cri::Int64Value { value: 7 }),
            ..Default::default()
        };
        assert_eq!(context.encode_to_vec(), [0x62, 2, 0x08, 7]);
    }

    #[test]
    fn debug_shows_no_secret() {
        let auth = cri::AuthConfig { username: "u".into(), password: "hunter2".into(), ..Default::default() };
        let text = format!("{auth:?}");
        assert!(text.contains("\"u\"") && !text.contains("hunter2"), "{text}");
    }
}
