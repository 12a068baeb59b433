//! What a test asks a gateway about bans, and the small requests that lead to them.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::client::Client;
use crate::gateway::Gateway;
use crate::metrics::Page;
use crate::namespace::Namespace;
use crate::{Result, wait_for};

/// How long anything may take that ought to happen at once, on a machine that is busy otherwise.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long a connection is waited for whose packets are dropped.
const SILENCE: Duration = Duration::from_millis(700);

/// What has become of a connection that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connecting {
    /// It was made.
    Made,
    /// It was refused with TCP RST.
    Refused,
    /// Nobody answered.
    Silence,
}

/// `gateway bans list`, with more arguments.
pub fn list(gateway: &Gateway<'_>, more: &[&str]) -> Result<Vec<Value>> {
    gateway.cli(&[&["bans", "list", "--json"], more].concat())?.ok()?.json_lines()
}

/// The prefixes that are banned, in order.
pub fn prefixes(gateway: &Gateway<'_>) -> Result<Vec<String>> {
    let text = |ban: &Value| ban.get("prefix").and_then(Value::as_str).map(str::to_owned);
    Ok(list(gateway, &[])?.iter().filter_map(text).collect())
}

/// Waits for the ban of a prefix.
pub fn made(gateway: &Gateway<'_>, prefix: &str) -> Result<Value> {
    find(gateway, prefix, &[]).with_context(|| format!("{prefix} is not banned"))
}

/// Waits for a decision about a prefix that is not carried out.
pub fn held(gateway: &Gateway<'_>, prefix: &str) -> Result<Value> {
    find(gateway, prefix, &["--held"]).with_context(|| format!("nothing is held of {prefix}"))
}

fn find(gateway: &Gateway<'_>, prefix: &str, more: &[&str]) -> Result<Value> {
    wait_for("the decision", PATIENCE, || {
        let is_of = |ban: &Value| ban.get("prefix").and_then(Value::as_str) == Some(prefix);
        Ok(list(gateway, more)?.into_iter().find(is_of))
    })
}

/// `gateway why`.
pub fn why(gateway: &Gateway<'_>, address: impl ToString) -> Result<Value> {
    gateway.cli(&["why", &address.to_string(), "--json"])?.ok()?.json()
}

/// What is known of a prefix, which is written with its length, if anything is.
pub fn known(gateway: &Gateway<'_>, prefix: &str, address: impl ToString) -> Result<Option<Value>> {
    let story = why(gateway, address)?;
    let known = story.get("scores").and_then(Value::as_array).into_iter().flatten();
    let is_it =
        |one: &&Value| one.pointer("/subject/prefix").and_then(Value::as_str) == Some(prefix);
    Ok(known.clone().find(is_it).cloned())
}

/// A series of the metrics.
pub fn metric(gateway: &Gateway<'_>, series: &str) -> Result<u64> {
    let page = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
    page.value(series).with_context(|| format!("there is no {series}"))
}

/// Waits until so many signals of a name were counted.
pub fn noticed(gateway: &Gateway<'_>, signal: &str, count: u64) -> Result {
    let series = format!("gateway_feedback_signals_total{{signal=\"{signal}\"}}");
    wait_for("signals", PATIENCE, || Ok((metric(gateway, &series)? >= count).then_some(())))
        .with_context(|| format!("not {count} of {signal}"))
}

/// A connection from `source`.
pub fn connect(namespace: &Namespace, source: IpAddr, target: SocketAddr) -> Result<Client> {
    Client::connect(namespace, Some(source), target, PATIENCE)
}

/// What becomes of a connection from `source`.
pub fn connecting(namespace: &Namespace, source: IpAddr, target: SocketAddr) -> Result<Connecting> {
    let Err(error) = Client::connect(namespace, Some(source), target, SILENCE) else {
        return Ok(Connecting::Made);
    };
    let kind = error.chain().find_map(|cause| Some(cause.downcast_ref::<std::io::Error>()?.kind()));
    match kind {
        Some(ErrorKind::ConnectionRefused) => Ok(Connecting::Refused),
        Some(ErrorKind::TimedOut) => Ok(Connecting::Silence),
        _ => Err(error),
    }
}

/// The status for `GET PATH` with these fields, which end in line ends.
pub fn get(client: &mut Client, path: &str, fields: &str) -> Result<u16> {
    client.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n{fields}\r\n").as_bytes())?;
    Ok(client.receive()?.status)
}

/// So many requests for what is not there, over one connection, which stays open.
pub fn miss(client: &mut Client, times: usize) -> Result {
    for _ in 0..times {
        let status = get(client, "/nothing", "")?;
        anyhow::ensure!(status == 404, "{status} instead of 404");
    }
    Ok(())
}

/// Waits until the other end has closed a connection, in order or not.
pub fn ended(client: &mut Client) -> Result {
    let Err(error) = client.read_to_end() else { return Ok(()) };
    let is_reset = |cause: &(dyn std::error::Error + 'static)| {
        let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        kind == Some(ErrorKind::ConnectionReset)
    };
    if error.chain().any(is_reset) { Ok(()) } else { Err(error) }
}
