//! Images to and from a real registry, over wires that break.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use decapod_proto::cri;
use decapod_runtime::{Credentials, Error, Transfer};
use serde_json::json;

use super::archive::{Archive, Compression, Entry, busybox_layer, tar_of};
use super::registry::{Registry, USER, Wire};
use super::support::{World, eventually, script};

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// A layer that takes many packets.
const LARGE: usize = 4 << 20;

fn spec(name: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: name.into(), ..Default::default() }
}

/// Content that cannot be compressed.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(next).collect()
}

/// An image of busybox and some other layers.
fn image(layers: &[Vec<u8>]) -> Archive {
    let all = [busybox_layer()].into_iter().chain(layers.iter().cloned());
    let kinds = [Compression::Gzip, Compression::Zstd, Compression::None];
    let layers: Vec<_> = all.zip(kinds.into_iter().cycle()).collect();
    Archive::oci("x:1", &layers, &json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] }))
}

/// The digest and the bytes of an archive's manifest.
fn manifest(archive: &Archive) -> (String, Vec<u8>) {
    let index: serde_json::Value = serde_json::from_slice(&archive.files["index.json"]).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let bytes = archive.files[&format!("blobs/sha256/{}", &digest[7..])].clone();
    (digest, bytes)
}

/// A registry with one image, `test/image:1`.
fn filled(archive: &Archive) -> Registry {
    let registry = Registry::open();
    registry.fill("test/image", archive, &[("1", OCI, &manifest(archive).1)]);
    registry
}

async fn pull(world: &World, name: &str) -> Result<String, Error> {
    world.runtime.image_pull(&spec(name), None).await
}

async fn refusal(world: &World, name: &str) -> String {
    pull(world, name).await.unwrap_err().chain()
}

/// An empty world: no image is in it.
async fn empty(name: &str) -> World {
    World::open(&format!("{name}-{}", std::process::id())).await
}

/// Nothing is in the store but what its images need.
fn files(world: &World, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(world.root.join("data/images").join(folder)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

pub(crate) async fn images_go_there_and_back() {
    let world = empty("there").await;
    let registry = Registry::open();
    let wire = Wire::new(registry.address);
    let name = wire.name("test/image:1");
    let layers =
        [(busybox_layer(), Compression::Gzip), (tar_of(&[Entry::file("b", "two")]), Compression::Zstd)];
    let config = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] });
    let archive = Archive::oci(&name, &layers, &config).save(&world.root, "a.tar");
    let imported = world.import(&archive).await.unwrap().remove(0);
    let digest = world.embedded().image_push(&name, &Transfer::default()).await.unwrap();
    // What is there already is not sent again.
    let sent = wire.asked("PATCH", "uploads").len();
    assert_eq!(world.embedded().image_push(&name, &Transfer::default()).await.unwrap(), digest);
    assert_eq!(wire.asked("PATCH", "uploads").len(), sent);

    world.runtime.image_remove(&spec(&name)).await.unwrap();
    assert!(files(&world, "blobs").is_empty());
    assert_eq!(pull(&world, &name).await.unwrap(), imported.id);
    let pulled = world.runtime.image_status(&spec(&name)).await.unwrap().unwrap();
    let known = format!("{}@{digest}", name.trim_end_matches(":1"));
    assert_eq!((&pulled.repo_tags, &pulled.repo_digests), (&vec![name.clone()], &vec![known.clone()]));
    let pod = world.pod("there").await;
    let mut run = script("c", "cat /b");
    run.image = Some(spec(&pulled.id));
    let (status, log) = world.run(&pod, &run).await;
    assert_eq!((log.as_str(), status.image_ref.as_str()), ("two\n", known.as_str()));

    // The same by its digest; nothing but documents is fetched again.
    let fetched = wire.asked("GET", "/blobs/");
    assert_eq!(pull(&world, &known).await.unwrap(), imported.id);
    assert!(world.runtime.image_status(&spec(&known)).await.unwrap().is_some());
    let config = format!("/blobs/{}", imported.id);
    let layers = |asked: std::collections::BTreeMap<String, usize>| -> usize {
        asked.iter().filter(|(path, _)| !path.ends_with(&config)).map(|(_, count)| count).sum()
    };
    assert_eq!(layers(wire.asked("GET", "/blobs/")), layers(fetched));
    world.end().await;
}

pub(crate) async fn credentials_are_asked_for() {
    let world = empty("auth").await;
    let registry = Registry::closed();
    let name = registry.name("private/image:1");
    let layers = [(busybox_layer(), Compression::Gzip)];
    let archive = Archive::oci(&name, &layers, &json!({})).save(&world.root, "a.tar");
    world.import(&archive).await.unwrap();
    let us = Credentials { username: USER.0.into(), password: USER.1.into(), ..Default::default() };
    let push = |credentials, insecure| Transfer { credentials, insecure, ..Default::default() };

    let error = world.embedded().image_push(&name, &push(Some(us.clone()), false)).await.unwrap_err().chain();
    assert!(error.contains("cannot be reached") && error.contains("certificate"), "{error}");
    let error = world.embedded().image_push(&name, &push(None, true)).await.unwrap_err().chain();
    assert!(error.contains("authentication required") && error.contains("imagePullSecrets"), "{error}");
    world.embedded().image_push(&name, &push(Some(us.clone()), true)).await.unwrap();
    world.runtime.image_remove(&spec(&name)).await.unwrap();

    // With the authority in the file, as agents have it.
    let ca = registry.ca.as_ref().unwrap().display();
    let trust = format!("configs:\n  \"{}\":\n    tls: {{ca_file: {ca}}}\n", registry.address);
    std::fs::write(world.root.join("registries.yaml"), &trust).unwrap();
    let error = refusal(&world, &name).await;
    assert!(error.contains("authentication required"), "{error}");
    let auth = |password: &str| cri::AuthConfig {
        username: USER.0.into(),
        password: password.into(),
        ..Default::default()
    };
    let wrong = world.runtime.image_pull(&spec(&name), Some(&auth("falsch"))).await.unwrap_err().chain();
    assert!(wrong.contains("the credentials were refused") && !wrong.contains("falsch"), "{wrong}");
    assert!(world.runtime.image_list(None).await.unwrap().is_empty());
    world.runtime.image_pull(&spec(&name), Some(&auth(USER.1))).await.unwrap();
    // The file's own credentials do as well.
    let user = format!("{trust}    auth: {{username: {}, password: {}}}\n", USER.0, USER.1);
    std::fs::write(world.root.join("registries.yaml"), user).unwrap();
    pull(&world, &name).await.unwrap();
    // A mirror is asked first, and the registry where the mirror fails.
    let mirrors =
        format!("mirrors:\n  mirrored.internal:\n    endpoint: [\"https://{}\"]\n", registry.address);
    let both = format!("{mirrors}{trust}    auth: {{username: {}, password: {}}}\n", USER.0, USER.1);
    std::fs::write(world.root.join("registries.yaml"), both).unwrap();
    pull(&world, "mirrored.internal/private/image:1").await.unwrap();
    let found = world.runtime.image_status(&spec("mirrored.internal/private/image:1")).await.unwrap();
    assert!(found.is_some());
    std::fs::write(world.root.join("registries.yaml"), "mirors: {}\n").unwrap();
    let error = refusal(&world, &name).await;
    assert!(error.contains("registries.yaml") && error.contains("mirors"), "{error}");
    world.end().await;
}

/// Answers each request by what the function says to its head; a connection each.
fn server(answer: impl Fn(&str) -> String + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
                if head[0] != b'G' {
                    // No HTTP: a TLS client, which is to go away.
                    break;
                }
            }
            if head.ends_with(b"\r\n\r\n") {
                let text = answer(&String::from_utf8_lossy(&head));
                stream.write_all(text.as_bytes()).ok();
            }
        }
    });
    address
}

fn reply(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// Tokens are got by Basic at the token server and shown to the registry alone: not where a redirect leads.
pub(crate) async fn credentials_do_not_leak() {
    let world = empty("leak").await;
    // crab:geheim
    const BASIC: &str = "authorization: basic y3jhyjpnzwhlaw0=";
    let config =
        json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] } })
            .to_string();
    let archive = Archive::oci("x:1", &[], &json!({}));
    let (_, document) = manifest(&archive);
    let document = String::from_utf8(document).unwrap();
    let known: serde_json::Value = serde_json::from_str(&document).unwrap();
    let config_digest = known["config"]["digest"].as_str().unwrap().to_owned();
    let content = archive.files[&format!("blobs/sha256/{}", &config_digest[7..])].clone();
    let content = String::from_utf8(content).unwrap();
    assert!(content.len() >= config.len());
    let elsewhere = server(move |head| {
        let head = head.to_ascii_lowercase();
        if head.starts_with("get /token?service=us&scope=repository%3aa%2fb%3apull ") && head.contains(BASIC)
        {
            return reply("200 OK", "", r#"{"token":"sesam"}"#);
        }
        if head.starts_with("get /blob ") && !head.contains("authorization") {
            return reply("200 OK", "", &content);
        }
        reply("400 Bad Request", "", r#"{"errors":[{"message":"it leaked"}]}"#)
    });
    let registry = server(move |head| {
        if !head.to_ascii_lowercase().contains("authorization: bearer sesam") {
            let challenge =
                format!("WWW-Authenticate: Bearer realm=\"http://{elsewhere}/token\",service=\"us\"\r\n");
            return reply("401 Unauthorized", &challenge, "");
        }
        match head.starts_with("GET /v2/a/b/manifests/1 ") {
            true => reply("200 OK", &format!("Content-Type: {OCI}\r\n"), &document),
            false => reply("307 Temporary Redirect", &format!("Location: http://{elsewhere}/blob\r\n"), ""),
        }
    });
    let auth = cri::AuthConfig { username: USER.0.into(), password: USER.1.into(), ..Default::default() };
    world.runtime.image_pull(&spec(&format!("{registry}/a/b:1")), Some(&auth)).await.unwrap();
    world.end().await;
}

pub(crate) async fn broken_downloads_go_on() {
    let world = empty("broken").await;
    let archive = image(&[tar_of(&[Entry::file("noise", noise(LARGE, 7))])]);
    let registry = filled(&archive);
    // Each connection breaks after a megabyte; the layers go on where they were.
    let wire = Wire::cutting(registry.address, 1 << 20, 6);
    let name = wire.name("test/image:1");
    pull(&world, &name).await.unwrap();
    let again = wire.asked("GET", "/blobs/").values().copied().max().unwrap();
    assert!(again > 1, "nothing broke: {:?}", wire.asked("GET", ""));
    let pod = world.pod("broken").await;
    let mut run = script("c", "stat -c %s /noise");
    run.image = Some(spec(&name));
    assert_eq!(world.run(&pod, &run).await.1, format!("{LARGE}\n"));
    // One that always breaks without a byte is given up, and what was here before is as it was.
    let dead = Wire::cutting(registry.address, 600, usize::MAX);
    let error = refusal(&world, &dead.name("test/other:1")).await;
    assert!(error.contains("broke off") || error.contains("not found"), "{error}");
    assert_eq!(world.runtime.image_list(None).await.unwrap().len(), 1);
    world.end().await;
}

pub(crate) async fn a_registry_that_is_gone_comes_back() {
    let world = empty("gone").await;
    let archive = image(&[tar_of(&[Entry::file("noise", noise(LARGE, 8))])]);
    let mut registry = filled(&archive);
    let wire = Wire::holding(registry.address, 1 << 20);
    let (runtime, name) = (world.runtime.clone(), wire.name("test/image:1"));
    let pulling = tokio::spawn(async move { runtime.image_pull(&spec(&name), None).await });
    eventually("the download to be half done", || async { (wire.held() > 0).then_some(()) }).await;
    registry.stop();
    wire.cut();
    // What was on the way is given up once nobody goes on with it.
    let error = pulling.await.unwrap().unwrap_err().chain();
    assert!(error.contains("broke off") || error.contains("cannot be reached"), "{error}");
    let direct = refusal(&world, &registry.name("test/image:1")).await;
    assert!(direct.contains("cannot be reached") && direct.contains("Connection refused"), "{direct}");
    assert!(world.runtime.image_list(None).await.unwrap().is_empty());
    registry.restart();
    pull(&world, &registry.name("test/image:1")).await.unwrap();
    world.end().await;
}

pub(crate) async fn what_is_asked_at_once_is_fetched_once() {
    let world = empty("once").await;
    let layers: Vec<Vec<u8>> =
        (0..6).map(|n| tar_of(&[Entry::file("noise", noise(1 << 18, 100 + n))])).collect();
    let archive = image(&layers);
    let registry = filled(&archive);
    // Another image with the same layers, whose pull shares them.
    registry.fill("test/second", &archive, &[("1", OCI, &manifest(&archive).1)]);
    let wire = Wire::new(registry.address);
    let names = [wire.name("test/image:1"), wire.name("test/second:1")];
    let pulls = (0..12).map(|n| pull(&world, &names[n % 2]));
    let ids: BTreeSet<String> =
        futures::future::join_all(pulls).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(ids.len(), 1);
    let mut blobs = std::collections::BTreeMap::<String, usize>::new();
    for (path, count) in wire.asked("GET", "/blobs/") {
        *blobs.entry(path.rsplit('/').next().unwrap().to_owned()).or_default() += count;
    }
    let config = world.runtime.image_status(&spec(&names[0])).await.unwrap().unwrap().id;
    blobs.remove(&config);
    assert_eq!((blobs.len(), blobs.values().max()), (7, Some(&1)), "{blobs:?}");
    world.end().await;
}

pub(crate) async fn what_is_no_image_is_refused() {
    let world = empty("refused").await;
    let archive = image(&[]);
    let registry = filled(&archive);
    let (digest, document) = manifest(&archive);
    let size = document.len();
    let foreign = |platforms: &[&str]| {
        let manifests: Vec<_> = platforms
            .iter()
            .map(|arch| json!({ "mediaType": OCI, "digest": digest, "size": size, "platform": { "os": "linux", "architecture": arch } }))
            .collect();
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string().into_bytes()
    };
    let ours = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let (wrong, right) = (foreign(&["s390x", "riscv64"]), foreign(&["s390x", ours]));
    registry.fill("test/image", &archive, &[("wrong", INDEX, &wrong), ("right", INDEX, &right)]);
    let error = refusal(&world, &registry.name("test/image:wrong")).await;
    assert!(
        error.contains(&format!("no image for linux/{ours}")) && error.contains("linux/riscv64, linux/s390x"),
        "{error}"
    );
    pull(&world, &registry.name("test/image:right")).await.unwrap();
    // The digest of the index is what the image is known by, and what may be asked for.
    let index = world.runtime.image_status(&spec(&registry.name("test/image:right"))).await.unwrap().unwrap();
    assert_ne!(index.repo_digests, [registry.name(&format!("test/image@{digest}"))]);
    pull(&world, &index.repo_digests[0]).await.unwrap();

    let error = refusal(&world, &registry.name("test/image:absent")).await;
    assert!(error.contains("manifest absent of test/image: not found in registry"), "{error}");
    let error = refusal(&world, &registry.name("test/absent:1")).await;
    assert!(error.contains("not found"), "{error}");
    let error = refusal(&world, "UPPER/case").await;
    assert!(error.contains("is not an image reference"), "{error}");
    let chart = json!({
        "schemaVersion": 2,
        "config": { "mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest, "size": size },
        "layers": [],
    });
    let mut helm = Archive::default();
    helm.files.insert(format!("blobs/sha256/{}", &digest[7..]), document.clone());
    registry.fill("test/chart", &helm, &[("1", OCI, chart.to_string().as_bytes())]);
    let error = refusal(&world, &registry.name("test/chart:1")).await;
    assert!(error.contains("no container image") && error.contains("vnd.cncf.helm"), "{error}");

    // A layer that is not what its digest says: the registry serves it, and we do not take it.
    let bad = image(&[tar_of(&[Entry::file("noise", noise(50_000, 3))])]);
    let (_, bad_document) = manifest(&bad);
    registry.fill("test/bad", &bad, &[("1", OCI, &bad_document)]);
    let layers: serde_json::Value = serde_json::from_slice(&bad_document).unwrap();
    let layer = layers["layers"][1]["digest"].as_str().unwrap();
    let mut content = std::fs::read(registry.blob(layer)).unwrap();
    content[20_000] ^= 1;
    std::fs::write(registry.blob(layer), &content).unwrap();
    let error = refusal(&world, &registry.name("test/bad:1")).await;
    assert!(error.contains(layer) && error.contains("content has digest"), "{error}");
    assert!(
        !files(&world, "blobs").iter().any(|name| name.contains(&layer[7..])),
        "{:?}",
        files(&world, "blobs")
    );
    content[20_000] ^= 1;
    std::fs::write(registry.blob(layer), &content).unwrap();
    pull(&world, &registry.name("test/bad:1")).await.unwrap();

    // Docker's form of a manifest.
    let docker =
        String::from_utf8(document).unwrap().replacen('{', &format!("{{\"mediaType\":\"{DOCKER}\","), 1);
    let docker = docker
        .replace("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
        .replace(
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        );
    registry.fill("test/docker", &archive, &[("2", DOCKER, docker.as_bytes())]);
    pull(&world, &registry.name("test/docker:2")).await.unwrap();
    world.end().await;
}

fn mount_tmpfs(at: &Path, options: &str) {
    let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status().unwrap();
    assert!(done.success());
}

pub(crate) async fn full_disks_are_said() {
    let name = format!("full-{}", std::process::id());
    let (root, ..) = super::support::options(&name, std::sync::Arc::default());
    let images = root.join("data/images");
    std::fs::create_dir_all(&images).unwrap();
    mount_tmpfs(&images, "size=3m");
    let world = World::open(&name).await;
    let registry = filled(&image(&[tar_of(&[Entry::file("noise", noise(LARGE, 9))])]));
    let error = refusal(&world, &registry.name("test/image:1")).await;
    assert!(error.contains("No space left on device"), "{error}");
    assert!(world.runtime.image_list(None).await.unwrap().is_empty());
    // With room, it works.
    mount_tmpfs(&images, "remount,size=64m");
    pull(&world, &registry.name("test/image:1")).await.unwrap();
    let at = images.display().to_string();
    world.embedded().close().await;
    assert!(Command::new("umount").arg("--lazy").arg(&at).status().unwrap().success());
    world.end().await;
}

/// The other side of [`agents_may_die_while_they_pull`]: an agent that is killed while it pulls.
pub(crate) async fn puller(world: &str, name: &str) {
    let world = World::open(world).await;
    // Never comes to its end.
    pull(&world, name).await.unwrap();
}

pub(crate) async fn agents_may_die_while_they_pull() {
    let name = format!("pulldeath-{}", std::process::id());
    let archive = image(&[tar_of(&[Entry::file("noise", noise(LARGE, 10))])]);
    let registry = filled(&archive);
    let wire = Wire::holding(registry.address, 1 << 20);
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["puller", &name, &wire.name("test/image:1")])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the download to be half done", || async { (wire.held() > 0).then_some(()) }).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    let world = World::open(&name).await;
    assert!(world.runtime.image_list(None).await.unwrap().is_empty());
    assert!(files(&world, "blobs").is_empty() && files(&world, "layers").is_empty());
    pull(&world, &registry.name("test/image:1")).await.unwrap();
    world.end().await;
}
