//! API keys over the admin socket: what is asked, and keys as people see them. A key itself goes one way, out, and
//! once: whoever names one names it by its id.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::time::UtcMillis;
use crate::store::keys::{KeyId, KeyRecord};

/// Keys of one page.
pub const PAGE_MAX_KEYS: usize = 10_000;
/// Keys that one command takes back.
pub const REVOKE_MAX_KEYS: usize = 10_000;

/// What can be asked about keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRequest {
    /// Make one.
    Create(CreateKey),
    /// Make one in the place of another.
    Rotate(RotateKey),
    /// Take some back: all of them or none.
    Revoke(RevokeKeys),
    /// A page of them.
    List(KeyQuery),
}

/// A key to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// The authenticator that it is for; without it the only one there is.
    #[serde(default)]
    pub auth: Option<String>,
    /// Whose it is.
    pub consumer: String,
    /// In the place of its consumer's.
    #[serde(default)]
    pub plan: Option<String>,
    /// What it may be used for.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// What it is for, in words.
    #[serde(default)]
    pub label: String,
    /// How long it holds, in milliseconds; for ever without it.
    #[serde(default)]
    pub for_ms: Option<u64>,
}

/// A key to be made in the place of another, with its consumer, plan, scopes and label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateKey {
    /// See [`CreateKey::auth`].
    #[serde(default)]
    pub auth: Option<String>,
    /// The one before.
    pub id: KeyId,
    /// How long both hold, in milliseconds.
    pub grace_ms: u64,
    /// How long the new one holds, in milliseconds; as long as the one before was made for without it.
    #[serde(default)]
    pub for_ms: Option<u64>,
}

/// Keys to be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeKeys {
    /// See [`CreateKey::auth`].
    #[serde(default)]
    pub auth: Option<String>,
    /// At most [`REVOKE_MAX_KEYS`].
    pub ids: Vec<KeyId>,
}

/// Which keys are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeyQuery {
    /// See [`CreateKey::auth`].
    pub auth: Option<String>,
    /// Of this consumer alone.
    pub consumer: Option<String>,
    /// Keys of the page, at most [`PAGE_MAX_KEYS`].
    pub limit: usize,
    /// Behind this place, which a page names for the next one.
    pub after: Option<String>,
}

/// A key as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyView {
    /// Its name, which is no secret.
    pub id: KeyId,
    /// Whose it is.
    pub consumer: String,
    /// `active`, `retiring`, `expired` or `revoked`.
    pub state: String,
    /// In the place of its consumer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// What it may be used for.
    pub scopes: Vec<String>,
    /// What it is for.
    pub label: String,
    /// When it was made.
    pub created_utc_ms: UtcMillis,
    /// Until when it holds, or held; for ever without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_utc_ms: Option<UtcMillis>,
    /// The key that took its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<KeyId>,
}

/// A key that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewKey {
    /// The key, this once.
    pub key: ShownOnce,
    /// What is kept of it.
    #[serde(flatten)]
    pub view: KeyView,
    /// A line for each thing to know.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A key on its way to whoever asked for it. It does not show in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShownOnce(pub String);

impl fmt::Debug for ShownOnce {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[secret]")
    }
}

impl KeyView {
    /// What is known about a key, as it stands.
    pub fn new(id: KeyId, record: KeyRecord, now: UtcMillis) -> Self {
        Self {
            id,
            state: record.state(now).name().to_owned(),
            until_utc_ms: record.end(),
            consumer: record.consumer,
            plan: record.plan,
            scopes: record.scopes,
            label: record.label,
            created_utc_ms: record.created,
            replaced_by: record.replaced_by,
        }
    }
}

impl KeyRequest {
    /// The authenticator that it names.
    pub fn auth(&self) -> Option<&str> {
        let (Self::Create(CreateKey { auth, .. })
        | Self::Rotate(RotateKey { auth, .. })
        | Self::Revoke(RevokeKeys { auth, .. })
        | Self::List(KeyQuery { auth, .. })) = self;
        auth.as_deref()
    }

    /// Whether it changes anything, and so belongs into the audit trail.
    pub fn changes(&self) -> bool {
        !matches!(self, Self::List(_))
    }
}

/// As the audit trail has it: one bounded line, whatever is odd escaped.
impl fmt::Display for KeyRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMED_MAX: usize = 20;
        const NAMED_MAX_CHARS: usize = 128;
        let short = |text: &str| -> String { text.chars().take(NAMED_MAX_CHARS).collect() };
        match self {
            Self::Create(create) => {
                write!(formatter, "keys create --consumer {:?}", short(&create.consumer))?;
                for scope in create.scopes.iter().take(NAMED_MAX) {
                    write!(formatter, " --scope {:?}", short(scope))?;
                }
                let label = short(&create.label);
                let plan = create.plan.iter().map(|plan| format!(" --plan {:?}", short(plan)));
                plan.chain([format!(" --label {label:?}")])
                    .try_for_each(|part| formatter.write_str(&part))
            }
            Self::Rotate(rotate) => {
                write!(formatter, "keys rotate {} --grace {}ms", rotate.id, rotate.grace_ms)
            }
            Self::Revoke(revoke) => {
                formatter.write_str("keys revoke")?;
                revoke.ids.iter().take(NAMED_MAX).try_for_each(|id| write!(formatter, " {id}"))?;
                match revoke.ids.len().checked_sub(NAMED_MAX) {
                    Some(more @ 1..) => write!(formatter, " and {more} more"),
                    _ => Ok(()),
                }
            }
            Self::List(_) => formatter.write_str("keys list"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_audit_trail_has_one_bounded_line_and_no_key() {
        let ids = vec![KeyId::of(&[7; 32]); 100];
        let line = KeyRequest::Revoke(RevokeKeys { auth: None, ids }).to_string();
        assert!(line.ends_with("and 80 more") && line.len() < 500, "{line}");
        let create = CreateKey {
            consumer: "a\nuid=0".repeat(100),
            label: "\u{1b}[2J".repeat(100),
            scopes: vec!["s".repeat(1000); 100],
            ..CreateKey::default()
        };
        let line = KeyRequest::Create(create).to_string();
        assert!(!line.contains(char::is_control) && line.len() < 6000, "{line}");
        assert_eq!(format!("{:?}", ShownOnce("gw_live_secret".to_owned())), "[secret]");
    }
}
