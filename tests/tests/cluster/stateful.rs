//! A database that keeps its data: Redis as a StatefulSet with claims.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::{images, poll};
use serde_json::{Value, json};

use crate::application;

/// Far longer than anything takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(180);

const KEYS: usize = 200;

/// One connection to Redis.
struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    /// Waits until the server of a pod answers.
    fn of(cluster: &Cluster, namespace: &str, pod: &str) -> Result<Self> {
        let address = || -> Result<String> {
            // One that was deleted may not be there again yet.
            let pod = cluster.get(&["pod", pod, "-n", namespace])?;
            Ok(format!("{}:6379", pod["status"]["podIP"].as_str().context("no address")?))
        };
        poll::until(&format!("{pod} to answer"), PATIENCE, || {
            let redis = address().and_then(|address| {
                let mut redis = Self::connect(&address)?;
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
    fn ask(&mut self, command: &str) -> Result<String> {
        self.stream.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let first = self.line()?;
        if first.starts_with('$') && first != "$-1" { self.line() } else { Ok(first) }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
        Ok(line.trim_end().to_owned())
    }

    fn fill(&mut self) -> Result<()> {
        (0..KEYS).try_for_each(|n| {
            let answer = self.ask(&format!("SET key-{n} value-{n}"))?;
            ensure!(answer == "+OK", "{answer}");
            Ok(())
        })
    }

    fn is_whole(&mut self, when: &str) -> Result<()> {
        (0..KEYS).try_for_each(|n| {
            let answer = self.ask(&format!("GET key-{n}"))?;
            ensure!(answer == format!("value-{n}"), "{when}, key-{n} is {answer}");
            Ok(())
        })
    }
}

fn redis(namespace: &str, when_deleted: &str) -> Value {
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

pub(crate) fn redis_keeps_its_data(cluster: &Cluster) -> Result<()> {
    cluster.import(&images::REDIS)?;
    cluster.in_namespace("redis", |ns| {
        let k = |arguments: &[&str]| cluster.k(&[&["-n", ns], arguments].concat());
        let rolled_out = || k(&["rollout", "status", "sts/redis", "--timeout=180s"]);
        let whole = |when: &str| Redis::of(cluster, ns, "redis-0")?.is_whole(when);
        cluster.apply(&redis(ns, "Retain").to_string())?;
        rolled_out()?;
        Redis::of(cluster, ns, "redis-0")?.fill()?;
        let volume = || k(&["get", "pvc", "data-redis-0", "-o", "jsonpath={.spec.volumeName}"]);
        let first = volume()?;
        // Its name leads to it, also within its own pod.
        application::client(cluster, ns)?;
        let name = format!("redis-0.redis.{ns}.svc.cluster.local");
        let address = k(&["get", "pod", "redis-0", "-o", "jsonpath={.status.podIP}"])?;
        let look = || cluster.exec(ns, "client", &["sh", "-c", &format!("nslookup {name} || true")]);
        poll::text("the name of the pod", PATIENCE, look, |text| text.contains(&address))?;
        ensure!(cluster.exec(ns, "redis-0", &["hostname", "-f"])?.trim() == name);

        k(&["delete", "pod", "redis-0"])?;
        rolled_out()?;
        whole("after the pod was deleted")?;
        k(&["set", "env", "sts/redis", "VERSION=2"])?;
        rolled_out()?;
        whole("after a rolling update")?;
        k(&["scale", "sts/redis", "--replicas=2"])?;
        rolled_out()?;
        let size = Redis::of(cluster, ns, "redis-1")?.ask("DBSIZE")?;
        ensure!(size == ":0", "the second has data of its own: {size}");
        k(&["delete", "sts/redis", "--cascade=foreground"])?;
        ensure!(volume()? == first, "the claim outlives the set");
        cluster.apply(&redis(ns, "Delete").to_string())?;
        rolled_out()?;
        whole("after the set was made anew")?;
        // The claim of the ordinal that the set does not have is not its own.
        k(&["delete", "sts/redis", "--cascade=foreground"])?;
        let claims = || k(&["get", "pvc", "-o", "name"]);
        poll::text("the claim to go with the set", PATIENCE, claims, |left| {
            left.trim() == "persistentvolumeclaim/data-redis-1"
        })?;
        Ok(())
    })
}
