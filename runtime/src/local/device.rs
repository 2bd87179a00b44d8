//! Devices of the machine in containers.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Directories of `/dev` that containers have of their own.
const OWN: [&str; 4] = ["pts", "shm", "mqueue", "fd"];

/// Devices that libcontainer makes of the container's own terminals.
const MADE: [&str; 2] = ["console", "ptmx"];

/// Deepest directories of `/dev` that are looked through, as in `/dev/bus/usb/001`.
const MAX_DEPTH: usize = 5;

/// Whether a device of that path is made anew in the container, rather than bound into it.
pub(super) fn is_made(target: &str) -> bool {
    target.starts_with("/dev/")
}

/// The rule that lets a container use a device.
pub(super) fn rule(host_path: &str, permissions: &str) -> Result<Value> {
    let device = describe(Path::new(host_path), host_path)
        .map_err(|error| Error::invalid("devices", format!("{host_path}: {error}")))?
        .ok_or_else(|| Error::invalid("devices", format!("{host_path} is not a device")))?;
    let access = if permissions.is_empty() { "rwm" } else { permissions };
    Ok(json!({
        "allow": true,
        "type": device["type"],
        "major": device["major"],
        "minor": device["minor"],
        "access": access,
    }))
}

/// A device as the container will see it; `None` for what is no device.
pub(super) fn describe(path: &Path, target: &str) -> io::Result<Option<Value>> {
    let meta = fs::metadata(path)?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return Ok(None),
    };
    Ok(Some(json!({
        "path": target,
        "type": kind,
        "major": major(meta.rdev()),
        "minor": minor(meta.rdev()),
        "fileMode": meta.mode() & 0o7777,
        "uid": meta.uid(),
        "gid": meta.gid(),
    })))
}

/// All devices of the machine.
pub(super) fn all() -> io::Result<Vec<Value>> {
    let mut devices = Vec::new();
    let mut directories = vec![(Path::new("/dev").to_owned(), 0)];
    while let Some((directory, depth)) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let kind = entry.file_type()?;
            if kind.is_dir() && depth < MAX_DEPTH && !OWN.iter().any(|own| name == *own) {
                directories.push((entry.path(), depth + 1));
            } else if (kind.is_char_device() || kind.is_block_device())
                && !MADE.iter().any(|made| name == *made)
            {
                let target = entry.path().display().to_string();
                devices.extend(describe(&entry.path(), &target)?);
            }
        }
    }
    Ok(devices)
}
