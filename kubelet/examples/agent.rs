//! Runs one node agent with the embedded runtime against any API server, for pods on the host's network: what the
//! kubelet is tried out with alone.
//!
//! `cargo run -p decapod-kubelet --example agent -- NAME KUBECONFIG DIR PORT [PKI-DIR]`
//!
//! With PKI-DIR (`ca.crt`, `ca.key`) it serves the node's API. `agent down DIR NAME` removes everything.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use decapod_client::clock::{Clock, SystemClock};
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_client::transport;
use decapod_kubelet::{Dependencies, Kubelet, NoServices, Options, ServerOptions, fixed, teardown};
use decapod_runtime::{Attachment, Embedded, ImageConfig, ImageFile, Network, Source, shim};
use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Pods on the host's network need none.
struct NoNetwork;

#[async_trait]
impl Network for NoNetwork {
    async fn attach(&self, _sandbox: &Attachment) -> Result<Vec<IpAddr>, Source> {
        Err("this agent runs only pods with hostNetwork".into())
    }

    async fn detach(&self, _sandbox: &Attachment) -> Result<(), Source> {
        Ok(())
    }

    async fn ready(&self) -> Result<(), Source> {
        Ok(())
    }
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|a| a == shim::ARGUMENT) {
        return shim::main(&arguments[1..]);
    }
    let words: Vec<String> = arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::from)
        .and_then(|runtime| runtime.block_on(run(&words)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", decapod_client::error::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run(words: &[String]) -> Result<(), Error> {
    match words {
        [down, dir, name] if down == "down" => {
            let dir = PathBuf::from(dir);
            let runtime = runtime(&dir, name).await?;
            teardown(&options(&dir, name), &runtime).await?;
            Ok(runtime.remove_all().await?)
        }
        [name, kubeconfig, dir, port] => serve(name, kubeconfig, Path::new(dir), port, None).await,
        [name, kubeconfig, dir, port, pki] => serve(name, kubeconfig, Path::new(dir), port, Some(pki)).await,
        _ => Err("usage: agent NAME KUBECONFIG DIR PORT [PKI-DIR] | agent down DIR NAME".into()),
    }
}

fn options(dir: &Path, name: &str) -> Options {
    Options {
        data_dir: dir.join("data"),
        run_dir: dir.join("run"),
        cgroup_root: format!("/dcp-agent-{name}"),
        ..Options::new(name, vec![IpAddr::from([127, 0, 0, 1])])
    }
}

async fn runtime(dir: &Path, name: &str) -> Result<Embedded, Error> {
    let mut options = decapod_runtime::Options::new(
        dir.join("data/runtime"),
        dir.join("run/runtime"),
        Arc::new(NoNetwork),
    )?;
    options.shim_cgroup = Some(format!("/dcp-agent-{name}-shims"));
    Ok(Embedded::open(options).await?)
}

async fn serve(
    name: &str,
    kubeconfig: &str,
    dir: &Path,
    port: &str,
    pki: Option<&String>,
) -> Result<(), Error> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    // Only fails when somebody installed one before; then that one serves.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let runtime = runtime(dir, name).await?;
    let busybox = ImageFile { source: "/bin/busybox".into(), target: "/bin/busybox".into(), mode: 0o755 };
    let shell = ImageFile { source: "/bin/busybox".into(), target: "/bin/sh".into(), mode: 0o755 };
    runtime.image_from_files("test.internal/busybox:1", vec![busybox, shell], ImageConfig::default()).await?;
    let supervisor = Supervisor::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let client = transport::from_kubeconfig(Path::new(kubeconfig)).await?;
    let informers = Informers::new(client.clone(), supervisor.clone(), clock.clone());
    let mut options = options(dir, name);
    if let Some(pki) = pki {
        options.server = Some(server(Path::new(pki), port.parse()?)?);
    }
    let dependencies = Dependencies {
        client,
        informers,
        runtime: Arc::new(runtime),
        traffic: Arc::new(NoServices),
        supervisor: supervisor.clone(),
        clock,
    };
    Kubelet::new(options, dependencies).await?.run();
    tokio::signal::ctrl_c().await?;
    supervisor.shutdown(Duration::from_secs(2)).await;
    Ok(())
}

fn server(pki: &Path, port: u16) -> Result<ServerOptions, Error> {
    let ca = std::fs::read_to_string(pki.join("ca.crt"))?;
    let key = KeyPair::from_pem(&std::fs::read_to_string(pki.join("ca.key"))?)?;
    let issuer = Issuer::from_ca_cert_pem(&ca, key)?;
    let own = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "system:node:agent");
    let certificate = params.signed_by(&own, &issuer)?;
    Ok(ServerOptions {
        listen: ([127, 0, 0, 1], port).into(),
        certificate: fixed(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.serialize_der())),
        )?,
        client_ca: CertificateDer::from_pem_slice(ca.as_bytes())?,
        allowed_users: vec!["kube-apiserver-kubelet-client".to_owned()],
    })
}
