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

/// One thing that happens to a log.
#[derive(Clone, Debug)]
enum Step {
    /// So many lines are written.
    Write(usize),
    /// It is moved aside, what was before is packed, and the writer opens it anew after so many more lines.
    Rotate(usize),
    /// The reader may catch up.
    Yield,
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::prelude::*;
    let step = prop_oneof![
        (0..30_usize).prop_map(Step::Write),
        (0..3_usize).prop_map(Step::Rotate),
        Just(Step::Yield)
    ];
    proptest::collection::vec(step, 1..20)
}

/// Does all the steps while somebody follows; returns what was written and what was read.
async fn followed(steps: Vec<Step>) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let open = || std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
    let mut file = open();
    let clock = Arc::new(decapod_client::clock::ManualClock::default());
    // A reader that is slow is overtaken by several rotations.
    let (sink, mut source) = mpsc::channel(1);
    let options = Options { follow: true, ..Options::default() };
    let (follower, ticks) = (path.clone(), clock.clone());
    let runs = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let running = runs.clone();
    let alive: Alive =
        Box::new(move || Box::pin(std::future::ready(running.load(std::sync::atomic::Ordering::Relaxed))));
    let sending = tokio::spawn(async move { send(&follower, options, alive, ticks, sink).await });
    let mut written = String::new();
    let mut write = |file: &mut std::fs::File, lines: usize| {
        for _ in 0..lines {
            let line = format!("{} {}", written.len(), "x".repeat(40));
            std::io::Write::write_all(file, format!("2026-01-02T03:04:05Z stdout F {line}\n").as_bytes())
                .unwrap();
            written += &line;
            written.push('\n');
        }
    };
    write(&mut file, 1);
    // From here on it follows: what was moved aside before is not asked for.
    let first = tokio::time::timeout(Duration::from_secs(60), source.recv()).await.unwrap();
    let mut read = first.unwrap().to_vec();
    for step in steps {
        match step {
            Step::Write(lines) => write(&mut file, lines),
            Step::Rotate(late) => {
                rotate::rotate(&path, 1000, Timestamp::UNIX_EPOCH).unwrap();
                write(&mut file, late);
                file = open();
            }
            Step::Yield => {
                clock.advance(ALIVE_CHECK / 2);
                tokio::task::yield_now().await;
                while let Ok(bytes) = source.try_recv() {
                    read.extend_from_slice(&bytes);
                }
            }
        }
    }
    runs.store(false, std::sync::atomic::Ordering::Relaxed);
    while !sending.is_finished() {
        clock.advance(ALIVE_CHECK);
        while let Ok(bytes) = source.try_recv() {
            read.extend_from_slice(&bytes);
        }
        tokio::task::yield_now().await;
    }
    sending.await.unwrap().unwrap();
    while let Some(bytes) = source.recv().await {
        read.extend_from_slice(&bytes);
    }
    (written, String::from_utf8(read).unwrap())
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 48, ..Default::default() })]

    /// Whoever follows gets each line once and in order, however often the log is moved aside and packed.
    #[test]
    fn rotation_loses_and_repeats_nothing(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (written, read) = runtime.block_on(followed(steps));
        proptest::prop_assert_eq!(written, read);
    }
}
