//! Exec, attach, terminals, ports, logs that move.

use std::time::Duration;

use decapod_proto::cri;
use decapod_runtime::{Error, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{PATIENCE, Way, World, command, eventually, script, way};

fn exec(id: &str, command: &[&str], tty: bool, stdin: bool) -> cri::ExecRequest {
    let cmd = command.iter().map(|word| (*word).to_owned()).collect();
    cri::ExecRequest { container_id: id.into(), cmd, tty, stdin, stdout: true, stderr: !tty }
}

pub(crate) async fn commands_run_inside() {
    let world = World::new("exec").await;
    let pod = world.pod("exec").await;
    let id = world.start(&pod, &script("c", "sleep 1000")).await;
    let answer = world.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 5"]).await;
    assert_eq!((answer.exit_code, answer.stdout, answer.stderr), (5, b"out\n".to_vec(), b"err\n".to_vec()));
    let answer = world.exec(&id, &["sh", "-c", "kill -9 $$"]).await;
    assert_eq!(answer.exit_code, 137);
    // More than pipes hold, both ways.
    let mut session = world.runtime.exec(&exec(&id, &["cat"], false, true)).await.unwrap();
    let sent: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    let mut received = Vec::new();
    let write = async {
        stdin.write_all(&sent).await.unwrap();
        drop(stdin);
    };
    let (_, read) = tokio::join!(write, stdout.read_to_end(&mut received));
    read.unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    assert_eq!(session.exit.await.unwrap(), 0);
    world.end().await;
}

/// A child that holds the output does not keep the command from ending.
pub(crate) async fn children_do_not_hold_commands() {
    let world = World::new("child").await;
    let pod = world.pod("child").await;
    let id = world.start(&pod, &script("c", "sleep 1000")).await;
    let started = std::time::Instant::now();
    let answer = world.exec(&id, &["sh", "-c", "sleep 100 & echo done"]).await;
    assert_eq!(answer.stdout, b"done\n");
    assert!(started.elapsed() < PATIENCE);
    world.end().await;
}

pub(crate) async fn slow_commands_are_killed() {
    let world = World::new("slow").await;
    let pod = world.pod("slow").await;
    let id = world.start(&pod, &script("c", "sleep 1000")).await;
    let slow = ["sleep".to_owned(), "777".to_owned()];
    let error = world.runtime.exec_sync(&id, &slow, Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error:?}");
    eventually("the command is killed", || async {
        let processes = world.exec(&id, &["ps"]).await.stdout;
        (!String::from_utf8_lossy(&processes).contains("sleep 777")).then_some(())
    })
    .await;
    world.end().await;
}

pub(crate) async fn terminals_work() {
    let world = World::new("tty").await;
    let pod = world.pod("tty").await;
    let id = world.start(&pod, &script("c", "sleep 1000")).await;
    let mut session = world.runtime.exec(&exec(&id, &["sh"], true, true)).await.unwrap();
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    session.resize.send(TerminalSize { width: 111, height: 33 }).await.unwrap();
    let mut seen = String::new();
    let mut chunk = [0; 1024];
    // The size arrives beside the stream: ask until it is there.
    while !seen.contains("33 111") {
        stdin.write_all(b"stty size\n").await.unwrap();
        let read = tokio::time::timeout(PATIENCE, stdout.read(&mut chunk)).await;
        seen.push_str(&String::from_utf8_lossy(&chunk[..read.unwrap().unwrap()]));
        assert!(seen.len() < 100_000, "{seen}");
    }
    stdin.write_all(b"tty; exit 9\n").await.unwrap();
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).await.unwrap();
    assert!(String::from_utf8_lossy(&rest).contains("/dev/pts/") || seen.contains("/dev/pts/"));
    assert_eq!(session.exit.await.unwrap(), 9);
    world.end().await;
}

pub(crate) async fn clients_attach() {
    let world = World::new("attach").await;
    let pod = world.pod("attach").await;
    let mut config = command("c", &["cat"]);
    config.stdin = true;
    config.stdin_once = true;
    let id = world.start(&pod, &config).await;
    let request =
        cri::AttachRequest { container_id: id.clone(), stdin: true, tty: false, stdout: true, stderr: true };
    let mut session = world.runtime.attach(&request).await.unwrap();
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    stdin.write_all(b"over the wall\n").await.unwrap();
    let mut line = [0; 14];
    stdout.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"over the wall\n");
    drop(stdin);
    assert_eq!(session.exit.await.unwrap(), 0);
    let status = world.exited(&id).await;
    assert!(std::fs::read_to_string(status.log_path).unwrap().ends_with("stdout F over the wall\n"));
    // A container with a terminal of its own.
    let mut config = script("t", "tty; read word; echo got $word");
    (config.stdin, config.tty) = (true, true);
    let id = world.start(&pod, &config).await;
    let request =
        cri::AttachRequest { container_id: id.clone(), stdin: true, tty: true, stdout: true, stderr: false };
    let mut session = world.runtime.attach(&request).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"it\n").await.unwrap();
    let mut output = Vec::new();
    session.stdout.take().unwrap().read_to_end(&mut output).await.unwrap();
    assert!(String::from_utf8_lossy(&output).contains("got it"), "{output:?}");
    world.end().await;
}

pub(crate) async fn ports_are_reached() {
    let world = World::new("port").await;
    let pod = world.pod("port").await;
    let id = world.start(&pod, &script("c", "while :; do echo hello | nc -l -p 8099; done")).await;
    // Behind a socket a port that is closed is the error of the first read.
    let read = || async {
        let mut connection = world.runtime.port_forward(&pod, 8099).await.ok()?;
        let mut word = [0; 6];
        connection.read_exact(&mut word).await.ok().map(|_| word)
    };
    assert_eq!(&eventually("the port is open", read).await, b"hello\n");
    match world.runtime.port_forward(&pod, 1).await {
        Err(error) => assert!(matches!(error, Error::Unavailable { .. }), "{error:?}"),
        Ok(mut connection) => {
            assert_ne!(way(), Way::Direct);
            connection.read_u8().await.unwrap_err();
        }
    }
    world.runtime.container_stop(&id, Duration::ZERO).await.unwrap();
    world.end().await;
}

pub(crate) async fn logs_are_reopened() {
    let world = World::new("reopen").await;
    let pod = world.pod("reopen").await;
    let id = world.start(&pod, &script("c", "while :; do echo tick; sleep 0.02; done")).await;
    let path = world.runtime.container_status(&id).await.unwrap().log_path;
    let lines = |path: String| async move { std::fs::metadata(path).ok().filter(|meta| meta.len() > 0) };
    eventually("the first line", || lines(path.clone())).await;
    std::fs::rename(&path, format!("{path}.1")).unwrap();
    world.runtime.log_reopen(&id).await.unwrap();
    eventually("a line in the new file", || lines(path.clone())).await;
    let moved = std::fs::metadata(format!("{path}.1")).unwrap().len();
    eventually("more lines", || async { (std::fs::metadata(&path).unwrap().len() > 200).then_some(()) })
        .await;
    assert_eq!(std::fs::metadata(format!("{path}.1")).unwrap().len(), moved);
    world.end().await;
}
