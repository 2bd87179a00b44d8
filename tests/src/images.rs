//! Container images for the tests, made from Debian's packages into archives as `docker save` writes them
//! and as OCI lays them out. Nothing is pulled.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::tools::{cache, run};

/// How an image is described beside its files.
#[derive(Debug)]
pub struct Recipe {
    /// The name, `name:tag`.
    pub name: &'static str,
    /// Debian packages whose files it has.
    pub packages: &'static [&'static str],
    /// Its entrypoint and arguments.
    pub command: &'static [&'static str],
    /// Files beside those of the packages: path and content.
    pub files: &'static [(&'static str, &'static str)],
}

/// BusyBox with its usual commands.
pub const BUSYBOX: Recipe =
    // With the C library: to resolve names even static programs load parts of it.
    Recipe {
        name: "busybox:1",
        packages: &["busybox-static", "libc6"],
        command: &["/bin/sh"],
        files: &[],
    };

/// nginx on port 80; `/` answers with the name of the pod.
pub const NGINX: Recipe = Recipe {
    name: "nginx:1",
    packages: NGINX_PACKAGES,
    command: NGINX_COMMAND,
    files: &[("etc/nginx/nginx.conf", NGINX_CONF), ("usr/share/nginx/version", "1\n"), PASSWD, GROUP],
};

/// The same with another version file, to roll out to.
pub const NGINX_2: Recipe = Recipe {
    name: "nginx:2",
    packages: NGINX_PACKAGES,
    command: NGINX_COMMAND,
    files: &[("etc/nginx/nginx.conf", NGINX_CONF), ("usr/share/nginx/version", "2\n"), PASSWD, GROUP],
};

/// Redis on port 6379, which keeps every write on disk in `/data` before it answers.
pub const REDIS: Recipe = Recipe {
    name: "redis:7",
    packages: &[
        "redis-server",
        "redis-tools",
        "libatomic1",
        "libc6",
        "libcap2",
        "libgcc-s1",
        "libgcrypt20",
        "libgpg-error0",
        "libjemalloc2",
        "liblz4-1",
        "liblzf1",
        "liblzma5",
        "libssl3",
        "libstdc++6",
        "libsystemd0",
        "libzstd1",
        "busybox-static",
    ],
    command: &[
        "/usr/bin/redis-server",
        "--dir",
        "/data",
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--protected-mode",
        "no",
    ],
    files: &[PASSWD, GROUP],
};

const PASSWD: (&str, &str) = ("etc/passwd", "root:x:0:0::/:/bin/sh\nwww-data:x:33:33::/:/bin/false\n");
const GROUP: (&str, &str) = ("etc/group", "root:x:0:\nwww-data:x:33:\n");
const NGINX_PACKAGES: &[&str] =
    &["nginx", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g", "busybox-static"];
/// The host name is the pod's: the answer tells which pod it was.
const NGINX_COMMAND: &[&str] = &[
    "/bin/sh",
    "-c",
    "mkdir -p /run /tmp /www && hostname > /www/index.html && cp /usr/share/nginx/version /www/version && exec /usr/sbin/nginx -g 'daemon off;'",
];
const NGINX_CONF: &str = "user www-data;\nworker_processes 1;\nerror_log /dev/stderr;\npid /run/nginx.pid;\nevents { worker_connections 256; }\n\
http {\n  access_log /dev/stdout;\n  client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;\n  uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;\n\
  server { listen 80; root /www; location = /healthz { return 200 'ok'; } }\n}\n";

/// The archive of an image; made at its first use and kept.
///
/// # Errors
/// Which package could not be had or unpacked.
pub fn archive(recipe: &Recipe) -> Result<PathBuf> {
    let file = cache().join(format!("{}.tar", recipe.name.replace(':', "-")));
    if file.exists() {
        return Ok(file);
    }
    let work = tempfile::tempdir()?;
    let rootfs = work.path().join("rootfs");
    fs::create_dir_all(&rootfs)?;
    for package in recipe.packages {
        unpack(package, &rootfs)?;
    }
    if recipe.packages.contains(&"busybox-static") {
        applets(&rootfs)?;
    }
    for (path, content) in recipe.files {
        let path = rootfs.join(path);
        fs::create_dir_all(path.parent().context("a file in the root")?)?;
        fs::write(path, content)?;
    }
    let partial = work.path().join("image.tar");
    docker_archive(recipe, &rootfs, &partial)?;
    fs::create_dir_all(cache())?;
    fs::copy(&partial, &file)?;
    Ok(file)
}

/// Downloads a Debian package by its name (kept between runs) and unpacks its files.
fn unpack(package: &str, rootfs: &Path) -> Result<()> {
    let folder = cache().join("deb");
    fs::create_dir_all(&folder)?;
    let find = || -> Result<Option<PathBuf>> {
        let prefix = format!("{package}_");
        let found =
            fs::read_dir(&folder)?.flatten().find(|e| e.file_name().to_string_lossy().starts_with(&prefix));
        Ok(found.map(|e| e.path()))
    };
    if find()?.is_none() {
        let download =
            || run(Command::new("apt-get").args(["download", "-q", "-q", package]).current_dir(&folder));
        // A machine on which nothing was installed yet does not know what packages there are.
        download().or_else(|_| {
            run(Command::new("apt-get").args(["update", "-q", "-q"])).and_then(|_| download())
        })?;
    }
    let file = find()?.with_context(|| format!("apt-get download {package} brought no file"))?;
    run(Command::new("dpkg-deb").arg("-x").arg(file).arg(rootfs))?;
    Ok(())
}

fn applets(rootfs: &Path) -> Result<()> {
    let busybox = rootfs.join("bin/busybox");
    let list = run(Command::new(&busybox).arg("--list"))?;
    for applet in list.lines().filter(|a| *a != "busybox") {
        let link = rootfs.join("bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", link)?;
        }
    }
    for folder in ["tmp", "etc", "root", "run"] {
        fs::create_dir_all(rootfs.join(folder))?;
    }
    Ok(())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// One layer, a configuration and a manifest, as `docker save` writes them.
fn docker_archive(recipe: &Recipe, rootfs: &Path, file: &Path) -> Result<()> {
    let mut layer = tar::Builder::new(Vec::new());
    layer.follow_symlinks(false);
    layer.append_dir_all(".", rootfs)?;
    let layer = layer.into_inner()?;
    let config: Value = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": recipe.command, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
        "history": [{"created_by": "decapod tests"}],
    });
    let config = config.to_string().into_bytes();
    let config_name = format!("{}.json", sha256(&config));
    let manifest = json!([{"Config": config_name, "RepoTags": [recipe.name], "Layers": ["layer.tar"]}]);
    let files = [
        (config_name, config),
        ("layer.tar".to_owned(), layer),
        ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
    ];
    save(file, &files)
}

/// A copy of an archive as an image of its own: by another name, and with a label that makes it another one.
///
/// # Errors
/// If the archive is not of the form that [`archive`] makes.
pub fn renamed(archive: &Path, name: &str, to: &Path) -> Result<()> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(fs::File::open(archive)?).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.push((path, content));
    }
    let content = |path: &str| -> Result<Value> {
        let found = files.iter().find(|(other, _)| other == path).with_context(|| format!("no {path}"))?;
        Ok(serde_json::from_slice(&found.1)?)
    };
    let mut manifest = content("manifest.json")?;
    let old = manifest[0]["Config"].as_str().context("no configuration is named")?.to_owned();
    let mut config = content(&old)?;
    config["config"]["Labels"] = json!({ "name": name });
    let config = config.to_string().into_bytes();
    let config_name = format!("{}.json", sha256(&config));
    manifest[0]["Config"] = json!(config_name);
    manifest[0]["RepoTags"] = json!([name]);
    files.retain(|(path, _)| *path != old && path != "manifest.json");
    files.push((config_name, config));
    files.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
    save(to, &files)
}

fn save(file: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    let mut archive = tar::Builder::new(fs::File::create(file)?);
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, &content[..])?;
    }
    archive.into_inner()?.sync_all()?;
    Ok(())
}
