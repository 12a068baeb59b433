//! What an idle connection costs: memory of the subject with many of them open, each after one request, less what it
//! had before.

use std::net::SocketAddr;
use std::time::Duration;

use harness::client::Client;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Figures;
use super::subjects::Subject;

const CONNECTIONS: u32 = 10_000;
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn measure(subject: &Subject, target: SocketAddr) -> anyhow::Result<Figures> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
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
