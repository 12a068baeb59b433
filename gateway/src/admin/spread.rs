//! How a gateway stands with the others that it tells about sources, as `gateway status` shows it.

use serde::{Deserialize, Serialize};

/// What `feedback.spread` is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpreadView {
    /// Whether the others are heard.
    pub up: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Sources that any of them did something about.
    pub sources: usize,
    /// What the others were not told yet.
    pub outgoing: usize,
    /// How far the clock here is ahead of that of Redis. (ms)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead_ms: Option<i64>,
}

/// One line, for people.
pub fn line(view: &SpreadView) -> String {
    let state = if view.up { "up" } else { "DOWN" };
    let mut text = format!("{state}, {} sources, {} not told yet", view.sources, view.outgoing);
    if let Some(error) = &view.error {
        text.push_str(&format!("; {error}"));
    }
    text
}
