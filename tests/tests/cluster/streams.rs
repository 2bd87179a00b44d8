//! kubectl's verbs that hold a connection: exec, attach, run, cp, debug, port-forward, proxy, logs; over WebSocket, as
//! kubectl does it today, and over SPDY, as older clients do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::tools::{fails, run};

use crate::application::http_get;
use crate::clients::pods;

const PATIENCE: Duration = Duration::from_secs(60);
/// kubectl's switches for how it streams.
const EXEC_BY_SPDY: (&str, &str) = ("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
const FORWARD_BY_SPDY: (&str, &str) = ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");

/// A command that runs beside the test, and is ended with it.
pub(crate) struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let out = BufReader::new(child.stdout.take().context("piped")?);
        Ok(Self { child, out })
    }

    fn say(&mut self, text: &str) -> Result<()> {
        Ok(self.child.stdin.as_mut().context("piped")?.write_all(text.as_bytes())?)
    }

    /// The next line that contains `wanted`.
    pub(crate) fn line(&mut self, wanted: &str) -> Result<String> {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            ensure!(self.out.read_line(&mut line)? > 0, "it ended without {wanted:?}; it printed\n{seen}");
            if line.contains(wanted) {
                return Ok(line);
            }
            seen += &line;
        }
    }

    /// The port in a line `... 127.0.0.1:PORT ...`.
    pub(crate) fn port(&mut self) -> Result<u16> {
        let line = self.line("127.0.0.1:")?;
        let (_, rest) = line.split_once("127.0.0.1:").context("it was in there")?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    }

    /// What it prints to its end, after its input was closed.
    fn rest(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.out.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "it failed ({status}) after printing\n{text}");
        Ok(text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        if self.child.kill().is_ok() {
            self.child.wait().expect("a child that was killed can be waited for");
        }
    }
}

/// What runs in a container, by its command lines.
fn processes(cluster: &Cluster, namespace: &str, pod: &str, what: &str) -> Result<usize> {
    let list = cluster.exec(namespace, pod, &["ps", "-o", "args"])?;
    Ok(list.lines().filter(|line| line.contains(what)).count())
}

/// A command of kubectl as it is run at a terminal of 111 columns and 33 rows.
fn at_a_terminal(cluster: &Cluster, arguments: &str) -> Command {
    let kubectl = cluster.kubectl(&[]);
    let program = kubectl.get_program().to_string_lossy().into_owned();
    let mut command = Command::new("script");
    command.args(["-qec", &format!("stty rows 33 cols 111; {program} {arguments}"), "/dev/null"]);
    command.env("KUBECONFIG", cluster.kubeconfig()).env("HOME", cluster.scratch()).env("TERM", "xterm");
    command
}

pub(crate) fn exec(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("streams-exec", |ns| {
        pods(cluster, ns)?;
        for by in [None, Some(EXEC_BY_SPDY)] {
            let exec = |flags: &[&str], script: &str| {
                let mut command = cluster.kubectl(&["exec", "-n", ns, "shell"]);
                command.args(flags).args(["--", "sh", "-c", script]).envs(by);
                command
            };
            let output = exec(&[], "echo out; echo err >&2; exit 7").output()?;
            ensure!(output.status.code() == Some(7) && output.stdout == b"out\n", "{output:?}");
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(errors.starts_with("err\n") && errors.contains("command terminated with exit code 7"), "{errors}");
            let mut fed = Running::start(&mut exec(&["-i"], "cat; echo end"))?;
            let much = "0123456789abcdef\n".repeat(20_000);
            fed.say(&much)?;
            ensure!(fed.rest()? == much + "end\n", "the input came back otherwise ({by:?})");
            let wrong = fails(&mut exec(&["-c", "other"], "true"))?;
            ensure!(wrong.contains("container other is not valid for pod shell"), "{wrong}");
        }
        let missing = fails(&mut cluster.kubectl(&["exec", "-n", ns, "shell", "--", "/no/such"]))?;
        ensure!(missing.contains("no such file") || missing.contains("not found"), "{missing}");
        // The size arrives beside the stream.
        let sized = "i=0; until [ \"$(stty size)\" = \"33 111\" ]; do i=$((i+1)); [ $i -lt 300 ] || exit 9; sleep 0.1; done; tty";
        for by in [None, Some(EXEC_BY_SPDY)] {
            let arguments = format!("exec -it -n {ns} shell -- sh -c '{sized}'");
            let terminal = run(at_a_terminal(cluster, &arguments).envs(by))?;
            ensure!(terminal.contains("/dev/pts/"), "{terminal}");
        }
        // A client that goes away takes its process along.
        let held = Running::start(&mut cluster.kubectl(&["exec", "-i", "-n", ns, "shell", "--", "sleep", "7777"]))?;
        poll::until("the process to run", PATIENCE, || {
            Ok(if processes(cluster, ns, "shell", "sleep 7777")? == 1 { Ok(()) } else { Err("not yet".into()) })
        })?;
        drop(held);
        poll::until("the process to go with its client", PATIENCE, || {
            let left = processes(cluster, ns, "shell", "sleep 7777")?;
            Ok(if left == 0 { Ok(()) } else { Err(format!("{left} are left")) })
        })
    })
}

pub(crate) fn attach(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("streams-attach", |ns| {
        pods(cluster, ns)?;
        for by in [None, Some(EXEC_BY_SPDY)] {
            let mut attached = cluster.kubectl(&["attach", "-i", "-n", ns, "shell"]);
            let mut attached = Running::start(attached.envs(by))?;
            attached.say("hello\n")?;
            attached.line("read hello")?;
            // The process keeps its input, whoever detaches.
            attached.say("goodbye\n")?;
            attached.rest()?;
            let log = || cluster.k(&["logs", "-n", ns, "shell", "--tail=1"]);
            poll::text("the last word", PATIENCE, log, |text| text == "read goodbye\n")?;
        }
        cluster.ready(ns, "shell")?;
        let mut watching = Running::start(&mut cluster.kubectl(&["attach", "-n", ns, "counter"]))?;
        watching.line("line ").map(drop)
    })
}

/// Pods that are made for one command, attached to, and looked into.
pub(crate) fn run_and_debug(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("streams-run", |ns| {
        let flags = ["run", "-n", ns, "--image=busybox:1", "--restart=Never", "--pod-running-timeout=60s"];
        let interactive = |name: &str| {
            let mut command = cluster.kubectl(&flags);
            command.args([name, "-i", "--rm", "--quiet", "--command", "--", "sh", "-c", "cat; exit 0"]);
            command
        };
        let mut once = Running::start(&mut interactive("once"))?;
        once.say("through the pod\n")?;
        let said = once.rest()?;
        ensure!(said.contains("through the pod\n"), "{said}");
        let gone = fails(&mut cluster.kubectl(&["get", "pod", "once", "-n", ns]))?;
        ensure!(gone.contains("not found"), "{gone}");
        let flags = flags.join(" ");
        let mut terminal =
            Running::start(&mut at_a_terminal(cluster, &format!("{flags} tty -it --rm --command -- sh")))?;
        terminal.say("\ntty; echo 6 x 7 = $((6*7)); exit\n")?;
        let said = terminal.rest()?;
        ensure!(
            said.contains("/dev/pts/") && said.contains("6 x 7 = 42") && said.contains("deleted"),
            "{said}"
        );
        cluster.k(&[
            "run",
            "-n",
            ns,
            "plain",
            "--image=busybox:1",
            "--restart=Never",
            "--",
            "-c",
            "echo done",
        ])?;
        cluster.k(&[
            "wait",
            "-n",
            ns,
            "--for=jsonpath={.status.phase}=Succeeded",
            "pod/plain",
            "--timeout=60s",
        ])?;
        ensure!(cluster.k(&["logs", "-n", ns, "plain"])? == "done\n");
        pods(cluster, ns)?;
        let mut debug =
            cluster.kubectl(&["debug", "-n", ns, "web", "-i", "--quiet", "--image=busybox:1", "--target=c"]);
        let mut debug = Running::start(debug.args(["--container=look", "--", "sh"]))?;
        debug.say("ps -o args | grep -c 'nginx: [m]aster'; wget -qO- 127.0.0.1/version; exit 0\n")?;
        let said = debug.rest()?;
        ensure!(said.contains("1\n1\n"), "{said}");
        let pod = cluster.get(&["pod", "web", "-n", ns])?;
        ensure!(pod["status"]["ephemeralContainerStatuses"][0]["name"] == "look", "{}", pod["status"]);
        Ok(())
    })
}

pub(crate) fn copy(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("streams-copy", |ns| {
        pods(cluster, ns)?;
        let folder = tempfile::tempdir_in(cluster.scratch())?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        std::fs::create_dir(at("tree"))?;
        let large: Vec<u8> =
            (0..1_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        std::fs::write(at("tree/large"), &large)?;
        std::fs::write(at("tree/small"), "small\n")?;
        for by in [None, Some(EXEC_BY_SPDY)] {
            run(cluster.kubectl(&["cp", &at("tree"), &format!("{ns}/shell:/tmp/there")]).envs(by))?;
            ensure!(cluster.exec(ns, "shell", &["cat", "/tmp/there/small"])? == "small\n");
            run(cluster.kubectl(&["cp", &format!("{ns}/shell:/tmp/there"), &at("back")]).envs(by))?;
            ensure!(std::fs::read(at("back/large"))? == large, "the large file came back otherwise");
            std::fs::remove_dir_all(at("back"))?;
            cluster.exec(ns, "shell", &["rm", "-r", "/tmp/there"])?;
        }
        Ok(())
    })
}

pub(crate) fn port_forward(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("streams-forward", |ns| {
        pods(cluster, ns)?;
        cluster.k(&["expose", "pod", "web", "-n", ns, "--port=8080", "--target-port=80"])?;
        for by in [None, Some(FORWARD_BY_SPDY)] {
            for (target, port) in [("pod/web", ":80"), ("service/web", ":8080")] {
                let mut forward = cluster.kubectl(&["port-forward", "-n", ns, target, port]);
                let mut forward = Running::start(forward.envs(by))?;
                let address = format!("127.0.0.1:{}", forward.port()?);
                for _ in 0..3 {
                    ensure!(http_get(&address, "/version")? == "1\n");
                }
                let at_once: Vec<_> = (0..50)
                    .map(|_| {
                        let address = address.clone();
                        std::thread::spawn(move || http_get(&address, "/version"))
                    })
                    .collect();
                for one in at_once {
                    let answer = one.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
                    ensure!(answer == "1\n", "{answer}");
                }
            }
        }
        let none = fails(&mut cluster.kubectl(&["port-forward", "-n", ns, "pod/none", ":80"]))?;
        ensure!(none.contains("pods \"none\" not found"), "{none}");
        Ok(())
    })
}

/// The body of `GET path` by the name that `kubectl proxy` takes.
pub(crate) fn get(mut stream: impl Read + Write, path: &str) -> Result<String> {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.contains(" 200 "), "{head}");
    Ok(body.to_owned())
}

/// `[sig-network] Proxy version v1`: pods and Services, by every method.
pub(crate) fn proxy(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("streams-proxy", |ns| {
        pods(cluster, ns)?;
        cluster.k(&["expose", "pod", "web", "-n", ns, "--port=80", "--name=web"])?;
        let mut proxy = Running::start(&mut cluster.kubectl(&["proxy", "--port=0"]))?;
        let address = format!("127.0.0.1:{}", proxy.port()?);
        ensure!(get(TcpStream::connect(&address)?, "/api/")?.contains("versions"));
        let root = format!("/api/v1/namespaces/{ns}");
        for place in ["pods/web", "pods/web:80", "pods/http:web:80", "services/web", "services/web:80"] {
            let path = format!("{root}/{place}/proxy/version");
            poll::text(
                &path,
                PATIENCE,
                || {
                    Ok(TcpStream::connect(&address)
                        .map_err(Into::into)
                        .and_then(|s| get(s, &path))
                        .unwrap_or_else(|e| e.to_string()))
                },
                |text| text == "1\n",
            )?;
        }
        let socket = cluster.scratch().join("proxy.sock");
        let mut other = cluster.kubectl(&["proxy", &format!("--unix-socket={}", socket.display())]);
        let mut other = Running::start(&mut other)?;
        other.line("Starting to serve on")?;
        ensure!(get(UnixStream::connect(&socket)?, "/api/")?.contains("versions"));
        cluster.k(&["create", "service", "clusterip", "nobody", "-n", ns, "--tcp=80"])?;
        let nobody =
            fails(&mut cluster.kubectl(&["get", "--raw", &format!("{root}/services/nobody:80/proxy/")]))?;
        ensure!(nobody.contains("no endpoints available for service \"nobody:80\""), "{nobody}");
        let node = cluster.k(&["get", "nodes", "-o", "name"])?;
        let node = node.lines().next().context("a node")?;
        ensure!(
            cluster.k(&[
                "get",
                "--raw",
                &format!("/api/v1/{}/proxy/healthz", node.replace("node/", "nodes/"))
            ])? == "ok"
        );
        Ok(())
    })
}

pub(crate) fn logs(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("streams-logs", |ns| {
        let script = "echo first; echo second; echo third; sleep 1; echo fourth; exit 3";
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: two, namespace: {ns}, labels: {{app: two}}}}, spec: {{terminationGracePeriodSeconds: 0,
              restartPolicy: Never, containers: [{{name: a, image: 'busybox:1', command: [sh, -c, '{script}']}},
              {{name: b, image: 'busybox:1', command: [sh, -c, 'echo of b; echo error of b >&2; sleep 3600']}}]}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: pending, namespace: {ns}}}, spec: {{terminationGracePeriodSeconds: 0,
              containers: [{{name: c, image: 'busybox:1', command: [sleep, '3600'], envFrom: [{{configMapRef: {{name: none}}}}]}}]}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: again, namespace: {ns}}}, spec: {{terminationGracePeriodSeconds: 0,
              containers: [{{name: c, image: 'busybox:1', command: [sh, -c, 'echo run; exit 1']}}]}}}}"
        ))?;
        let logs = |arguments: &[&str]| {
            let mut all = vec!["logs", "-n", ns];
            all.extend(arguments);
            cluster.kubectl(&all)
        };
        poll::until("the pod to run", PATIENCE, || {
            let pod = cluster.get(&["pod", "two", "-n", ns])?;
            Ok(if pod["status"]["phase"] == "Running" { Ok(()) } else { Err(pod["status"].to_string()) })
        })?;
        // Following ends with the container, and misses nothing of its end.
        let whole = run(&mut logs(&["two", "-c", "a", "-f"]))?;
        ensure!(whole == "first\nsecond\nthird\nfourth\n", "{whole}");
        ensure!(run(&mut logs(&["two", "-c", "a", "--tail=1"]))? == "fourth\n");
        ensure!(run(&mut logs(&["two", "-c", "a", "--limit-bytes=5"]))? == "first");
        ensure!(run(&mut logs(&["two", "-c", "a", "--since=1h", "--tail=-1"]))? == whole);
        ensure!(run(&mut logs(&["two", "-c", "a", "--since-time=2999-01-01T00:00:00Z"]))?.is_empty());
        let stamped = run(&mut logs(&["two", "-c", "a", "--timestamps", "--tail=1"]))?;
        ensure!(stamped.starts_with("20") && stamped.ends_with("Z fourth\n"), "{stamped}");
        let all = run(&mut logs(&["two", "--all-containers", "--prefix"]))?;
        ensure!(all.contains("[pod/two/a] first\n") && all.contains("[pod/two/b] of b\n"), "{all}");
        let selected = run(&mut logs(&["-l", "app=two", "--all-containers"]))?;
        ensure!(selected.contains("of b\n"), "{selected}");
        let path = format!("/api/v1/namespaces/{ns}/pods/two/log");
        let raw = |query: &str| cluster.kubectl(&["get", "--raw", &format!("{path}?{query}")]);
        for (stream, said) in [("Stderr", "error of b\n"), ("Stdout", "of b\n")] {
            let query = format!("container=b&stream={stream}");
            poll::text(stream, PATIENCE, || run(&mut raw(&query)), |text| text == said)?;
        }
        for (query, error) in [
            ("", "a container name must be specified for pod two, choose one of: [a b]"),
            ("container=x", "container x is not valid for pod two"),
            ("container=a&tailLines=-1", "must be greater than or equal to 0"),
            ("container=b&previous=true", "previous terminated container \"b\" in pod \"two\" not found"),
        ] {
            let said = fails(&mut raw(query))?;
            ensure!(said.contains(error), "{query}: {said}");
        }
        let waiting = fails(&mut logs(&["pending"]))?;
        ensure!(waiting.contains("container \"c\" in pod \"pending\" is waiting to start: "), "{waiting}");
        poll::until("the pod to run again", PATIENCE, || {
            let pod = cluster.get(&["pod", "again", "-n", ns])?;
            let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or_default();
            Ok(if restarts > 0 { Ok(()) } else { Err(pod["status"].to_string()) })
        })?;
        ensure!(run(&mut logs(&["again", "--previous"]))? == "run\n");
        Ok(())
    })
}
