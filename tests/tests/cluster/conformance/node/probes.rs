//! Probes of every kind, and what follows from their results.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{condition, container, pod, sh, stage};

pub(super) const TESTS: &[Test<Cluster>] = &[
    (
        "[sig-node] Probing container should be restarted with a exec \"cat /tmp/health\" liveness probe",
        |c| restarted(c, "live-exec-dies"),
    ),
    ("[sig-node] Probing container should be restarted with a /healthz http liveness probe", |c| {
        restarted(c, "live-http-dies")
    }),
    ("[sig-node] Probing container should be restarted with a GRPC liveness probe", |c| {
        restarted(c, "live-grpc-dies")
    }),
    (
        "[sig-node] Probing container should *not* be restarted with a exec \"cat /tmp/health\" liveness probe",
        |c| lives(c, "live-exec"),
    ),
    ("[sig-node] Probing container should *not* be restarted with a /healthz http liveness probe", |c| {
        lives(c, "live-http")
    }),
    ("[sig-node] Probing container should *not* be restarted with a tcp:8080 liveness probe", |c| {
        lives(c, "live-tcp")
    }),
    ("[sig-node] Probing container should *not* be restarted with a GRPC liveness probe", |c| {
        lives(c, "live-grpc")
    }),
    ("[sig-node] Probing container should have monotonically increasing restart count", |c| {
        let scene = stage(c)?;
        let mut last = 0;
        // The third attempt starts after a back-off of ten seconds.
        while last < 2 {
            let more = |pod: &Value| container(pod, "c")["restartCount"].as_i64() != Some(last);
            let pod = scene.until("pod/live-exec-dies", "another attempt", more)?;
            let now = container(&pod, "c")["restartCount"].as_i64().context("no count")?;
            ensure!(now > last, "{last}, then {now}");
            last = now;
        }
        Ok(())
    }),
    (
        "[sig-node] Probing container with readiness probe should not be ready before initial delay and never restart",
        delay,
    ),
    (
        "[sig-node] Probing container with readiness probe that fails should never be ready and never restart",
        |c| {
            stage(c)?.event("never-ready", "Unhealthy", "Readiness probe failed")?;
            let pod = stage(c)?
                .until("pod/never-ready", "its start", |pod| container(pod, "c")["started"] == true)?;
            let status = container(&pod, "c");
            ensure!(status["ready"] == false && status["restartCount"] == 0, "{status}");
            ensure!(condition(&pod, "Ready") == "False", "{:#}", pod["status"]);
            Ok(())
        },
    ),
];

/// Seconds before a container is asked whether it is ready.
const DELAY: i64 = 3;

pub(super) fn pods() -> Result<Vec<Value>> {
    let always = json!({"restartPolicy": "Always"});
    let one = |name: &str, script: &str, kind: &str, probe: Value| {
        let mut probe = probe;
        for (key, value) in [("periodSeconds", 1), ("timeoutSeconds", 30), ("failureThreshold", 1)] {
            if probe[key].is_null() {
                probe[key] = json!(value);
            }
        }
        pod(name, json!([sh("c", script, json!({kind: probe}))]), always.clone())
    };
    let health = json!({"exec": {"command": ["cat", "/tmp/health"]}});
    let http = json!({"httpGet": {"path": "/healthz", "port": 8080}, "initialDelaySeconds": 1, "failureThreshold": 120});
    // Answers until somebody takes the page away; the shell waits for the server, so that both end together.
    let serve = "mkdir /www && echo ok > /www/healthz && exec httpd -f -p 8080 -h /www";
    let mut dies = http.clone();
    dies["failureThreshold"] = json!(1);
    dies["httpGet"]["path"] = json!("/gone");
    let tcp = json!({"tcpSocket": {"port": 8080}, "initialDelaySeconds": 1, "failureThreshold": 120});
    let port = grpc_server()?;
    let grpc = |service: &str, failures: i32| json!({"grpc": {"port": port, "service": service}, "failureThreshold": failures});
    let mut pods = vec![
        one("live-exec-dies", "exec sleep 3600", "livenessProbe", health.clone()),
        one("live-exec", "touch /tmp/health; exec sleep 3600", "livenessProbe", {
            let mut patient = health;
            patient["failureThreshold"] = json!(120);
            patient
        }),
        one("live-http", serve, "livenessProbe", http.clone()),
        one("live-http-dies", serve, "livenessProbe", dies),
        one("live-tcp", serve, "livenessProbe", tcp),
        one("never-ready", "exec sleep 3600", "readinessProbe", json!({"exec": {"command": ["false"]}})),
        one("ready-late", "exec sleep 3600", "readinessProbe", {
            json!({"exec": {"command": ["true"]}, "initialDelaySeconds": DELAY})
        }),
    ];
    // Asked at the pod's address, which on the node's network is the node's: where this process listens.
    for (name, service, failures) in [("live-grpc", "well", 120), ("live-grpc-dies", "sick", 1)] {
        let mut pod = one(name, "exec sleep 3600", "livenessProbe", grpc(service, failures));
        pod["spec"]["hostNetwork"] = json!(true);
        pods.push(pod);
    }
    Ok(pods)
}

fn restarted(cluster: &Cluster, name: &str) -> Result<()> {
    let scene = stage(cluster)?;
    let again = |pod: &Value| container(pod, "c")["restartCount"].as_i64() > Some(0);
    scene.until(&format!("pod/{name}"), "a restart", again)?;
    scene.event(name, "Unhealthy", "Liveness probe failed")?;
    scene.event(name, "Killing", "Container c failed liveness probe, will be restarted")
}

/// Others whose probes fail have been restarted by now: this one has been asked as often.
fn lives(cluster: &Cluster, name: &str) -> Result<()> {
    let scene = stage(cluster)?;
    for other in ["live-exec-dies", "live-http-dies"] {
        let again = |pod: &Value| container(pod, "c")["restartCount"].as_i64() > Some(0);
        scene.until(&format!("pod/{other}"), "a restart", again)?;
    }
    let pod = scene.until(&format!("pod/{name}"), "its start", |pod| condition(pod, "Ready") == "True")?;
    let status = container(&pod, "c");
    ensure!(status["restartCount"] == 0 && status["lastState"]["terminated"].is_null(), "{status}");
    Ok(())
}

fn delay(cluster: &Cluster) -> Result<()> {
    let scene = stage(cluster)?;
    let pod = scene.until("pod/ready-late", "its readiness", |pod| condition(pod, "Ready") == "True")?;
    let seconds = |time: &Value| -> Result<i64> {
        // Both are of one day and in whole seconds, but for a run at midnight.
        let text = time.as_str().context("no time")?;
        let clock = text.split('T').nth(1).context("no time of day")?.trim_end_matches('Z');
        clock.split(':').try_fold(0, |sum, part| Ok(sum * 60 + part.parse::<i64>()?))
    };
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.find(|c| c["type"] == "Ready").context("no condition")?;
    let status = container(&pod, "c");
    let took = seconds(&ready["lastTransitionTime"])? - seconds(&status["state"]["running"]["startedAt"])?;
    // Whole seconds: a start at the end of one counts as its beginning.
    ensure!(took.rem_euclid(86_400) >= DELAY - 1, "ready after {took} s: {status}");
    ensure!(status["restartCount"] == 0, "{status}");
    Ok(())
}

/// A server of `grpc.health.v1.Health`, of which `well` serves and nothing else does; its port.
fn grpc_server() -> Result<u16> {
    static PORT: OnceLock<Option<u16>> = OnceLock::new();
    let port = PORT.get_or_init(|| {
        let listener = TcpListener::bind("0.0.0.0:0").ok()?;
        let port = listener.local_addr().ok()?.port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that breaks off is none of our business.
                std::thread::spawn(move || answer(stream).ok());
            }
        });
        Some(port)
    });
    port.context("no port is free")
}

/// Answers one call on a connection: enough of HTTP/2 for a client that asks once.
fn answer(mut stream: TcpStream) -> Result<()> {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const END_STREAM: u8 = 1;
    const ACK: u8 = 1;
    const END_HEADERS: u8 = 4;
    let mut preface = [0; 24];
    stream.read_exact(&mut preface)?;
    send(&mut stream, SETTINGS, 0, 0, &[])?;
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header)?;
        let [a, b, c, kind, flags, id @ ..] = header;
        let mut body = vec![0; usize::try_from(u32::from_be_bytes([0, a, b, c]))?];
        stream.read_exact(&mut body)?;
        if kind == SETTINGS && flags & ACK == 0 {
            send(&mut stream, SETTINGS, ACK, 0, &[])?;
        }
        if kind != DATA || flags & END_STREAM == 0 {
            continue;
        }
        let id = u32::from_be_bytes(id);
        // `:status: 200` and `content-type: application/grpc`, then a message, then `grpc-status: 0`.
        let head = [&[0x88, 0x0f, 0x10, 16][..], b"application/grpc"].concat();
        send(&mut stream, HEADERS, END_HEADERS, id, &head)?;
        let serving = if body.ends_with(b"well") { 1 } else { 2 };
        send(&mut stream, DATA, 0, id, &[0, 0, 0, 0, 2, 0x08, serving])?;
        let tail = [&[0x00, 11][..], b"grpc-status", &[1], b"0"].concat();
        send(&mut stream, HEADERS, END_HEADERS | END_STREAM, id, &tail)?;
    }
}

fn send(stream: &mut TcpStream, kind: u8, flags: u8, id: u32, body: &[u8]) -> Result<()> {
    let length = u32::try_from(body.len())?.to_be_bytes();
    let header = [&length[1..], &[kind, flags], &id.to_be_bytes()].concat();
    stream.write_all(&[&header, body].concat())?;
    Ok(())
}
