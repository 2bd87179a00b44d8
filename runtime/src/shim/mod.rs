//! The process that stands between the agent and the containers of one pod.
//!
//! **Invariant**: it has one thread, from start to end; `libcontainer` may clone it. It keeps
//! nothing that is not also on disk or in the kernel, besides the streams of its containers: an
//! agent may come and go as it likes.
//!
//! The shim lives in its pod's namespaces, is the reaper of all that runs in the pod, and ends
//! when it is told to.

mod container;
mod enter;
mod holder;
mod launch;
mod log;
mod privileges;
mod seccomp;
mod server;
mod setup;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(crate) use container::set_window_size;
#[cfg(test)]
pub(crate) use seccomp::program as seccomp_program;
pub(crate) use setup::NAMESPACES;

use crate::protocol::Setup;
use crate::sys::durable;

/// The argument by which a process is told to be a shim.
pub const ARGUMENT: &str = "shim";

/// What the agent waits for.
pub(crate) const READY: &str = "ready";

/// Runs a shim; to be called before any thread is started. `args` are those after
/// [`ARGUMENT`]: the sandbox's state directory and its run directory.
pub fn main(args: &[OsString]) -> ExitCode {
    let [state, run] = args else {
        eprintln!("usage: {ARGUMENT} STATE-DIR RUN-DIR (started by the agent, not by hand)");
        return ExitCode::from(2);
    };
    let (state, run) = (PathBuf::from(state), PathBuf::from(run));
    let server = match prepare(&state, &run) {
        Ok(server) => server,
        Err(error) => return report(&error.to_string(), ExitCode::FAILURE),
    };
    report(READY, ExitCode::SUCCESS);
    match server.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shim of {}: {error}", state.display());
            ExitCode::FAILURE
        }
    }
}

fn prepare(state: &Path, run: &Path) -> std::io::Result<server::Server> {
    let setup: Setup = durable::read_json(&state.join("shim.json"))?
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, "no shim.json"))?;
    let (init, protection) = setup::sandbox(&setup, run)?;
    server::Server::new(run, init, protection)
}

/// Tells the agent how it went, and lets go of the pipe to it.
fn report(text: &str, code: ExitCode) -> ExitCode {
    let mut output = std::io::stdout();
    // An agent that does not listen any more has given this sandbox up.
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).ok();
    setup::close_stdout();
    code
}
