//! Serves the API on a loopback port with a store of its own, and writes a kubeconfig for its
//! administrator: what other components are tried out against.
//!
//! `cargo run -p decapod-apiserver --example serve -- [DIR] [PORT]`

use std::path::PathBuf;
use std::sync::Arc;

use decapod_apiserver::pki::{ADMIN_USER, CertificateRequest, MASTERS, Pki};
use decapod_apiserver::{Clock, Options, Server, SystemClock};
use decapod_storage::{Embedded, embedded};

type Error = Box<dyn std::error::Error>;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().map_or_else(|| std::env::temp_dir().join("dcp-serve"), PathBuf::from);
    let port: u16 = arguments.next().map_or(Ok(0), |port| port.parse())?;
    std::fs::create_dir_all(&dir)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let pki = Arc::new(Pki::open(&dir.join("pki"), clock.now())?);
    let store = Arc::new(Embedded::open(&dir.join("store"), embedded::Options::default())?);
    let options = Options { listen: ([127, 0, 0, 1], port).into(), ..Options::default() };
    let handle = Server::start(options, store, pki.clone(), clock.clone()).await?;
    let kubeconfig = dir.join("kubeconfig");
    std::fs::write(&kubeconfig, config(&pki, &format!("https://{}", handle.address()), clock.as_ref())?)?;
    println!("serving on {}; KUBECONFIG={}", handle.address(), kubeconfig.display());
    tokio::signal::ctrl_c().await?;
    handle.shutdown().await;
    Ok(())
}

fn config(pki: &Pki, server: &str, clock: &dyn Clock) -> Result<String, Error> {
    use base64::Engine;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let admin = pki.issue(&CertificateRequest::client(ADMIN_USER, &[MASTERS]), clock.now())?;
    Ok(format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: decapod\n\
         clusters:\n- name: decapod\n  cluster: {{server: \"{server}\", certificate-authority-data: {}}}\n\
         users:\n- name: admin\n  user: {{client-certificate-data: {}, client-key-data: {}}}\n\
         contexts:\n- name: decapod\n  context: {{cluster: decapod, user: admin}}\n",
        encode(pki.ca_pem()),
        encode(&admin.certificate_pem),
        encode(&admin.key_pem)
    ))
}
