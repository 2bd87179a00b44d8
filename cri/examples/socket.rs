//! The embedded runtime on a socket, without Kubernetes: `socket DIR [ARCHIVE...]`, then
//! `crictl --runtime-endpoint unix://DIR/cri.sock`. Needs root. Pods have the host's network only.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use decapod_client::clock::SystemClock;
use decapod_client::task::Supervisor;
use decapod_cri::Server;
use decapod_cri::stream::Host;
use decapod_runtime::{Attachment, Embedded, Network, Options, Runtime, Source, shim};

struct NoNetwork;

#[async_trait]
impl Network for NoNetwork {
    async fn attach(&self, _: &Attachment) -> Result<Vec<IpAddr>, Source> {
        Err("pods have the host's network only".into())
    }

    async fn detach(&self, _: &Attachment) -> Result<(), Source> {
        Ok(())
    }

    async fn ready(&self) -> Result<(), Source> {
        Ok(())
    }
}

async fn serve(dir: &Path, archives: &[OsString]) -> Result<(), Source> {
    let options = Options::new(dir.join("data"), dir.join("run"), Arc::new(NoNetwork))?;
    let runtime = Embedded::open(options).await?;
    for archive in archives {
        for image in runtime.image_import(Path::new(archive)).await? {
            println!("{:?}", image.repo_tags);
        }
    }
    let supervisor = Supervisor::new();
    let host = Host { clock: Arc::new(SystemClock::new()), supervisor: supervisor.clone() };
    let socket = dir.join("cri.sock");
    Server::bind(Arc::new(runtime.clone()), &socket, host).await?.run();
    println!("unix://{}", socket.display());
    tokio::signal::ctrl_c().await?;
    runtime.close().await;
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [first, rest @ ..] if first == shim::ARGUMENT => shim::main(rest),
        [dir, archives @ ..] => {
            let runtime = tokio::runtime::Runtime::new().expect("a machine has room for threads");
            match runtime.block_on(serve(Path::new(dir), archives)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("socket: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        [] => {
            eprintln!("usage: socket DIR [ARCHIVE...]");
            ExitCode::FAILURE
        }
    }
}
