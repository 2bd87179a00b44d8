//! The kernel's network configuration over netlink: links, addresses and routes ([`route`]), nf_tables
//! ([`nft`]) and connection tracking ([`conntrack`]).

use std::io;

pub(crate) mod conntrack;
pub(crate) mod expression;
pub(crate) mod nft;
pub(crate) mod route;
mod socket;
pub(crate) mod tunnel;
mod wire;

pub(crate) use socket::Socket;

/// Why the kernel's network configuration could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket: missing privileges, or a kernel without the family.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The request could not be handed to the kernel.
    #[error("cannot send to the kernel")]
    Send(#[source] io::Error),
    /// The kernel's answer could not be read.
    #[error("cannot read the kernel's answer")]
    Receive(#[source] io::Error),
    /// The kernel refused the request.
    #[error("the kernel refused: {operation} {detail}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// Which part of it, where that is known.
        detail: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// An interface that must exist does not.
    #[error("no interface named {0}")]
    NoLink(String),
}

impl Error {
    /// Whether what was to be removed is not there.
    pub(crate) fn is_absent(&self) -> bool {
        match self {
            Self::Refused { source, .. } => {
                matches!(
                    source.raw_os_error(),
                    Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL)
                )
            }
            Self::NoLink(_) => true,
            _ => false,
        }
    }

    /// Whether there is no way to an address.
    pub(crate) fn is_unreachable(&self) -> bool {
        let Self::Refused { source, .. } = self else { return false };
        matches!(source.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH))
    }

    /// Whether what was to be made is there already.
    pub(crate) fn is_present(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(libc::EEXIST))
    }
}
