//! What a cluster survives: its store is moved by snapshots, one of two servers is killed, a member of etcd is lost.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::etcd::Etcd;
use decapod_tests::poll;
use decapod_tests::server::Server;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Pod, Secret};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

/// Far longer than a Lease holds; a loaded machine takes its time.
const PATIENCE: Duration = Duration::from_secs(240);
const NAMESPACE: &str = "default";

fn of<K>(client: &kube::Client) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), NAMESPACE)
}

async fn eventually<F: Future<Output = Result<Result<(), String>>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> Result<()> {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            match look().await {
                Ok(Ok(())) => return,
                Ok(Err(last)) => tracing(what, &last),
                Err(error) => tracing(what, &format!("{error:#}")),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    waited.await.with_context(|| format!("waited {PATIENCE:?} in vain for {what}"))
}

/// The last state is printed where it never came to what was waited for.
fn tracing(what: &str, last: &str) {
    use std::sync::Mutex;
    static LAST: Mutex<String> = Mutex::new(String::new());
    let mut said = LAST.lock().unwrap_or_else(|e| e.into_inner());
    if *said != last {
        println!("{what}: {last}");
        last.clone_into(&mut said);
    }
}

async fn config_map(client: &kube::Client, name: &str) -> Result<()> {
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}, "data": {"is": name}}))?;
    of::<ConfigMap>(client).create(&PostParams::default(), &map).await?;
    Ok(())
}

async fn names(client: &kube::Client) -> Result<BTreeSet<String>> {
    let list = of::<ConfigMap>(client).list(&ListParams::default()).await?;
    Ok(list.items.into_iter().filter_map(|map| map.metadata.name).collect())
}

async fn has_secret(client: &kube::Client) -> Result<()> {
    let secret = of::<Secret>(client).get("password").await?;
    let value = secret.data.unwrap_or_default().remove("p").context("no value")?;
    ensure!(value.0 == b"hidden", "the Secret says something else");
    Ok(())
}

async fn has_pods(client: &kube::Client, count: usize) -> Result<()> {
    eventually(&format!("{count} pods"), async || {
        let pods = of::<Pod>(client).list(&ListParams::default()).await?.items.len();
        Ok(if pods == count { Ok(()) } else { Err(format!("{pods} pods")) })
    })
    .await
}

async fn scale(client: &kube::Client, replicas: usize) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    of::<Deployment>(client).patch("web", &PatchParams::default(), &patch).await?;
    has_pods(client, replicas).await
}

async fn leader(client: &kube::Client) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-system");
    let lease = leases.get("kube-controller-manager").await?;
    lease.spec.and_then(|spec| spec.holder_identity).context("nobody leads")
}

/// Waits until the `kubernetes` Service leads to these ports.
async fn leads_to(client: &kube::Client, ports: &[u16]) -> Result<()> {
    let wanted: BTreeSet<i32> = ports.iter().map(|port| i32::from(*port)).collect();
    eventually(&format!("the kubernetes Service to lead to {ports:?}"), async || {
        let endpoints = of::<Endpoints>(client).get("kubernetes").await?;
        let subsets = endpoints.subsets.unwrap_or_default();
        let found: BTreeSet<i32> =
            subsets.into_iter().filter_map(|one| Some(one.ports?.first()?.port)).collect();
        Ok(if found == wanted { Ok(()) } else { Err(format!("{found:?}")) })
    })
    .await
}

fn copy_keys(from: &Server, to: &Server) -> Result<()> {
    let (from, to) = (from.data().join("pki"), to.data().join("pki"));
    fs::create_dir_all(&to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

fn refused(result: Result<String>, words: &[&str]) -> Result<()> {
    let Err(error) = result else { bail!("it was not refused") };
    let error = format!("{error:#}");
    ensure!(words.iter().all(|word| error.contains(word)), "{error}");
    Ok(())
}

/// From the embedded store into etcd; there two servers, of which one is killed; and back.
pub(crate) fn a_store_is_moved_and_one_of_two_servers_is_lost(cluster: &Cluster) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(moved_and_lost(cluster.scratch()))
}

async fn moved_and_lost(scratch: &Path) -> Result<()> {
    let file = |name: &str| scratch.join(name).display().to_string();
    let mut first = Server::prepare("dcprecover", Vec::new())?;
    first.start().await?;
    let client = first.client().await?;
    let secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": "password"}, "stringData": {"p": "hidden"}}))?;
    of::<Secret>(&client).create(&PostParams::default(), &secret).await?;
    let deployment: Value = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2,
        "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "none.invalid/none"}]}}}});
    let deployment: Deployment = serde_json::from_value(deployment)?;
    of::<Deployment>(&client).create(&PostParams::default(), &deployment).await?;
    has_pods(&client, 2).await?;
    config_map(&client, "before").await?;
    let said = first.decapod(&["snapshot", "save", &file("one.snapshot")])?;
    ensure!(said.contains("embedded store") && said.contains("pki"), "{said}");
    config_map(&client, "after").await?;
    first.stop()?;
    damaged_is_refused(&first, scratch)?;
    refused(first.decapod(&["snapshot", "restore", &file("one.snapshot")]), &["objects already", "--force"])?;

    let mut etcd = Etcd::start(3, None)?;
    let datastore = format!("--datastore=etcd={}", etcd.endpoints());
    let restored = first.decapod(&["snapshot", "restore", &file("one.snapshot"), &datastore])?;
    ensure!(restored.contains("restored"), "{restored}");
    let mut flags = vec![datastore];
    flags.extend(
        ["lease-duration=10s", "renew-deadline=5s", "retry-period=1s"].map(|f| format!("--leader-elect-{f}")),
    );
    first.set_flags(flags.clone());
    first.start().await?;
    let client = first.client().await?;
    has_secret(&client).await?;
    ensure!(names(&client).await?.contains("before"), "what was there before the snapshot is gone");
    ensure!(!names(&client).await?.contains("after"), "what came after the snapshot is there");

    two_servers(&mut first, &flags, &mut etcd).await?;

    // And back, from etcd into an embedded store.
    let said = first.decapod(&["snapshot", "save", &file("two.snapshot")])?;
    ensure!(said.contains("etcd store"), "{said}");
    let before = names(&first.client().await?).await?;
    first.stop()?;
    let mut last = Server::prepare("dcprecovered", Vec::new())?;
    copy_keys(&first, &last)?;
    last.decapod(&["snapshot", "restore", &file("two.snapshot")])?;
    last.start().await?;
    let client = last.client().await?;
    has_secret(&client).await?;
    ensure!(names(&client).await? == before, "{:?}, expected {before:?}", names(&client).await?);
    scale(&client, 1).await?;
    leads_to(&client, &[last.port()]).await?;
    last.decapod(&["snapshot", "schedule", "--every", "10s", "--keep", "1"])?;
    let folder = last.data().join("snapshots");
    poll::until("the planned snapshot", PATIENCE, || {
        let there = fs::read_dir(&folder).map_or(0, |files| files.flatten().filter(is_snapshot).count());
        Ok(if there == 1 { Ok(()) } else { Err(format!("{there} snapshots")) })
    })?;
    ensure!(last.decapod(&["snapshot", "schedule", "--off"])?.contains("no snapshots"), "it goes on");
    Ok(())
}

fn is_snapshot(file: &fs::DirEntry) -> bool {
    file.file_name().to_string_lossy().ends_with(".snapshot")
}

fn damaged_is_refused(server: &Server, scratch: &Path) -> Result<()> {
    let whole = fs::read(scratch.join("one.snapshot"))?;
    let damaged = scratch.join("damaged.snapshot");
    let path = damaged.display().to_string();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&damaged, bytes)?;
    refused(
        server.decapod(&["snapshot", "restore", "--force", &path]),
        &["damaged.snapshot", "nothing was changed"],
    )?;
    fs::write(&damaged, &whole[..middle])?;
    refused(server.decapod(&["snapshot", "restore", "--force", &path]), &["cut off"])?;
    fs::write(&damaged, b"apiVersion: v1\n")?;
    refused(server.decapod(&["snapshot", "restore", "--force", &path]), &["no snapshot", "apiVersion: v1"])
}

/// The first of two leads and is killed while both are written to; a member of etcd is killed, too.
async fn two_servers(first: &mut Server, flags: &[String], etcd: &mut Etcd) -> Result<()> {
    let mut stranger = Server::prepare("dcpstranger", flags.to_vec())?;
    let Err(error) = stranger.start().await else { bail!("a server with other keys was let in") };
    ensure!(format!("{error:#}").contains("another authority"), "{error:#}");
    drop(stranger);

    let mut second = Server::prepare("dcpsecond", flags.to_vec())?;
    copy_keys(first, &second)?;
    second.start().await?;
    let (one, two) = (first.client().await?, second.client().await?);
    leads_to(&two, &[first.port(), second.port()]).await?;
    let leading = leader(&two).await?;
    let mut acknowledged = BTreeSet::new();
    for n in 0..20 {
        let (name, client) = (format!("churn-{n}"), if n % 2 == 0 { &one } else { &two });
        let written = config_map(client, &name).await;
        written.with_context(|| format!("{name}: {}\n{}", first.last_words(), second.last_words()))?;
        acknowledged.insert(name);
        if n == 12 {
            etcd.kill(0)?;
        }
    }
    let dying = async {
        // The rest is written while it dies: what it had acknowledged counts.
        let mut acknowledged = BTreeSet::new();
        for n in 20..40 {
            let (name, client) = (format!("churn-{n}"), if n % 2 == 0 { &one } else { &two });
            if config_map(client, &name).await.is_ok() {
                acknowledged.insert(name);
            }
            tokio::task::yield_now().await;
        }
        acknowledged
    };
    let (more, killed) = tokio::join!(dying, async { first.kill() });
    killed?;
    acknowledged.extend(more);
    let there = names(&two).await?;
    ensure!(acknowledged.is_subset(&there), "lost: {:?}", acknowledged.difference(&there));
    scale(&two, 5).await?;
    let now = leader(&two).await?;
    ensure!(now != leading, "{leading} was killed, and still leads");
    leads_to(&two, &[second.port()]).await?;

    first.start().await?;
    leads_to(&first.client().await?, &[first.port(), second.port()]).await?;
    // One that is stopped gives its Leases back: the other goes on at once.
    second.stop()?;
    let client = first.client().await?;
    leads_to(&client, &[first.port()]).await?;
    scale(&client, 3).await
}
