//! Which of several servers schedules and runs the controllers: whoever holds the Lease of each, under the names of
//! kube-scheduler and kube-controller-manager, so that these take part like any other.
//!
//! With the embedded store there is one server only, which a lock on its data says; no Lease is needed.

use sha2::{Digest, Sha256};

use super::settings::{Place, write_whole};
use crate::failure::Failure;

/// The Lease of whoever schedules.
pub(super) const SCHEDULER: &str = "kube-scheduler";
/// The Lease of whoever runs the controllers.
pub(super) const CONTROLLERS: &str = "kube-controller-manager";

/// The name of this server: by the machine, by where its data lies, and by chance once and for all. Copied data makes
/// another server.
pub(super) fn identity(place: &Place) -> Result<String, Failure> {
    let host = nix::unistd::gethostname().map_err(std::io::Error::from)?;
    let mut hash = Sha256::new();
    hash.update(chance(place)?);
    hash.update(place.data().as_os_str().as_encoded_bytes());
    let hash: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}_{hash}", host.to_string_lossy().to_lowercase()))
}

/// Made at the first start and kept with the data.
fn chance(place: &Place) -> Result<String, Failure> {
    let file = place.data().join("server-id");
    match std::fs::read_to_string(&file) {
        Ok(known) if !known.is_empty() => return Ok(known),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::new(format!("{} cannot be read: {error}", file.display())));
        }
        _ => {}
    }
    let mut chance = [0; 16];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut chance)
        .map_err(|_| Failure::new("the machine has no randomness to name this server by"))?;
    let chance: String = chance.iter().map(|byte| format!("{byte:02x}")).collect();
    write_whole(&file, chance.as_bytes(), 0o600)?;
    Ok(chance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::settings::Which;

    #[test]
    fn a_server_keeps_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let which = |name: &str| Which { name: name.to_owned(), data_dir: dir.path().join(name) };
        let (one, other) = (which("one").place().unwrap(), which("other").place().unwrap());
        std::fs::create_dir_all(one.data()).unwrap();
        std::fs::create_dir_all(other.data()).unwrap();
        assert_eq!(identity(&one).unwrap(), identity(&one).unwrap());
        assert_ne!(identity(&one).unwrap(), identity(&other).unwrap());
    }
}
