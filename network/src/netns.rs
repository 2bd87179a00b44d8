//! The network namespace in which a node's part of the network lives: the process's own, or one that is
//! mounted somewhere. Further nodes of a local cluster are namespaces of this machine, and tests work in
//! throw-away ones.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};

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
}

impl Netns {
    /// Runs `work` inside the namespace and waits for it. Sockets that it opens stay in the namespace
    /// wherever they are used later.
    ///
    /// A namespace that is not our own is entered by a thread that ends with the work: the namespace of
    /// a thread that goes on to do other things is never changed.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
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
