//! The network of a node: addresses and links of pods, the service proxy, cluster DNS.
//!
//! Each part stands alone and sees the cluster only through the API: [`pod`] makes the data path of one
//! node and the ways to the others, [`link`] the wire between nodes that are namespaces of one machine,
//! [`proxy`] turns Services and EndpointSlices into nf_tables maps, [`policy`] NetworkPolicies into filters,
//! [`dns`] answers for names, [`ingress`] takes HTTP from outside to Services.

pub mod dns;
mod health;
pub mod ingress;
mod key;
pub mod link;
mod netlink;
mod netns;
pub mod pod;
pub mod policy;
mod protocol;
pub mod proxy;
mod sysctl;
mod world;

pub use netlink::Error as NetlinkError;
pub use netns::{Error as NetnsError, Netns};
pub use protocol::Protocol;
pub use sysctl::Error as SysctlError;
