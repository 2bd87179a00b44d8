//! One server a cluster and machine: a locked file that holds the process id.
//!
//! The lock is the kernel's, so it is gone with the process, however that ended.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};

use super::settings::Place;
use crate::failure::Failure;

/// Held by the running server.
pub(crate) struct Lock {
    _held: Flock<File>,
}

impl Lock {
    /// Takes the lock and writes this process's id.
    pub(crate) fn take(place: &Place) -> Result<Self, Failure> {
        let path = place.lock();
        std::fs::create_dir_all(place.run())?;
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        let mut held = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
            Failure::new(format!("a server of the cluster \"{}\" runs already", place.name()))
                .hint("`decapod status` shows it; --name and --data-dir make another cluster")
        })?;
        held.set_len(0)?;
        held.write_all(std::process::id().to_string().as_bytes())?;
        std::fs::write(data_file(place), std::path::absolute(place.data())?.as_os_str().as_bytes())?;
        Ok(Self { _held: held })
    }

    /// The process id of the running server, if one runs.
    ///
    /// # Errors
    /// That it runs on another data folder: then it is somebody else's cluster of the same name.
    pub(crate) fn holder(place: &Place) -> Result<Option<i32>, Failure> {
        let mut file = match OpenOptions::new().read(true).write(true).open(place.lock()) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Failure::new(format!("{} cannot be opened: {e}", place.lock().display()))),
        };
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // Nobody holds it; what we took is given back at once.
            Ok(_free) => Ok(None),
            Err(_) => {
                same_data(place)?;
                Ok(text.trim().parse().ok())
            }
        }
    }
}

/// Where the data folder of the running server is told.
fn data_file(place: &Place) -> PathBuf {
    place.run().join("data-dir")
}

fn same_data(place: &Place) -> Result<(), Failure> {
    // A server that has just taken the lock has not told it yet.
    let Ok(told) = std::fs::read(data_file(place)) else { return Ok(()) };
    let theirs = PathBuf::from(OsString::from_vec(told));
    if theirs == std::path::absolute(place.data())? {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the cluster \"{}\" runs with its data in {}, not in {}",
        place.name(),
        theirs.display(),
        place.data().display()
    ))
    .hint("--data-dir says which cluster is meant, --name makes another"))
}
