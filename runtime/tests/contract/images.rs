//! What is imported, and what is refused.

use std::path::PathBuf;

use decapod_proto::cri;
use decapod_runtime::Error;
use serde_json::json;

use super::archive::{Archive, BUSYBOX, Compression, Entry, busybox, busybox_layer, tar_of};
use super::support::{World, script};

fn spec(name: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: name.into(), ..Default::default() }
}

/// The error with all its causes.
async fn refusal(world: &World, archive: &Archive) -> String {
    let path = archive.save(&world.root, "bad.tar");
    match world.import(&path).await {
        Ok(images) => panic!("imported: {images:?}"),
        Err(error @ Error::Image { .. }) => error.chain(),
        Err(error) => panic!("not an image error: {error:?}"),
    }
}

pub(crate) async fn every_form_is_imported() {
    let world = World::new("forms").await;
    let layer = busybox_layer();
    let config = json!({ "Cmd": ["cat", "/etc/group"], "Env": null });
    for (index, how) in [Compression::None, Compression::Gzip, Compression::Zstd].into_iter().enumerate() {
        let name = format!("forms.internal/x:{index}");
        let archive = Archive::oci(&name, &[(layer.clone(), how)], &config).save(&world.root, "a.tar");
        let images = world.import(&archive).await.unwrap();
        assert!(images[0].repo_tags.contains(&name), "{images:?}");
        assert_eq!(images[0].repo_digests.len(), 1);
    }
    let docker = Archive::docker("short:tag", &layer, &config).save(&world.root, "d.tar");
    world.import(&docker).await.unwrap();
    let found = world.runtime.image_status(&spec("short:tag")).await.unwrap().unwrap();
    assert!(found.repo_tags.contains(&"docker.io/library/short:tag".to_owned()));
    let other = if cfg!(target_arch = "x86_64") { "arm64" } else { "amd64" };
    let ours = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let platforms = [(other, tar_of(&[Entry::file("foreign", "")])), (ours, layer)];
    let multi = Archive::multi_platform("multi.internal/m:1", &platforms).save(&world.root, "m.tar");
    world.import(&multi).await.unwrap();
    let pod = world.pod("forms").await;
    let mut config = script("c", "echo from $0");
    config.image = Some(spec("multi.internal/m:1"));
    assert_eq!(world.run(&pod, &config).await.1, "from sh\n");
    world.end().await;
}

pub(crate) async fn layers_are_stacked_with_whiteouts() {
    let world = World::new("stack").await;
    let lower = tar_of(&[
        Entry::dir("gone/"),
        Entry::file("gone/a", "a"),
        Entry::dir("opaque/"),
        Entry::file("opaque/old", "old"),
        Entry::file("kept", "kept"),
        Entry { owner: 33, mode: 0o4755, ..Entry::file("setuid", "s") },
        Entry { kind: tar::EntryType::Fifo, ..Entry::file("fifo", "") },
        Entry { kind: tar::EntryType::Char, device: (1, 3), mode: 0o666, ..Entry::file("null", "") },
    ]);
    let upper = tar_of(&[
        Entry::file(".wh.gone", ""),
        Entry::dir("opaque/"),
        Entry::file("opaque/.wh..wh..opq", ""),
        Entry::file("opaque/new", "new"),
        Entry::hard_link("link", "opaque/new"),
        Entry::symlink("loop", "/etc/group"),
    ]);
    let layers =
        [(busybox_layer(), Compression::Gzip), (lower, Compression::Zstd), (upper, Compression::None)];
    let config = json!({ "Env": ["PATH=/bin"] });
    let archive = Archive::oci("stack.internal/s:1", &layers, &config).save(&world.root, "s.tar");
    world.import(&archive).await.unwrap();
    let pod = world.pod("stack").await;
    let look = "ls / | grep -c gone; ls opaque; cat kept link; echo; head -1 loop; \
                stat -c '%a %u %F' setuid fifo null; stat -c %h link";
    let mut config = script("c", &look.replace("grep -c gone", "cat >/dev/null; test -e /gone; echo $?"));
    config.image = Some(spec("stack.internal/s:1"));
    let expected = "1\nnew\nkeptnew\nroot:x:0:\n4755 33 regular file\n644 0 fifo\n\
                    666 0 character special file\n2\n";
    assert_eq!(world.run(&pod, &config).await.1, expected);
    world.end().await;
}

pub(crate) async fn hostile_layers_are_refused() {
    let world = World::new("hostile").await;
    let outside = world.root.join("outside");
    std::fs::create_dir(&outside).unwrap();
    let target: &'static str = Box::leak(outside.display().to_string().into_boxed_str());
    let cases: [(&str, Vec<Entry>); 7] = [
        ("upwards", vec![Entry::file("../../../evil", "x")]),
        ("upwards", vec![Entry::file("a/../../evil", "x")]),
        ("symbolic link", vec![Entry::symlink("out", target), Entry::file("out/evil", "x")]),
        ("link target", vec![Entry::hard_link("evil", "../../etc/passwd")]),
        ("link target", vec![Entry::symlink("out", target), Entry::hard_link("evil", "out/secret")]),
        ("no directory", vec![Entry::file("f", "x"), Entry::file("f/evil", "x")]),
        ("0:0", vec![Entry { kind: tar::EntryType::Char, ..Entry::file("hidden", "") }]),
    ];
    std::fs::write(outside.join("secret"), "").unwrap();
    for (reason, entries) in cases {
        let layers = [(tar_of(&entries), Compression::Gzip)];
        let error = refusal(&world, &Archive::oci("bad.internal/b:1", &layers, &json!({}))).await;
        assert!(error.contains(reason), "{reason:?} is not in: {error}");
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "something was written outside");
    // A link that is replaced by a file is not followed.
    let layers = [(tar_of(&[Entry::symlink("out", target), Entry::file("out", "mine")]), Compression::Gzip)];
    let archive = Archive::oci("ok.internal/b:1", &layers, &json!({})).save(&world.root, "ok.tar");
    world.import(&archive).await.unwrap();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert!(world.runtime.image_status(&spec("bad.internal/b:1")).await.unwrap().is_none());
    let layers: PathBuf = world.root.join("data/images/layers");
    assert_eq!(std::fs::read_dir(layers).unwrap().count(), 2, "a refused layer was left");
    world.end().await;
}

pub(crate) async fn corrupt_archives_are_named() {
    let world = World::new("corrupt").await;
    let good = busybox();
    let layer = good.files.iter().max_by_key(|(_, content)| content.len()).unwrap().0.clone();
    let mut flipped = good.clone();
    flipped.files.get_mut(&layer).unwrap()[5000] ^= 1;
    // The name is free, or the known layer would be taken without a look.
    world.runtime.image_remove(&spec(BUSYBOX)).await.unwrap();
    let error = refusal(&world, &flipped).await;
    assert!(error.contains(&layer) && error.contains("digest"), "{error}");
    let mut missing = good.clone();
    missing.files.remove(&layer);
    let error = refusal(&world, &missing).await;
    assert!(error.contains(&layer) && error.contains("missing"), "{error}");
    let mut broken = good.clone();
    broken.files.insert("index.json".into(), b"{".to_vec());
    let error = refusal(&world, &broken).await;
    assert!(error.contains("index.json") && error.contains("JSON"), "{error}");
    let error = refusal(&world, &Archive::default()).await;
    assert!(error.contains("neither a docker-archive nor an OCI archive"), "{error}");
    // Cut off in the middle.
    let path = good.save(&world.root, "whole.tar");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = world.import(&path).await.unwrap_err().chain();
    assert!(error.contains("truncated") || error.contains("whole tar"), "{error}");
    let foreign = Archive::multi_platform("f.internal/f:1", &[("s390x", tar_of(&[]))]);
    let error = refusal(&world, &foreign).await;
    assert!(error.contains("linux/s390x"), "{error}");
    assert!(world.runtime.image_list(None).await.unwrap().is_empty());
    world.end().await;
}

pub(crate) async fn names_and_removal() {
    let world = World::new("names").await;
    let image = world.runtime.image_status(&spec(BUSYBOX)).await.unwrap().unwrap();
    assert_eq!(world.runtime.image_status(&spec(&image.id)).await.unwrap().unwrap().id, image.id);
    // Nobody listens there.
    let missing = world.runtime.image_pull(&spec("127.0.0.1:1/x:1"), None).await.unwrap_err();
    let told = missing.chain();
    assert!(
        matches!(missing, Error::Image { .. }) && told.contains("registry 127.0.0.1:1 cannot be reached"),
        "{told}"
    );
    let pod = world.pod("names").await;
    let id = world.start(&pod, &script("c", "sleep 1000")).await;
    world.runtime.image_remove(&spec(BUSYBOX)).await.unwrap();
    assert!(world.runtime.image_list(None).await.unwrap().is_empty());
    // A container keeps what it runs from.
    assert_eq!(world.exec(&id, &["echo", "still"]).await.stdout, b"still\n");
    let mut config = script("d", "true");
    config.image = Some(spec("no such image"));
    let error = world.create(&pod, &config).await.unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
    world.runtime.image_remove(&spec("never.internal/was:there")).await.unwrap();
    world.end().await;
}
