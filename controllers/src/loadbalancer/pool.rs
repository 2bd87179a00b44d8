//! The addresses that load balancers can have.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Addresses, as CIDR blocks and ranges with commas between them: `192.0.2.0/28,203.0.113.5-203.0.113.9`. Every
/// address of a block counts, the first and the last too. Empty if there is no pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    text: String,
    /// First and last, both included.
    ranges: Vec<(u32, u32)>,
}

/// Why a text is no pool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is neither a CIDR block (192.0.2.0/28) nor a range (192.0.2.5-192.0.2.9) of IPv4 addresses")]
pub struct InvalidPool(String);

impl Pool {
    /// Whether there is no pool.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether an address is of the pool.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&u32::from(address)))
    }

    /// Whether any address from the first to the last is of the pool.
    pub fn overlaps(&self, first: Ipv4Addr, last: Ipv4Addr) -> bool {
        self.ranges.iter().any(|(low, high)| u32::from(first) <= *high && *low <= u32::from(last))
    }

    /// All addresses, in the order in which they are given out.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.ranges.iter().flat_map(|(first, last)| (*first..=*last).map(Ipv4Addr::from))
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Pool {
    type Err = InvalidPool;

    fn from_str(text: &str) -> Result<Self, InvalidPool> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let ranges = parts.map(|part| range(part).ok_or_else(|| InvalidPool(part.to_owned())));
        Ok(Self { text: text.to_owned(), ranges: ranges.collect::<Result<_, _>>()? })
    }
}

fn range(text: &str) -> Option<(u32, u32)> {
    let address = |text: &str| text.trim().parse::<Ipv4Addr>().ok().map(u32::from);
    if let Some((first, last)) = text.split_once('-') {
        return Some((address(first)?, address(last)?)).filter(|(first, last)| first <= last);
    }
    let (network, bits) = text.split_once('/').unwrap_or((text, "32"));
    let bits: u32 = bits.parse().ok().filter(|bits| *bits <= 32)?;
    let hosts = u32::MAX.checked_shr(bits).unwrap_or(0);
    let network = address(network).filter(|network| network & hosts == 0)?;
    Some((network, network | hosts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_ranges_make_a_pool() {
        let pool: Pool = "192.0.2.0/30, 203.0.113.9,198.51.100.1-198.51.100.2".parse().unwrap();
        let all: Vec<_> = pool.addresses().map(|address| address.to_string()).collect();
        let expected = [
            "192.0.2.0",
            "192.0.2.1",
            "192.0.2.2",
            "192.0.2.3",
            "203.0.113.9",
            "198.51.100.1",
            "198.51.100.2",
        ];
        assert_eq!(all, expected);
        assert!(pool.contains([192, 0, 2, 3].into()) && !pool.contains([192, 0, 2, 4].into()));
        assert!("".parse::<Pool>().unwrap().is_empty());
        assert!(pool.overlaps([192, 0, 1, 9].into(), [192, 0, 2, 0].into()));
        assert!(!pool.overlaps([192, 0, 2, 4].into(), [198, 51, 100, 0].into()));
        for bad in ["192.0.2.1/30", "192.0.2.9-192.0.2.1", "x", "192.0.2.0/33", "::1/128"] {
            assert_eq!(bad.parse::<Pool>(), Err(InvalidPool(bad.to_owned())));
        }
    }
}
