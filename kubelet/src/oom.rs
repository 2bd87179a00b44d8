//! Processes that the kernel killed for want of memory, as it says in its log: an event names the container, the
//! process, and what it had in memory, whichever process of the container it was.
//!
//! The container's status says `OOMKilled` by its control group, without this: where the kernel's log cannot be
//! read, only the event is missing.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use decapod_api::quantity::Quantity;
use k8s_openapi::api::core::v1::Pod;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::pod::{mark, spec};
use crate::shared::Shared;

/// The kernel's log, one record a read.
const LOG: &str = "/dev/kmsg";
/// The longest record that the kernel makes is 1 KiB and its head.
const RECORD_MAX: usize = 8 * 1024;

/// A process that was killed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Victim {
    /// The control group that it was in.
    group: String,
    process: String,
    pid: u64,
    /// The machine as a whole had no memory left, rather than one control group.
    machine: bool,
}

/// What the kernel says in two lines: who it is, and what it had.
#[derive(Debug, Default)]
struct Parser {
    victim: Option<Victim>,
}

impl Parser {
    /// Takes a record's text in; a victim with the bytes that it had in memory once both lines were there.
    fn line(&mut self, text: &str) -> Option<(Victim, u64)> {
        if let Some(fields) = text.strip_prefix("oom-kill:") {
            self.victim = victim(fields);
            return None;
        }
        let (_, killed) = text.split_once("Killed process ")?;
        let victim = self.victim.take()?;
        let pid = killed.split_whitespace().next()?.parse::<u64>().ok()?;
        // Anonymous memory, that of files, and that which is shared.
        let kibibytes = ["anon-rss:", "file-rss:", "shmem-rss:"].iter().map(|field| {
            let value = killed.split_once(field).and_then(|(_, rest)| rest.split_once("kB"));
            value.and_then(|(number, _)| number.parse::<u64>().ok()).unwrap_or(0)
        });
        (pid == victim.pid).then(|| (victim, kibibytes.sum::<u64>() * 1024))
    }
}

fn victim(fields: &str) -> Option<Victim> {
    let field = |name: &str| {
        let mut fields = fields.split(',').filter_map(|field| field.split_once('='));
        fields.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    Some(Victim {
        group: field("task_memcg")?.to_owned(),
        process: field("task")?.to_owned(),
        pid: field("pid")?.parse().ok()?,
        machine: field("constraint") != Some("CONSTRAINT_MEMCG"),
    })
}

/// The pod's uid and the container's id, for a control group of this kubelet: `…/pod<uid>/<id>[/…]`.
fn owner<'a>(root: &str, group: &'a str) -> Option<(&'a str, &'a str)> {
    // The kernel may see the root at another place than we do.
    let (_, below) = group.split_once(&format!("/{}/kubepods/", root.trim_matches('/')))?;
    let mut parts = below.split('/').skip_while(|part| !part.starts_with("pod"));
    Some((parts.next()?.strip_prefix("pod")?, parts.next()?))
}

/// The text of a record: what follows its head, up to the lines with its fields.
fn text(record: &str) -> &str {
    let text = record.split_once(';').map_or(record, |(_, text)| text);
    text.lines().next().unwrap_or_default()
}

/// Tells of every process that is killed, until it is dropped.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let log = match open() {
        Ok(log) => log,
        Err(error) => {
            tracing::info!(%error, path = LOG, "the kernel's log cannot be read: killed processes are not named");
            return;
        }
    };
    let mut parser = Parser::default();
    let mut record = vec![0; RECORD_MAX];
    loop {
        let length = match read(&log, &mut record).await {
            Ok(length) => length,
            // Records were overwritten before they were read: the next one is there.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => continue,
            Err(error) => {
                tracing::warn!(%error, "the kernel's log cannot be read any more");
                return;
            }
        };
        let record = String::from_utf8_lossy(&record[..length]);
        if let Some((victim, memory)) = parser.line(text(&record)) {
            tell(&shared, &victim, memory).await;
        }
    }
}

fn open() -> io::Result<AsyncFd<File>> {
    let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(LOG)?;
    // What was before has been told of, or was not ours.
    log.seek(SeekFrom::End(0))?;
    // SAFETY: the descriptor is owned by the file, which the registration owns: it stays open and the same.
    unsafe { AsyncFd::register_with_interest(log, Interest::READABLE) }.map_err(Into::into)
}

async fn read(log: &AsyncFd<File>, record: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = log.readable().await?;
        match ready.try_io(|log| log.get_ref().read(record)) {
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

async fn tell(shared: &Shared, victim: &Victim, memory: u64) {
    let Victim { process, pid, .. } = victim;
    if victim.machine {
        let message = format!("System OOM encountered, victim process: {process}, pid: {pid}");
        shared.tell.node_warning(&shared.options.node_name, "SystemOOM", message);
    }
    let Some((uid, id)) = owner(&shared.options.cgroup_root, &victim.group) else { return };
    let Some(pod) = shared.pods.list().into_iter().find(|pod| spec::uid(pod) == uid) else { return };
    let name = match shared.runtime.container_status(id).await {
        Ok(status) => status.labels.get(mark::CONTAINER_NAME).cloned().unwrap_or_default(),
        Err(error) => {
            tracing::debug!(container = id, %error, "a container whose process was killed is gone");
            return;
        }
    };
    tracing::warn!(
        pod = spec::name(&pod),
        container = name,
        process,
        pid,
        memory,
        "a process had no memory left"
    );
    shared.tell.container_warning(&pod, &name, "OOMKilling", message(&pod, &name, victim, memory));
}

/// Who was killed, why, and what can be done about it.
fn message(pod: &Pod, container: &str, victim: &Victim, memory: u64) -> String {
    let memory = Quantity::from_bytes(i64::try_from(memory).unwrap_or(i64::MAX));
    let limits =
        pod.spec.as_ref().and_then(|s| spec::find(s, container)).and_then(|(c, _)| c.resources?.limits);
    let limit = limits.and_then(|limits| limits.get("memory").map(|limit| limit.0.clone()));
    let why = match (victim.machine, limit) {
        (true, _) => "the node has no memory left".to_owned(),
        (false, Some(limit)) => format!("resources.limits.memory of {limit} is reached"),
        (false, None) => "the pod's memory limit is reached".to_owned(),
    };
    let Victim { process, pid, .. } = victim;
    format!(
        "Container {container}: process {process} (pid {pid}) was killed while it had {memory} in memory: {why}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_understood() {
        let mut parser = Parser::default();
        let head = "4,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,\
            oom_memcg=/d/kubepods/pod1,task_memcg=/d/kubepods/pod1/c1,task=tail,pid=77,uid=0\n SUBSYSTEM=x\n";
        assert_eq!(parser.line(text(head)), None);
        assert_eq!(parser.line("something else"), None);
        let killed = "Memory cgroup out of memory: Killed process 77 (tail) total-vm:9kB, anon-rss:1000kB, \
            file-rss:20kB, shmem-rss:4kB, UID:0 pgtables:1kB oom_score_adj:0";
        let (victim, memory) = parser.line(killed).unwrap();
        assert_eq!((victim.process.as_str(), victim.pid, memory), ("tail", 77, 1024 << 10));
        assert!(!victim.machine);
        assert_eq!(parser.line(killed), None, "told once");
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "resources": {"limits": {"memory": "64Mi"}}}]}}))
            .unwrap();
        assert_eq!(
            message(&pod, "c", &victim, memory),
            "Container c: process tail (pid 77) was killed while it had 1Mi in memory: \
             resources.limits.memory of 64Mi is reached"
        );
    }

    #[test]
    fn only_groups_of_this_kubelet_count() {
        let own = |group| owner("/decapod-a", group);
        assert_eq!(own("/decapod-a/kubepods/burstable/podu1/c1"), Some(("u1", "c1")));
        assert_eq!(own("/outer/decapod-a/kubepods/podu1/c1/inner"), Some(("u1", "c1")));
        assert_eq!(own("/decapod-ab/kubepods/podu1/c1"), None);
        assert_eq!(own("/decapod-a/kubepods/podu1"), None);
        assert_eq!(own("/system.slice/x"), None);
    }
}
