//! Image archives, made here: good ones and hostile ones.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

/// The name of the image that most tests use.
pub(crate) const BUSYBOX: &str = "test.internal/busybox:1";

/// Commands that the test image has, as links to busybox.
const APPLETS: [&str; 24] = [
    "sh", "sleep", "cat", "echo", "id", "env", "ls", "stat", "head", "seq", "mount", "touch", "tty", "stty",
    "nc", "hostname", "dd", "tail", "kill", "ps", "chroot", "unshare", "mknod", "wget",
];

/// One entry of a layer.
pub(crate) struct Entry {
    pub(crate) path: &'static str,
    pub(crate) kind: tar::EntryType,
    pub(crate) content: Vec<u8>,
    pub(crate) link: &'static str,
    pub(crate) mode: u32,
    pub(crate) owner: u64,
    pub(crate) device: (u32, u32),
}

impl Entry {
    pub(crate) fn file(path: &'static str, content: impl Into<Vec<u8>>) -> Self {
        Entry {
            path,
            kind: tar::EntryType::Regular,
            content: content.into(),
            link: "",
            mode: 0o644,
            owner: 0,
            device: (0, 0),
        }
    }

    pub(crate) fn dir(path: &'static str) -> Self {
        Entry { kind: tar::EntryType::Directory, mode: 0o755, ..Entry::file(path, "") }
    }

    pub(crate) fn symlink(path: &'static str, link: &'static str) -> Self {
        Entry { kind: tar::EntryType::Symlink, link, mode: 0o777, ..Entry::file(path, "") }
    }

    pub(crate) fn hard_link(path: &'static str, link: &'static str) -> Self {
        Entry { kind: tar::EntryType::Link, link, ..Entry::file(path, "") }
    }
}

/// Entries as a tar archive. Names go in as they are, however hostile.
pub(crate) fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        let name = entry.path.as_bytes();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
        let link = entry.link.as_bytes();
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(entry.kind);
        header.set_size(entry.content.len() as u64);
        header.set_mode(entry.mode);
        header.set_uid(entry.owner);
        header.set_gid(entry.owner);
        header.set_mtime(1_000_000_000);
        header.set_device_major(entry.device.0).unwrap();
        header.set_device_minor(entry.device.1).unwrap();
        header.set_cksum();
        builder.append(&header, entry.content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn sha256(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// How a layer is stored.
#[derive(Clone, Copy)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

pub(crate) fn compress(tar: &[u8], how: Compression) -> Vec<u8> {
    match how {
        Compression::None => tar.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(tar, 1).unwrap(),
    }
}

/// An archive in the making: its files.
#[derive(Clone, Default)]
pub(crate) struct Archive {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Archive {
    fn blob(&mut self, content: Vec<u8>) -> (String, usize) {
        let digest = sha256(&content);
        let length = content.len();
        self.files.insert(format!("blobs/sha256/{}", &digest[7..]), content);
        (digest, length)
    }

    /// An OCI archive of one image.
    pub(crate) fn oci(name: &str, layers: &[(Vec<u8>, Compression)], config: &serde_json::Value) -> Self {
        let mut archive = Archive::default();
        let manifest = archive.manifest(layers, config, "amd64");
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest.0,
                "size": manifest.1,
                // The second is containerd's own, which takes the first for a tag alone.
                "annotations": {
                    "org.opencontainers.image.ref.name": name,
                    "io.containerd.image.name": name,
                },
            }],
        });
        archive.files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        archive.files.insert("index.json".into(), index.to_string().into_bytes());
        archive
    }

    /// An OCI archive of one image for several platforms.
    pub(crate) fn multi_platform(name: &str, platforms: &[(&str, Vec<u8>)]) -> Self {
        let mut archive = Archive::default();
        let mut manifests = Vec::new();
        for (architecture, layer) in platforms {
            let layers = [(layer.clone(), Compression::Gzip)];
            let (digest, size) = archive.manifest(&layers, &json!({ "Cmd": ["sh"] }), architecture);
            manifests.push(json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest,
                "size": size,
                "platform": { "os": "linux", "architecture": architecture },
            }));
        }
        let inner = json!({ "schemaVersion": 2, "manifests": manifests }).to_string().into_bytes();
        let (digest, size) = archive.blob(inner);
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "digest": digest,
                "size": size,
                "annotations": { "io.containerd.image.name": name },
            }],
        });
        archive.files.insert("index.json".into(), index.to_string().into_bytes());
        archive
    }

    fn manifest(
        &mut self,
        layers: &[(Vec<u8>, Compression)],
        config: &serde_json::Value,
        architecture: &str,
    ) -> (String, usize) {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| sha256(tar)).collect();
        let document = json!({
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let (config_digest, config_size) = self.blob(document.to_string().into_bytes());
        let mut descriptors = Vec::new();
        for (tar, how) in layers {
            let (digest, size) = self.blob(compress(tar, *how));
            let media_type = "application/vnd.oci.image.layer.v1.tar";
            descriptors.push(json!({ "mediaType": media_type, "digest": digest, "size": size }));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest,
                "size": config_size,
            },
            "layers": descriptors,
        });
        self.blob(manifest.to_string().into_bytes())
    }

    /// What `docker save` wrote before it wrote OCI archives.
    pub(crate) fn docker(name: &str, layer: &[u8], config: &serde_json::Value) -> Self {
        let document = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [sha256(layer)] },
        });
        let document = document.to_string().into_bytes();
        let config_file = format!("{}.json", &sha256(&document)[7..]);
        let manifest = json!([{ "Config": config_file, "RepoTags": [name], "Layers": ["abc/layer.tar"] }]);
        let mut archive = Archive::default();
        archive.files.insert(config_file, document);
        archive.files.insert("abc/layer.tar".into(), layer.to_vec());
        archive.files.insert("manifest.json".into(), manifest.to_string().into_bytes());
        archive
    }

    /// Writes it to a file.
    pub(crate) fn save(&self, directory: &Path, name: &str) -> PathBuf {
        let path = directory.join(name);
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        for (file, content) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, file, content.as_slice()).unwrap();
        }
        builder.into_inner().unwrap().sync_all().unwrap();
        path
    }
}

/// The layer that the test image is made of.
pub(crate) fn busybox_layer() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("Debian's busybox-static is installed");
    let mut entries = vec![
        Entry::dir("bin/"),
        Entry { mode: 0o755, ..Entry::file("bin/busybox", busybox) },
        Entry::dir("etc/"),
        Entry::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n"),
        Entry::file("etc/group", "root:x:0:\nweb:x:34:\nlogs:x:50:web\n"),
        Entry { mode: 0o1777, ..Entry::dir("tmp/") },
    ];
    for applet in APPLETS {
        let path: &'static str = Box::leak(format!("bin/{applet}").into_boxed_str());
        // Some runtimes give the file the mode of its last link.
        entries.push(Entry { mode: 0o755, ..Entry::hard_link(path, "bin/busybox") });
    }
    tar_of(&entries)
}

/// The test image.
pub(crate) fn busybox() -> Archive {
    busybox_stored(Compression::Gzip)
}

/// The test image with its layer stored like this.
pub(crate) fn busybox_stored(how: Compression) -> Archive {
    let config = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin", "FROM=image"], "StopSignal": "SIGTERM" });
    Archive::oci(BUSYBOX, &[(busybox_layer(), how)], &config)
}
