//! What an idle connection costs: memory of the subject with many of them open, each after one request and a while,
//! less what it had before.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use harness::client::Client;

use super::Figures;
use super::subjects::Subject;

/// HAProxy wants two descriptors for each that it may have, and 20,000 are a usual limit.
const CONNECTIONS: u32 = 9000;
const PATIENCE: Duration = Duration::from_secs(10);

/// By then a connection is idle rather than between two requests, and a subject has given back what it frees for that:
/// the gateway parks connections after a second, and its allocator gives back what has been free for another one.
const IDLE: Duration = Duration::from_secs(5);

pub(super) fn measure(subject: &Subject, target: SocketAddr) -> anyhow::Result<Figures> {
    thread::sleep(IDLE);
    let before = subject.rss_kib()?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = Client::connect_here(None, target, PATIENCE)?;
        client.get("/")?;
        clients.push(client);
    }
    thread::sleep(IDLE);
    let with = subject.rss_kib()?;
    drop(clients);
    let each = (with - before) * 1024.0 / f64::from(CONNECTIONS);
    Ok(vec![("bytes_per_connection", each.round()), ("rss_kib", with)])
}
