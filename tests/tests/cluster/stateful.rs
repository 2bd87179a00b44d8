//! A database that keeps its data: Redis as a StatefulSet with claims.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::redis::{self, Redis};
use decapod_tests::{images, poll};

use crate::application;

/// Far longer than anything takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) fn redis_keeps_its_data(cluster: &Cluster) -> Result<()> {
    cluster.import(&images::REDIS)?;
    cluster.in_namespace("redis", |ns| {
        let k = |arguments: &[&str]| cluster.k(&[&["-n", ns], arguments].concat());
        let rolled_out = || k(&["rollout", "status", "sts/redis", "--timeout=180s"]);
        let of = |pod: &str| {
            Redis::of(pod, || {
                let pod = cluster.get(&["pod", pod, "-n", ns])?;
                Ok(pod["status"]["podIP"].as_str().context("no address")?.to_owned())
            })
        };
        let whole = |when: &str| of("redis-0")?.is_whole(when);
        cluster.apply(&redis::set(ns, "Retain").to_string())?;
        rolled_out()?;
        of("redis-0")?.fill()?;
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
        let size = of("redis-1")?.ask("DBSIZE")?;
        ensure!(size == ":0", "the second has data of its own: {size}");
        k(&["delete", "sts/redis", "--cascade=foreground"])?;
        ensure!(volume()? == first, "the claim outlives the set");
        cluster.apply(&redis::set(ns, "Delete").to_string())?;
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
