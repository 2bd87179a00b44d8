//! Which pod sandbox has which address of this node.
//!
//! An allocation is a file named by the address, so that an address cannot be given twice. The files
//! outlive the process, not the machine: after a reboot no sandbox lives, and `reconcile` frees what is
//! left. So a file is made whole by a rename, and never synced.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::HostPort;

/// The address that a sandbox has, and what is opened for it on the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Allocation {
    /// The id of the sandbox.
    pub(crate) sandbox_id: String,
    /// Its host ports.
    #[serde(default)]
    pub(crate) host_ports: Vec<HostPort>,
}

/// Why an address could not be given or freed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All addresses of the node are in use.
    #[error("no free address in {0}: every one belongs to a pod")]
    Exhausted(Ipv4Net),
    /// The allocations on disk could not be read or written.
    #[error("cannot keep allocations in {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// The addresses of a node.
#[derive(Debug)]
pub(crate) struct Ipam {
    folder: PathBuf,
    range: Ipv4Net,
    allocations: BTreeMap<Ipv4Addr, Allocation>,
    /// The search for a free address goes on after this one, so that an address rests before it is
    /// given again: peers may still hold connections to it.
    last: Ipv4Addr,
}

impl Ipam {
    /// Opens the allocations that are kept in `folder`. What is no whole allocation is deleted: it was
    /// torn by a crash of the machine, which no sandbox survived.
    pub(crate) fn open(folder: &Path, range: Ipv4Net) -> Result<Self, Error> {
        let failed = |source| Error::Io { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let mut allocations = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let text = fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            match (name, serde_json::from_slice(&text)) {
                (Some(address), Ok(allocation)) if range.contains(&address) => {
                    allocations.insert(address, allocation);
                }
                _ => {
                    tracing::warn!(path = %path.display(), "deleting what is no allocation of this node");
                    remove(&path)?;
                }
            }
        }
        let last = allocations.keys().next_back().copied().unwrap_or_else(|| gateway(range));
        Ok(Self { folder: folder.to_owned(), range, allocations, last })
    }

    /// The address of a sandbox: the one that it has, or a free one.
    pub(crate) fn allocate(&mut self, sandbox_id: &str, host_ports: &[HostPort]) -> Result<Ipv4Addr, Error> {
        let address = match self.find(sandbox_id) {
            Some(address) => address,
            None => self.free_address()?,
        };
        let allocation = Allocation { sandbox_id: sandbox_id.to_owned(), host_ports: host_ports.to_vec() };
        if self.allocations.get(&address) != Some(&allocation) {
            self.write(address, &allocation)?;
            self.allocations.insert(address, allocation);
            self.last = address;
        }
        Ok(address)
    }

    /// Takes the address of a sandbox back.
    pub(crate) fn free(&mut self, sandbox_id: &str) -> Result<Option<(Ipv4Addr, Allocation)>, Error> {
        let Some(address) = self.find(sandbox_id) else { return Ok(None) };
        remove(&self.folder.join(address.to_string()))?;
        Ok(self.allocations.remove(&address).map(|allocation| (address, allocation)))
    }

    /// The address of a sandbox.
    pub(crate) fn find(&self, sandbox_id: &str) -> Option<Ipv4Addr> {
        let found = self.allocations.iter().find(|(_, allocation)| allocation.sandbox_id == sandbox_id);
        found.map(|(address, _)| *address)
    }

    /// All allocations.
    pub(crate) fn allocations(&self) -> &BTreeMap<Ipv4Addr, Allocation> {
        &self.allocations
    }

    fn free_address(&self) -> Result<Ipv4Addr, Error> {
        let is_free =
            |address: &Ipv4Addr| *address != gateway(self.range) && !self.allocations.contains_key(address);
        let after = self.range.hosts().filter(|address| *address > self.last);
        let before = self.range.hosts().filter(|address| *address <= self.last);
        after.chain(before).find(is_free).ok_or(Error::Exhausted(self.range))
    }

    fn write(&self, address: Ipv4Addr, allocation: &Allocation) -> Result<(), Error> {
        let path = self.folder.join(address.to_string());
        let draft = self.folder.join(format!("{address}.new"));
        let text = serde_json::to_vec(allocation).expect("strings and numbers always serialize");
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .map_err(|source| Error::Io { path, source })
    }
}

/// The address of the node's bridge: the first of its range.
pub(crate) fn gateway(range: Ipv4Net) -> Ipv4Addr {
    range.hosts().next().unwrap_or_else(|| range.network())
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn a_sandbox_keeps_its_address_over_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(folder.path(), range("10.0.0.0/24")).unwrap();
        let first = ipam.allocate("a", &[]).unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(ipam.allocate("a", &[]).unwrap(), first);
        let mut again = Ipam::open(folder.path(), range("10.0.0.0/24")).unwrap();
        assert_eq!(again.allocate("a", &[]).unwrap(), first);
        assert_eq!(again.allocate("b", &[]).unwrap(), Ipv4Addr::new(10, 0, 0, 3));
    }

    #[test]
    fn a_freed_address_rests_until_the_others_were_given() {
        let folder = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(folder.path(), range("10.0.0.0/29")).unwrap();
        let first = ipam.allocate("0", &[]).unwrap();
        ipam.free("0").unwrap();
        for n in 1..5 {
            assert_ne!(ipam.allocate(&n.to_string(), &[]).unwrap(), first);
        }
        assert_eq!(ipam.allocate("5", &[]).unwrap(), first);
        assert!(matches!(ipam.allocate("6", &[]), Err(Error::Exhausted(_))));
    }

    #[test]
    fn a_torn_allocation_is_free() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("10.0.0.2"), "{\"sandbox_id\":").unwrap();
        fs::write(folder.path().join("10.0.0.3.new"), "{}").unwrap();
        let mut ipam = Ipam::open(folder.path(), range("10.0.0.0/24")).unwrap();
        assert_eq!(ipam.allocate("a", &[]).unwrap(), Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn freeing_twice_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(folder.path(), range("10.0.0.0/24")).unwrap();
        ipam.allocate("a", &[]).unwrap();
        assert!(ipam.free("a").unwrap().is_some());
        assert!(ipam.free("a").unwrap().is_none());
    }
}
