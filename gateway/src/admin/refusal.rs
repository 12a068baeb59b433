//! Why commands are not carried out.

use serde::{Deserialize, Serialize};

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// In words, with the way out.
    pub error: String,
    /// Whether the request itself was wrong, as opposed to its not being possible.
    #[serde(default)]
    pub usage: bool,
    /// What it would cover, in words, where all that is missing is that somebody means it: then it can be asked for
    /// once more ([`super::api::Request::insist`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub covers: Option<String>,
}

impl Refusal {
    /// The command was right and could not be carried out.
    pub fn failed(error: impl ToString) -> Self {
        Self { error: error.to_string(), usage: false, covers: None }
    }

    /// It covers so much that somebody has to say yes: this, in words.
    pub fn large(covers: String) -> Self {
        let error = format!("{covers}: add --yes if that is meant");
        Self { error, usage: false, covers: Some(covers) }
    }

    /// The command itself was wrong.
    pub fn usage(error: impl ToString) -> Self {
        Self { error: error.to_string(), usage: true, covers: None }
    }
}
