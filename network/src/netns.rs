//! The network namespace in which a node's part of the network lives: the process's own, or one that is
//! mounted somewhere. Further nodes of a local cluster are namespaces of this machine, and tests work in
//! throw-away ones.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Netns {
    /// The namespace of this process.
    #[default]
    Own,
    /// The namespace that is mounted at this path.
    Path(PathBuf),
}

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is no namespace that we may open.
    #[error("cannot open the network namespace {}", path.display())]
    Open {
        /// Where it was looked for.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Entering was refused: it needs `CAP_SYS_ADMIN`.
    #[error("cannot enter the network namespace {}", path.display())]
    Enter {
        /// Which namespace.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// No thread could be made to enter it.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// None could be made: it needs `CAP_SYS_ADMIN`.
    #[error("cannot make the network namespace {}", path.display())]
    Make {
        /// Where it was to be.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// One could not be removed.
    #[error("cannot remove the network namespace {}", path.display())]
    Remove {
        /// Where it is.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl Netns {
    /// Makes a namespace and mounts it at `path`, as `ip netns` does; that there is one already is fine.
    ///
    /// # Errors
    /// Missing privileges.
    pub fn make(path: &Path) -> Result<Self, Error> {
        let namespace = Self::Path(path.to_owned());
        let failed = |source| Error::Make { path: path.to_owned(), source };
        if path.exists() && namespace.run(|| ()).is_ok() {
            return Ok(namespace);
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        File::options().create(true).append(true).open(path).map_err(failed)?;
        // Made by a thread that ends: the namespace of one that goes on is never changed.
        let made = std::thread::scope(|scope| {
            let make = || -> nix::Result<()> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                let own = Some("/proc/thread-self/ns/net");
                mount(own, path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            };
            let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, make)?;
            Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        made.map_err(Error::Thread)?.map_err(|errno| failed(errno.into()))?;
        Ok(namespace)
    }

    /// Takes the namespace's mount away: it ends with the last process in it. That there is none is fine.
    ///
    /// # Errors
    /// Missing privileges.
    pub fn unmake(path: &Path) -> Result<(), Error> {
        let failed = |source| Error::Remove { path: path.to_owned(), source };
        match umount2(path, MntFlags::MNT_DETACH) {
            // No mount, or nothing there.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Runs `work` inside the namespace and waits for it. Sockets that it opens stay in the namespace
    /// wherever they are used later, and processes that it starts are in it.
    ///
    /// A namespace that is not our own is entered by a thread that ends with the work: the namespace of
    /// a thread that goes on to do other things is never changed.
    ///
    /// # Errors
    /// No such namespace, or missing privileges.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let Self::Path(path) = self else { return Ok(work()) };
        let file = self.open()?;
        let enter = || setns(&file, CloneFlags::CLONE_NEWNET).map(|()| work());
        let done = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, enter)?;
            Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        done.map_err(Error::Thread)?
            .map_err(|errno| Error::Enter { path: path.clone(), source: io::Error::from(errno) })
    }

    /// The namespace as an open file.
    pub(crate) fn open(&self) -> Result<File, Error> {
        let path = match self {
            Self::Own => PathBuf::from("/proc/self/ns/net"),
            Self::Path(path) => path.clone(),
        };
        File::open(&path).map_err(|source| Error::Open { path, source })
    }
}
