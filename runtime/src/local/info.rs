//! What [`Runtime::info`](crate::Runtime::info) tells: where things are, for who looks for a fault.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::Inner;
use crate::cri::About;
use crate::error::Result;

impl Inner {
    pub(super) fn info(&self, about: About<'_>) -> Result<HashMap<String, String>> {
        let told = match about {
            About::Runtime => json!({
                "dataDir": self.options.data_dir,
                "runDir": self.options.run_dir,
                "shimCgroup": self.options.shim_cgroup,
                "sandboxes": self.tables().sandboxes.len(),
                "containers": self.tables().containers.len(),
            }),
            About::Sandbox(id) => self.sandbox_info(id)?,
            About::Container(id) => self.container_info(id)?,
        };
        Ok([("info".to_owned(), told.to_string())].into())
    }

    fn sandbox_info(&self, id: &str) -> Result<Value> {
        let record = self.sandbox(id)?.record().clone();
        let netns = self.paths.namespace(id, "net");
        Ok(json!({
            "sandboxID": id,
            "runtimeHandler": record.handler,
            "directory": self.paths.sandbox(id),
            "networkNamespace": netns.exists().then_some(netns),
            "ips": record.ips,
            "hostname": record.config.0.hostname,
            "logDirectory": record.config.0.log_directory,
        }))
    }

    fn container_info(&self, id: &str) -> Result<Value> {
        let container = self.container(id)?;
        let record = &container.record;
        let config = &record.config.0;
        Ok(json!({
            "sandboxID": record.sandbox,
            "pid": container.phase().started().map(|started| started.process.pid),
            "directory": self.paths.container(&record.sandbox, id),
            "rootfs": self.paths.rootfs(&record.sandbox, id),
            "layers": record.layers,
            "cgroup": record.launch.cgroup,
            "stopSignal": record.stop_signal,
            "stdin": config.stdin,
            "stdinOnce": config.stdin_once,
            "tty": config.tty,
        }))
    }
}
