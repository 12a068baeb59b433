//! How the Redis that gateways share stands, as `gateway status` shows it.

use serde::{Deserialize, Serialize};

/// The Redis of `state.redis`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedisView {
    /// `standalone`, `sentinel` or `cluster`.
    pub mode: String,
    /// Whether every key can be asked for.
    pub up: bool,
    /// Why it is not known which servers there are.
    pub error: Option<String>,
    /// The servers that have keys.
    pub servers: Vec<ServerView>,
    /// Calls that were answered.
    pub answered: u64,
    /// Calls that were not.
    pub failed: u64,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    /// Where it is.
    pub address: String,
    /// How long its last answer took (unit: µs); `None`: there was none in time.
    pub round_trip_us: Option<u64>,
}

/// One line, for people.
pub fn line(view: &RedisView) -> String {
    let state = if view.up { "up" } else { "DOWN" };
    let mut text = format!("{state}, {}", view.mode);
    for ServerView { address, round_trip_us } in &view.servers {
        match round_trip_us {
            Some(us) => text.push_str(&format!(", {address} answers within {us} us")),
            None => text.push_str(&format!(", {address} does not answer")),
        }
    }
    if let Some(error) = &view.error {
        text.push_str(&format!(", {error}"));
    }
    text.push_str(&format!("; {} calls answered, {} not", view.answered, view.failed));
    text
}
