//! How a gateway stands with the crowdsec whose decisions it carries out, as `gateway status` shows it.

use serde::{Deserialize, Serialize};

use crate::base::time::UtcMillis;

/// What `feedback.crowdsec` is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrowdsecView {
    /// Where it is asked.
    pub url: String,
    /// Whether it answered when it was asked last.
    pub up: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it answered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_utc_ms: Option<UtcMillis>,
    /// How often it was asked since then for nothing.
    pub failures: u64,
    /// Bans that hold and that it decided last.
    pub bans: usize,
}

/// One line, for people.
pub fn line(view: &CrowdsecView) -> String {
    let state = match (view.up, &view.error) {
        (true, _) => "up",
        (false, Some(_)) => "DOWN",
        (false, None) => "not asked yet",
    };
    let answered = view.answered_utc_ms.map_or_else(|| "never".to_owned(), UtcMillis::display);
    let mut text = format!("{state}, {} bans, last answer {answered}", view.bans);
    if let Some(error) = &view.error {
        text.push_str(&format!(", {} failures since; {error}", view.failures));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_wrong() {
        let up = CrowdsecView {
            url: "http://127.0.0.1:8080/".to_owned(),
            up: true,
            error: None,
            answered_utc_ms: Some(UtcMillis(0)),
            failures: 0,
            bans: 7,
        };
        assert_eq!(line(&up), "up, 7 bans, last answer 1970-01-01T00:00:00Z");
        let first = CrowdsecView { up: false, answered_utc_ms: None, ..up.clone() };
        assert_eq!(line(&first), "not asked yet, 7 bans, last answer never");
        let down = CrowdsecView { error: Some("answered 403".to_owned()), failures: 3, ..first };
        let said = "DOWN, 7 bans, last answer never, 3 failures since; answered 403";
        assert_eq!(line(&down), said);
    }
}
