//! Which part of the pod network a node gets: the lowest free block.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Why a text is no IPv4 network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no IPv4 network such as 10.244.0.0/16")]
pub struct InvalidCidr(String);

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    base: u32,
    bits: u8,
}

impl std::str::FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let invalid = || InvalidCidr(text.to_owned());
        let (address, bits) = text.split_once('/').ok_or_else(invalid)?;
        let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
        let bits: u8 = bits.parse().ok().filter(|bits| *bits <= 32).ok_or_else(invalid)?;
        Ok(Self { base: u32::from(address) & mask(bits), bits })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.bits)
    }
}

impl Cidr {
    fn last(self) -> u32 {
        self.base | !mask(self.bits)
    }
}

fn mask(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

/// The lowest block of `bits` bits within `network` that overlaps none of those in use. It goes over those once: there
/// are as many as nodes, and each node asks.
pub(super) fn free_block(network: Cidr, bits: u8, used: &BTreeSet<Cidr>) -> Option<Cidr> {
    let mut candidate = Cidr { base: network.base & mask(bits), bits };
    if bits < network.bits {
        return None;
    }
    // By where they begin: one that lies behind the candidate tells that nothing of what follows overlaps it.
    for one in used {
        if one.base > candidate.last() {
            break;
        }
        if one.last() >= candidate.base {
            // Behind what is in use, at the next block's boundary.
            let next = one.last().max(candidate.last()).checked_add(1)?;
            candidate.base = next.checked_add(!mask(bits))? & mask(bits);
        }
    }
    (candidate.last() <= network.last()).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(blocks: &[&str]) -> BTreeSet<Cidr> {
        blocks.iter().map(|block| block.parse().unwrap()).collect()
    }

    fn free(network: &str, bits: u8, blocks: &[&str]) -> Option<String> {
        free_block(network.parse().unwrap(), bits, &used(blocks)).map(|block| block.to_string())
    }

    #[test]
    fn the_lowest_free_block_is_taken() {
        assert_eq!(free("10.244.0.0/16", 24, &[]).unwrap(), "10.244.0.0/24");
        let blocks = ["10.244.0.0/24", "10.244.1.0/24", "10.244.3.0/24"];
        assert_eq!(free("10.244.0.0/16", 24, &blocks).unwrap(), "10.244.2.0/24");
        assert_eq!(free("10.244.0.0/16", 24, &["10.244.0.0/23"]).unwrap(), "10.244.2.0/24");
        assert_eq!(free("10.244.0.0/16", 24, &["10.244.0.128/25"]).unwrap(), "10.244.1.0/24");
        // One within another, and one that lies elsewhere.
        let blocks = ["10.0.0.0/24", "10.244.0.0/22", "10.244.1.0/24", "10.244.4.0/30", "10.244.6.0/24"];
        assert_eq!(free("10.244.0.0/16", 24, &blocks).unwrap(), "10.244.5.0/24");
    }

    #[test]
    fn a_full_network_has_no_block() {
        assert_eq!(free("10.244.0.0/24", 24, &["10.244.0.0/24"]), None);
        assert_eq!(free("255.255.255.0/24", 25, &["255.255.255.0/24"]), None);
        assert_eq!(free("10.244.0.0/24", 16, &[]), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/64", "10.0.0/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
