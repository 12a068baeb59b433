//! What an idle connection costs: memory of the subject with many of them open, each after one request, less what it
//! had before.

use std::net::SocketAddr;
use std::time::Duration;

use harness::client::Client;

use super::Figures;
use super::subjects::Subject;

/// HAProxy wants two descriptors for each that it may have, and 20,000 are a usual limit.
const CONNECTIONS: u32 = 9000;
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn measure(subject: &Subject, target: SocketAddr) -> anyhow::Result<Figures> {
    let before = subject.rss_kib()?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = Client::connect_here(None, target, PATIENCE)?;
        client.get("/")?;
        clients.push(client);
    }
    let with = subject.rss_kib()?;
    drop(clients);
    let each = (with - before) * 1024.0 / f64::from(CONNECTIONS);
    Ok(vec![("bytes_per_connection", each.round()), ("rss_kib", with)])
}
