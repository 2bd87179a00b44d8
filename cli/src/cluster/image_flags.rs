//! The flags about a node's images: registries, pulls at once, and when unused ones go; the kubelet's, by its names.

use std::path::{Path, PathBuf};

use clap::Args;
use decapod_kubelet::ImageGc;
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::failure::Failure;

/// Where the file about registries is looked for.
const REGISTRIES: &str = "/etc/decapod/registries.yaml";

/// What is said about a node's images.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ImageFlags {
    /// Mirrors, authorities and credentials of registries (default: /etc/decapod/registries.yaml, if it exists). It is
    /// read at each pull.
    #[arg(long, value_name = "FILE")]
    registries: Option<PathBuf>,
    /// How many images are pulled at once (default: 5).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    max_parallel_image_pulls: Option<u16>,
    /// Unused images are removed when so much of the disk is used (default: 85).
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_high_threshold: Option<u8>,
    /// Then they are removed until only so much is used (default: 80).
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_low_threshold: Option<u8>,
    /// Unused images are kept at least this long (default: 2m).
    #[arg(long, value_name = "DURATION", value_parser = kept)]
    minimum_image_ttl_duration: Option<String>,
    /// Unused images are removed after this long (default: never).
    #[arg(long, value_name = "DURATION", value_parser = kept)]
    image_maximum_gc_age: Option<String>,
}

/// A duration, kept as it was written.
fn kept(text: &str) -> Result<String, String> {
    duration::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl ImageFlags {
    /// The flags that say the same to a server, whatever folder it runs in.
    pub(crate) fn flags(&self) -> Vec<String> {
        // Where the current folder is unknown, the path stays as it was given.
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let given = [
            ("registries", self.registries.as_deref().map(|path| absolute(path).display().to_string())),
            ("max-parallel-image-pulls", self.max_parallel_image_pulls.map(|n| n.to_string())),
            ("image-gc-high-threshold", self.image_gc_high_threshold.map(|n| n.to_string())),
            ("image-gc-low-threshold", self.image_gc_low_threshold.map(|n| n.to_string())),
            ("minimum-image-ttl-duration", self.minimum_image_ttl_duration.clone()),
            ("image-maximum-gc-age", self.image_maximum_gc_age.clone()),
        ];
        given.into_iter().filter_map(|(flag, value)| Some(format!("--{flag}={}", value?))).collect()
    }

    /// The file about registries.
    pub(crate) fn registries(&self) -> PathBuf {
        self.registries.clone().unwrap_or_else(|| REGISTRIES.into())
    }

    /// How many images are pulled at once.
    pub(crate) fn parallel(&self) -> Option<usize> {
        self.max_parallel_image_pulls.map(usize::from)
    }

    /// When unused images go.
    pub(crate) fn gc(&self) -> Result<ImageGc, Failure> {
        let mut gc = ImageGc::default();
        if let Some(high) = self.image_gc_high_threshold {
            gc.high_percent = high;
            gc.low_percent = gc.low_percent.min(high);
        }
        if let Some(low) = self.image_gc_low_threshold {
            gc.low_percent = low;
        }
        if gc.low_percent > gc.high_percent {
            return Err(Failure::new(format!(
                "--image-gc-low-threshold={} is above --image-gc-high-threshold={}",
                gc.low_percent, gc.high_percent
            )));
        }
        if let Some(age) = &self.minimum_image_ttl_duration {
            gc.min_age = duration::parse(age)?;
        }
        gc.max_age = self.image_maximum_gc_age.as_deref().map(duration::parse).transpose()?;
        Ok(gc)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        images: ImageFlags,
    }

    fn parse(flags: &[String]) -> ImageFlags {
        let all = ["x".to_owned()].into_iter().chain(flags.iter().cloned());
        Flags::try_parse_from(all).unwrap().images
    }

    #[test]
    fn flags_survive_being_handed_on() {
        let flags: Vec<String> = [
            "--registries=/a/b.yaml",
            "--max-parallel-image-pulls=2",
            "--image-gc-high-threshold=70",
            "--image-gc-low-threshold=60",
            "--image-maximum-gc-age=1h",
        ]
        .map(str::to_owned)
        .to_vec();
        let parsed = parse(&flags);
        assert_eq!(parsed.flags(), flags);
        let gc = parsed.gc().unwrap();
        assert_eq!((gc.high_percent, gc.low_percent), (70, 60));
        assert!(gc.max_age.is_some());
        assert_eq!(parse(&[]), ImageFlags::default());
    }

    #[test]
    fn thresholds_must_be_in_order() {
        let error = parse(&["--image-gc-low-threshold=90".to_owned()]).gc().unwrap_err().to_string();
        assert!(error.contains("--image-gc-low-threshold=90") && error.contains("85"), "{error}");
        // A lower high threshold alone brings the other one down with it.
        assert_eq!(parse(&["--image-gc-high-threshold=10".to_owned()]).gc().unwrap().low_percent, 10);
    }
}
