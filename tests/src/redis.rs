//! Redis as a StatefulSet with a claim, and what it was told.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::poll;

/// Far longer than anything takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(180);
/// How many keys it is told: enough for more than one write of its file.
const KEYS: usize = 200;

/// One connection to Redis.
#[derive(Debug)]
pub struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    /// Waits until the server answers whose address is looked up each time: a pod that was deleted may not be there again
    /// yet.
    ///
    /// # Errors
    /// The last refusal.
    pub fn of(called: &str, address: impl Fn() -> Result<String>) -> Result<Self> {
        poll::until(&format!("{called} to answer"), PATIENCE, || {
            let redis = address().and_then(|address| {
                let mut redis = Self::connect(&format!("{address}:6379"))?;
                ensure!(redis.ask("PING")? == "+PONG", "it is loading");
                Ok(redis)
            });
            Ok(redis.map_err(|error| format!("{error:#}")))
        })
    }

    fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address.parse()?, Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The first line of an answer; of a string the string.
    ///
    /// # Errors
    /// That the connection broke.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.stream.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let first = self.line()?;
        if first.starts_with('$') && first != "$-1" { self.line() } else { Ok(first) }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
        Ok(line.trim_end().to_owned())
    }

    /// Tells it all keys.
    ///
    /// # Errors
    /// What it answered.
    pub fn fill(&mut self) -> Result<()> {
        (0..KEYS).try_for_each(|n| {
            let answer = self.ask(&format!("SET key-{n} value-{n}"))?;
            ensure!(answer == "+OK", "{answer}");
            Ok(())
        })
    }

    /// Sees whether it knows all keys.
    ///
    /// # Errors
    /// Which it does not know.
    pub fn is_whole(&mut self, when: &str) -> Result<()> {
        (0..KEYS).try_for_each(|n| {
            let answer = self.ask(&format!("GET key-{n}"))?;
            ensure!(answer == format!("value-{n}"), "{when}, key-{n} is {answer}");
            Ok(())
        })
    }
}

/// The set and its Service; the claim is kept or goes with the set (`Retain`, `Delete`).
pub fn set(namespace: &str, when_deleted: &str) -> Value {
    let container = json!({"name": "redis", "image": "redis:7", "ports": [{"containerPort": 6379, "name": "redis"}],
        "readinessProbe": {"tcpSocket": {"port": 6379}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}]});
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "64Mi"}}}});
    let labels = json!({"app": "redis"});
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "redis", "namespace": namespace}, "spec": {
            "serviceName": "redis", "replicas": 1, "selector": {"matchLabels": labels},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": when_deleted},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            "volumeClaimTemplates": [claim]}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "redis", "namespace": namespace},
        "spec": {"clusterIP": "None", "selector": labels, "ports": [{"port": 6379, "name": "redis"}]}});
    json!({"apiVersion": "v1", "kind": "List", "items": [service, set]})
}
