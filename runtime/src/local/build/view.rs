//! A view of a stage's files that can be written.
//!
//! **Invariant**: it is mounted in a mount namespace of a thread of its own. Whatever happens to the thread
//! or to this process, the kernel takes the mounts away with it.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::dockerfile::{Error, Place};
use crate::sys::mount::{Overlay, unmount};

/// Mounted layers.
pub(super) struct View {
    /// Where the directories of all layers are.
    base: PathBuf,
    root: PathBuf,
    mounted: bool,
}

impl View {
    /// Mounts layers, the topmost first; what is written goes to `upper` in the directory.
    fn new(base: &Path, lower: &[String], directory: &Path) -> io::Result<Self> {
        let [upper, work, root] = ["upper", "work", "root"].map(|name| directory.join(name));
        for path in [&upper, &work, &root] {
            std::fs::create_dir_all(path)?;
        }
        let base = base.to_owned();
        if lower.is_empty() {
            // Of nothing there is no overlay.
            return Ok(View { base, root: upper, mounted: false });
        }
        Overlay { lower, base: &base, upper: &upper, work: &work, target: &root }.mount()?;
        Ok(View { base, root, mounted: true })
    }

    /// The root of the files.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Another stage's files, for as long as what is returned lives.
    pub(super) fn other(&self, lower: &[String], directory: &Path) -> io::Result<View> {
        View::new(&self.base, lower, directory)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = unmount(&self.root)
        {
            tracing::debug!(%error, "goes with its thread's namespace");
        }
    }
}

/// Carries out work on a view, whose changes are in `upper` of the directory then.
pub(super) fn change<F>(
    base: PathBuf,
    lower: Vec<String>,
    directory: PathBuf,
    place: &Place,
    work: F,
) -> Result<(), Error>
where
    F: FnOnce(&View) -> Result<(), Error> + Send + 'static,
{
    let own = place.clone();
    let failed = move |error: io::Error| own.error(format!("the image's files cannot be mounted: {error}"));
    let thread = std::thread::Builder::new().name("image-build".to_owned()).spawn(move || {
        let view = isolate().and_then(|()| View::new(&base, &lower, &directory)).map_err(failed)?;
        work(&view)
    });
    let thread = thread.map_err(|error| place.error(format!("no thread could be started: {error}")))?;
    thread.join().map_err(|_| place.error("failed unexpectedly: this is a fault of decapod"))?
}

/// Gives the thread mounts of its own; what is unmounted elsewhere goes here as well.
fn isolate() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}
