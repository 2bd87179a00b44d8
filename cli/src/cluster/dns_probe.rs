//! Asks cluster DNS one question over UDP.

use std::net::Ipv4Addr;
use std::time::Duration;

use decapod_network::Netns;
use tokio::net::UdpSocket;

/// How long an answer may take: it comes from this machine.
const PATIENCE: Duration = Duration::from_millis(300);

/// Whether the server at this address, asked in that namespace, knows the API's Service.
pub(crate) async fn answers(netns: &Netns, server: Ipv4Addr, domain: &str) -> bool {
    let ask = async {
        let inside = netns.run(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.set_nonblocking(true).map(|()| socket)
        });
        let socket = UdpSocket::from_std(inside.map_err(std::io::Error::other)??)?;
        socket.connect((server, 53)).await?;
        socket.send(&question(&format!("kubernetes.default.svc.{domain}"))).await?;
        let mut answer = [0; 512];
        let n = socket.recv(&mut answer).await?;
        // An answer (QR), without error (RCODE), with a record.
        Ok::<_, std::io::Error>(n > 12 && answer[2] & 0x80 != 0 && answer[3] & 0x0f == 0 && answer[7] > 0)
    };
    matches!(tokio::time::timeout(PATIENCE, ask).await, Ok(Ok(true)))
}

/// A query for the A record of a name (RFC 1035, section 4.1).
fn question(name: &str) -> Vec<u8> {
    let mut message = vec![0xdc, 0xdd, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|l| !l.is_empty()) {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}
