//! `feedback.spread`: by what gateways believe each other. Reads no secret: whoever puts the configuration in force
//! does.

use std::path::Path;

use serde::Deserialize;

use crate::config::at::At;
use crate::config::secret::{RawSecret, SecretSource, secret};

/// Beside the one that signs.
const ACCEPTED_MAX: usize = 3;

/// Other gateways hear of bans and lifts, and are heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedbackSpread {
    /// The first signs, each is believed.
    pub keys: Vec<SecretSource>,
}

/// `feedback.spread` as typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSpread {
    key: RawSecret,
    #[serde(default)]
    accepted_keys: Vec<RawSecret>,
}

pub(super) fn spread(
    raw: &RawSpread,
    (folder, has_redis): (&Path, bool),
    at: At<'_>,
) -> Option<FeedbackSpread> {
    if !has_redis {
        at.on_key().error_with_help(
            "there is nothing to spread over",
            "add `state.redis`, which the gateways share, or remove `feedback.spread`",
        );
    }
    let accepted = at.key("accepted_keys");
    if raw.accepted_keys.len() > ACCEPTED_MAX {
        let message = format!("these are {} keys", raw.accepted_keys.len());
        accepted.on_key().error_with_help(message, format!("name at most {ACCEPTED_MAX}"));
    }
    let key = secret(&raw.key, folder, at.key("key"));
    let accepted = raw.accepted_keys.iter().enumerate();
    let accepted =
        accepted.map(|(index, raw)| secret(raw, folder, at.key("accepted_keys").item(index)));
    Some(FeedbackSpread { keys: std::iter::once(key).chain(accepted).collect::<Option<_>>()? })
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let listen = "listen: [{address: 127.0.0.1:1}]\n";
        let redis = format!("{listen}state: {{redis: {{addresses: [127.0.0.1:6379]}}}}\n");
        let good = "feedback: {spread: {key: {file: /k}, accepted_keys: [{env: OLD}]}}\n";
        let config = parse("x.yaml", &format!("{redis}{good}")).unwrap();
        let spread = config.feedback.as_ref().unwrap().spread.as_ref().unwrap();
        assert_eq!(spread.keys.len(), 2);
        let many = "feedback: {spread: {key: {env: A}, accepted_keys: [{env: B}, {env: C}, \
                    {env: D}, {env: E}]}}\n";
        for (text, expected) in [
            (format!("{listen}{good}"), "add `state.redis`"),
            (format!("{redis}{many}"), "name at most 3"),
            (format!("{redis}feedback: {{spread: {{key: hunter2}}}}\n"), "write {file: PATH}"),
            (format!("{redis}feedback: {{spread: {{}}}}\n"), "key"),
        ] {
            let said = parse("x.yaml", &text).unwrap_err().to_string();
            assert!(said.contains(expected) && !said.contains("hunter2"), "{said}");
        }
    }
}
