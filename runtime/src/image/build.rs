//! Images made of files of this machine: the binary's own, from which system pods run.
//!
//! **Invariant**: the same files and configuration give the same image id, whatever their times
//! and owners are; files that have not changed are not even read again.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::archive::architecture;
use super::blob::{Digesting, digest_of};
use super::error::{Error, Result};
use super::{Image, ImageConfig, Layer, Reference, Store};

/// A file of this machine and where it is to be in an image.
#[derive(Clone, Debug)]
pub struct ImageFile {
    /// The file on this machine.
    pub source: PathBuf,
    /// Its absolute path in the image; the directories above it are made.
    pub target: PathBuf,
    /// Its permissions.
    pub mode: u32,
}

impl Store {
    /// Makes an image of one layer. Does nothing if it is there already, of the same files.
    pub(crate) fn build(&self, name: &str, files: &[ImageFile], config: &ImageConfig) -> Result<Arc<Image>> {
        let _work = self.work();
        let tag = Reference::parse(name)?
            .tagged()
            .ok_or_else(|| Error::Reference { reference: name.to_owned(), what: "it has no tag" })?;
        let stamp = stamp(files, config)?;
        if let Some(image) = self.find(name)
            && image.built_from.as_deref() == Some(&stamp)
            && self.layers().join(image.layers[0].directory()).is_dir()
        {
            return Ok(image);
        }
        let diff_id = digest(files)?;
        let mut layer = Layer { diff_id, blob: None, bytes: 0 };
        layer.bytes = self.place_layer(&layer.directory(), |target| fill(files, target))?;
        let document = document(config, &layer.diff_id);
        let id = digest_of(&document);
        self.blobs.put(&id, name, &mut document.as_slice())?;
        self.add(Image {
            id,
            tags: [tag].into(),
            digests: std::collections::BTreeSet::new(),
            manifest: None,
            layers: vec![layer],
            config: config.clone(),
            built_from: Some(stamp),
        })
    }
}

/// What changes when a file does: replaced files have another inode or time.
fn stamp(files: &[ImageFile], config: &ImageConfig) -> Result<String> {
    use std::fmt::Write as _;
    let mut text = serde_json::to_string(config).expect("a struct of strings is JSON");
    for file in files {
        let meta = fs::metadata(&file.source).map_err(Error::io("read", &file.source))?;
        write!(
            text,
            "|{}|{}|{:o}|{}|{}|{}|{}.{}",
            file.source.display(),
            file.target.display(),
            file.mode,
            meta.dev(),
            meta.ino(),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec()
        )
        .expect("writing to a String does not fail");
    }
    Ok(digest_of(text.as_bytes()))
}

/// The digest of the tar archive that the files would make.
fn digest(files: &[ImageFile]) -> Result<String> {
    let mut builder = tar::Builder::new(Digesting::new(io::sink()));
    for file in files {
        let failed = |error| Error::io("read", &file.source)(error);
        let mut input = fs::File::open(&file.source).map_err(Error::io("open", &file.source))?;
        let mut header = tar::Header::new_gnu();
        header.set_size(input.metadata().map_err(failed)?.len());
        header.set_mode(file.mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_entry_type(tar::EntryType::Regular);
        builder.append_data(&mut header, relative(&file.target), &mut input).map_err(failed)?;
    }
    let digesting = builder.into_inner().map_err(Error::io("digest", "the layer"))?;
    Ok(digesting.digest())
}

fn fill(files: &[ImageFile], root: &Path) -> Result<u64> {
    let mut bytes = 0;
    for file in files {
        let target = root.join(relative(&file.target));
        let parent = target.parent().unwrap_or(root);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        bytes += fs::copy(&file.source, &target).map_err(Error::io("copy", &file.source))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))
            .map_err(Error::io("change", &target))?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).map_err(Error::io("change", root))?;
    Ok(bytes)
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// The configuration document, whose digest is the image's id.
fn document(config: &ImageConfig, diff_id: &str) -> Vec<u8> {
    let document = serde_json::json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "User": config.user,
            "Env": config.env,
            "Entrypoint": config.entrypoint,
            "Cmd": config.cmd,
            "WorkingDir": config.working_dir,
            "StopSignal": config.stop_signal,
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    serde_json::to_vec(&document).expect("a JSON value is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_make_the_same_image() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("program");
        fs::write(&source, "content").unwrap();
        let files = [ImageFile { source: source.clone(), target: "/bin/program".into(), mode: 0o755 }];
        let config = ImageConfig { entrypoint: vec!["/bin/program".into()], ..Default::default() };
        let store = Store::open(dir.path().join("images")).unwrap();
        let first = store.build("x.internal/y:self", &files, &config).unwrap();
        assert_eq!(store.build("x.internal/y:self", &files, &config).unwrap().id, first.id);
        // A new file of the same content is another file, but the same image.
        fs::remove_file(&source).unwrap();
        fs::write(&source, "content").unwrap();
        let again = store.build("x.internal/y:self", &files, &config).unwrap();
        assert_eq!(again.id, first.id);
        let layer = store.layers().join(again.layers[0].directory());
        assert_eq!(fs::read_to_string(layer.join("bin/program")).unwrap(), "content");
        fs::write(&source, "changed").unwrap();
        let changed = store.build("x.internal/y:self", &files, &config).unwrap();
        assert_ne!(changed.id, first.id);
        assert!(store.find(&first.id).unwrap().tags.is_empty());
    }
}
