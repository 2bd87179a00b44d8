//! What a machine holds that a cluster could leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::Cluster;
use crate::poll;

/// The kernel takes namespaces and cgroups down a moment after their last process.
const PATIENCE: Duration = Duration::from_secs(60);

/// `down` leaves no process, namespace, mount, interface, rule or cgroup.
///
/// # Errors
/// What it left.
#[expect(clippy::needless_pass_by_value, reason = "nothing is done with a cluster that is down")]
pub fn nothing_is_left(before: &Inventory, cluster: Cluster) -> Result<()> {
    println!("{}", cluster.down()?);
    ensure!(!cluster.data().exists(), "{} is still there", cluster.data().display());
    poll::until("the machine to be as it was", PATIENCE, || {
        let left = Inventory::take()?.since(before);
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) })
    })
}

/// Namespaces, mounts, interfaces, nftables tables, cgroups and processes, as lines of text.
#[derive(Debug)]
pub struct Inventory(BTreeSet<String>);

impl Inventory {
    /// Looks at the machine.
    ///
    /// # Errors
    /// What could not be read.
    pub fn take() -> Result<Self> {
        let mut lines = BTreeSet::new();
        for entry in fs::read_dir("/sys/class/net")? {
            lines.insert(format!("interface {}", entry?.file_name().to_string_lossy()));
        }
        if let Ok(entries) = fs::read_dir("/run/netns") {
            lines.extend(
                entries.flatten().map(|e| format!("network namespace {}", e.file_name().to_string_lossy())),
            );
        }
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            lines.insert(format!("mount {}", line.split(' ').nth(4).unwrap_or_default()));
        }
        lines.extend(tables()?.into_iter().map(|t| format!("nftables {t}")));
        cgroups(Path::new("/sys/fs/cgroup"), &mut lines)?;
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let ours = command.split(' ').next().is_some_and(|p| p.ends_with("decapod"));
            if name.bytes().all(|b| b.is_ascii_digit()) && ours {
                lines.insert(format!("process {name} {command}"));
            }
        }
        Ok(Self(lines))
    }

    /// What is there now and was not then.
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// The nftables tables of this network namespace. Without the program there is none to ask, and none made by a test.
fn tables() -> Result<Vec<String>> {
    let output = crate::tools::run(std::process::Command::new("nft").args(["list", "tables"]))?;
    Ok(output.lines().map(str::to_owned).collect())
}

fn cgroups(folder: &Path, lines: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            lines.insert(format!("cgroup {}", path.display()));
            // A cgroup may go away while it is looked at.
            cgroups(&path, lines).unwrap_or_default();
        }
    }
    Ok(())
}
