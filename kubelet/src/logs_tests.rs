use decapod_client::clock::SystemClock;
use tokio::io::AsyncWriteExt;

use super::*;

const LOG: &str = "\
2026-01-02T03:04:05.000000001Z stdout F one
2026-01-02T03:04:06.000000001Z stderr F two
2026-01-02T03:04:07.000000001Z stdout P thr
2026-01-02T03:04:08.000000001Z stdout F ee
";

fn alive(alive: bool) -> Alive {
    Box::new(move || Box::pin(std::future::ready(alive)))
}

async fn read(text: &str, options: Options) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, text).unwrap();
    let (sink, mut source) = mpsc::channel(16);
    let task =
        tokio::spawn(
            async move { send(&path, options, alive(false), Arc::new(SystemClock::new()), sink).await },
        );
    let mut all = Vec::new();
    while let Some(bytes) = source.recv().await {
        all.extend_from_slice(&bytes);
    }
    task.await.unwrap().unwrap();
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn parts_of_a_line_are_joined() {
    assert_eq!(read(LOG, Options::default()).await, "one\ntwo\nthree\n");
    let stamped = read(LOG, Options { timestamps: true, ..Options::default() }).await;
    assert!(stamped.ends_with("2026-01-02T03:04:07.000000001Z three\n"), "{stamped}");
    let errors = Options { stream: Some("stderr".into()), ..Options::default() };
    assert_eq!(read(LOG, errors).await, "two\n");
}

#[tokio::test]
async fn tail_since_and_limit_cut() {
    for (tail, expected) in [(0, ""), (1, "ee\n"), (3, "two\nthree\n"), (99, "one\ntwo\nthree\n")] {
        let options = Options { tail: Some(tail), ..Options::default() };
        assert_eq!(read(LOG, options).await, expected, "tail {tail}");
    }
    let since = Some("2026-01-02T03:04:06Z".parse().unwrap());
    assert_eq!(read(LOG, Options { since, ..Options::default() }).await, "two\nthree\n");
    let limited = Options { limit_bytes: Some(6), ..Options::default() };
    assert_eq!(read(LOG, limited).await, "one\ntw");
}

#[tokio::test]
async fn tail_crosses_chunks() {
    let line = format!("2026-01-02T03:04:05Z stdout F {}\n", "x".repeat(10_000));
    let text = line.repeat(20);
    let options = Options { tail: Some(7), ..Options::default() };
    assert_eq!(read(&text, options).await.lines().count(), 7);
}

#[tokio::test]
async fn following_sees_what_is_written_and_ends_with_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, LOG).unwrap();
    let (sink, mut source) = mpsc::channel(16);
    let options = Options { follow: true, tail: Some(1), ..Options::default() };
    let follower = path.clone();
    let task = tokio::spawn(async move {
        send(&follower, options, alive(false), Arc::new(SystemClock::new()), sink).await
    });
    let first = tokio::time::timeout(Duration::from_secs(60), source.recv()).await.unwrap();
    assert_eq!(first.as_deref(), Some(&b"ee\n"[..]));
    let mut file = tokio::fs::OpenOptions::new().append(true).open(&path).await.unwrap();
    file.write_all(b"2026-01-02T03:04:09Z stdout F late\n").await.unwrap();
    file.flush().await.unwrap();
    let first = tokio::time::timeout(Duration::from_secs(60), source.recv()).await.unwrap();
    assert_eq!(first.as_deref(), Some(&b"late\n"[..]));
    let end = tokio::time::timeout(Duration::from_secs(60), source.recv()).await.unwrap();
    assert_eq!(end, None, "the container has ended");
    task.await.unwrap().unwrap();
}

#[test]
fn what_is_not_cri_is_refused() {
    assert!(parse(b"plain text").is_none());
    assert!(parse(b"2026-01-02T03:04:05Z stdwhat F x").is_none());
    let entry = parse(b"2026-01-02T03:04:05Z stdout F \n").unwrap();
    assert_eq!((entry.content, entry.partial), (&b""[..], false));
}
