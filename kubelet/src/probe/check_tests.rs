use k8s_openapi::api::core::v1::ContainerPort;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Answers each connection with the next of `answers`, and returns what was asked.
async fn server(answers: Vec<&'static str>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let read = stream.read(&mut buffer).await.unwrap();
            asked.push(String::from_utf8_lossy(&buffer[..read]).into_owned());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    });
    (port, task)
}

async fn get(port: u16, path: &str) -> Outcome {
    let action = HTTPGetAction {
        path: Some(path.into()),
        port: IntOrString::Int(i32::from(port)),
        ..HTTPGetAction::default()
    };
    let call = Call { host: "127.0.0.1", port, secure: false, path, action: &action, asks: Asks::Probe };
    match call.send().await.unwrap() {
        Answer::Done(outcome) => outcome,
        Answer::Redirect(path) => Outcome::ok(format!("-> {path}")),
    }
}

#[tokio::test]
async fn statuses_decide_and_same_host_redirects_are_followed() {
    let (port, asked) = server(vec![
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        "HTTP/1.1 503 Gone\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 302 Found\r\nlocation: /next?x=1\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 302 Found\r\nlocation: http://elsewhere.example/\r\ncontent-length: 0\r\n\r\n",
    ])
    .await;
    assert_eq!(get(port, "/ok").await, Outcome::ok("hi"));
    assert_eq!(get(port, "/bad").await, Outcome::failed("HTTP probe failed with statuscode: 503"));
    assert_eq!(get(port, "/r").await, Outcome::ok("-> /next?x=1"));
    assert!(get(port, "/r").await.success);
    let asked = asked.await.unwrap();
    assert!(asked[0].starts_with("GET /ok HTTP/1.1\r\n") && asked[0].contains("kube-probe/1.36"));
}

#[test]
fn ports_are_found_by_name() {
    let named = ContainerPort { name: Some("web".into()), container_port: 8080, ..ContainerPort::default() };
    let container = Container { ports: Some(vec![named]), ..Container::default() };
    assert_eq!(port(&container, &IntOrString::String("web".into())), Some(8080));
    assert_eq!(port(&container, &IntOrString::String("81".into())), Some(81));
    assert_eq!(port(&container, &IntOrString::String("none".into())), None);
    assert_eq!(port(&container, &IntOrString::Int(70_000)), None);
}
