use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::clock::ManualClock;
use crate::transport::over_link;

/// A small API server over TCP. What it is asked at `/watch` has a beginning and no end.
struct Fake {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

#[derive(Clone, Copy)]
enum Mood {
    Ready,
    /// Takes connections and never says anything.
    Silent,
    /// Answers, and says that it is not ready.
    Unready,
}

impl Fake {
    async fn start(name: &'static str, mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            // Those that are open end with the server.
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(serve(stream, name, mood));
            }
        });
        Self { address, serving }
    }

    fn url(&self) -> Uri {
        format!("http://{}", self.address).parse().unwrap()
    }

    /// Its port refuses from now on.
    async fn stop(self) -> Uri {
        let url = self.url();
        self.serving.abort();
        self.serving.await.unwrap_err();
        url
    }
}

async fn serve(mut stream: TcpStream, name: &'static str, mood: Mood) {
    loop {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            asked.push(byte);
        }
        let asked = String::from_utf8(asked).unwrap();
        let (status, body) = match mood {
            Mood::Silent => return std::future::pending().await,
            Mood::Unready if asked.contains(" /readyz ") => ("500 Not Ready", "no"),
            _ => ("200 OK", name),
        };
        let answer = if asked.contains(" /watch ") {
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{name}\r\n", name.len())
        } else {
            format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

fn connect() -> Connect {
    Arc::new(|url| over_link(&kube::Config::new(url.clone())))
}

fn servers(urls: &[Uri], clock: &Arc<ManualClock>) -> Servers {
    Servers::new(urls.to_vec(), Vec::new(), connect(), clock.clone()).unwrap().unwrap()
}

async fn ask(client: &kube::Client, path: &str) -> kube::Result<String> {
    client.request_text(Request::get(path).body(Vec::new()).unwrap()).await
}

#[tokio::test]
async fn a_server_that_refuses_is_left_by_the_request_that_finds_out() {
    let clock = Arc::new(ManualClock::default());
    let (one, two) = (Fake::start("one", Mood::Ready).await, Fake::start("two", Mood::Ready).await);
    let servers = servers(&[one.url(), two.url()], &clock);
    let client = servers.client();
    assert_eq!(ask(&client, "/version").await.unwrap(), "one");
    let gone = one.stop().await;
    // The connection that is kept open breaks first; nobody sends again what may have arrived.
    let mut answer = ask(&client, "/version").await;
    if answer.is_err() {
        answer = ask(&client, "/version").await;
    }
    assert_eq!(answer.unwrap(), "two");
    assert_ne!(servers.current(), gone);
}

#[tokio::test]
async fn nobody_is_left_while_nobody_else_is_ready() {
    let clock = Arc::new(ManualClock::default());
    let gone = Fake::start("one", Mood::Ready).await.stop().await;
    let unready = Fake::start("two", Mood::Unready).await;
    let servers = servers(&[gone.clone(), unready.url()], &clock);
    let client = servers.client();
    assert!(unsent(&ask(&client, "/version").await.unwrap_err()));
    assert_eq!(servers.current(), gone);
    // One that the cluster names later is found, after a pause.
    let late = Fake::start("late", Mood::Ready).await;
    servers.learn(vec![late.url()]);
    ask(&client, "/version").await.unwrap_err();
    clock.advance(PAUSE);
    assert_eq!(ask(&client, "/version").await.unwrap(), "late");
    assert_eq!(servers.current(), late.url());
}

#[tokio::test]
async fn what_is_open_at_a_silent_server_ends_when_another_one_is_ready() {
    let clock = Arc::new(ManualClock::default());
    let (silent, ready) =
        (Fake::start("silent", Mood::Silent).await, Fake::start("ready", Mood::Ready).await);
    let servers = servers(&[silent.url(), ready.url()], &clock);
    let client = servers.client();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { ask(&client, "/version").await }
    });
    let keeping = tokio::spawn(servers.clone().keep());
    clock.sleepers(1).await;
    clock.advance(SILENCE);
    // It is asked, and given its time.
    clock.sleepers(1).await;
    clock.advance(ANSWER);
    let error = waiting.await.unwrap().unwrap_err();
    assert!(chain(&error).contains("was left for another one"), "{}", chain(&error));
    assert_eq!(ask(&client, "/version").await.unwrap(), "ready");
    keeping.abort();
}

#[tokio::test]
async fn a_watch_breaks_off_with_its_server() {
    let clock = Arc::new(ManualClock::default());
    let (one, two) = (Fake::start("one", Mood::Unready).await, Fake::start("two", Mood::Ready).await);
    let servers = servers(&[one.url(), two.url()], &clock);
    let request = Request::get("/watch").body(Body::empty()).unwrap();
    let response = servers.client().send(request).await.unwrap();
    let mut body = response.into_body();
    let first = http_body_util::BodyExt::frame(&mut body).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "one");
    let keeping = tokio::spawn(servers.clone().keep());
    clock.sleepers(1).await;
    clock.advance(SILENCE);
    let error = http_body_util::BodyExt::frame(&mut body).await.unwrap().unwrap_err();
    assert!(chain(&error).contains("was left for another one"), "{}", chain(&error));
    assert_eq!(servers.current(), two.url());
    keeping.abort();
}

#[tokio::test]
async fn a_new_certificate_goes_to_the_same_server() {
    let clock = Arc::new(ManualClock::default());
    let one = Fake::start("one", Mood::Ready).await;
    let servers = servers(&[one.url()], &clock);
    let client = servers.client();
    assert_eq!(ask(&client, "/version").await.unwrap(), "one");
    let renewed = Fake::start("renewed", Mood::Ready).await;
    let address = renewed.url();
    servers.reconnect(Arc::new(move |_| over_link(&kube::Config::new(address.clone())))).unwrap();
    assert_eq!(ask(&client, "/version").await.unwrap(), "renewed");
    assert_eq!(servers.current(), one.url());
}
