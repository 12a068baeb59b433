//! `consumers`: what is known of callers beside their credentials.

use serde::Deserialize;

use crate::base::text::{NAME_MAX_BYTES, is_name};
use crate::config::at::At;
use crate::config::forms::Named;
use crate::config::limits::{CallerLimit, RawLimit};
use crate::config::tree::shorten;

/// A party that calls, to which plans belong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consumer {
    /// Each once.
    pub name: String,
    /// Its tier of limits; a credential that names another one wins.
    pub plan: Option<String>,
    /// Whom it belongs to; a credential that names another one wins.
    pub tenant: Option<String>,
    /// In addition to those of its credential.
    pub roles: Vec<String>,
    /// In addition to those of its credential.
    pub scopes: Vec<String>,
    /// In addition to those of its credential.
    pub groups: Vec<String>,
    /// How much it may, instead of what its plan says; empty: what that says.
    pub limits: Vec<CallerLimit>,
}

/// As typed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RawConsumer {
    pub(in crate::config) plan: Option<String>,
    tenant: Option<String>,
    roles: Vec<String>,
    scopes: Vec<String>,
    groups: Vec<String>,
    pub(in crate::config) limits: Vec<RawLimit>,
}

pub(in crate::config) fn consumers(raw: &Named<RawConsumer>, at: At<'_>) -> Vec<Consumer> {
    let one = |(index, (called, raw)): (usize, &(String, RawConsumer))| {
        let at = at.entry(index);
        let text = |text: &Option<String>, key| text.clone().filter(|text| word(text, at.key(key)));
        let good = word(called, at.on_key());
        let consumer = Consumer {
            name: called.clone(),
            plan: text(&raw.plan, "plan"),
            tenant: text(&raw.tenant, "tenant"),
            roles: words(&raw.roles, at.key("roles")),
            scopes: words(&raw.scopes, at.key("scopes")),
            groups: words(&raw.groups, at.key("groups")),
            limits: Vec::new(),
        };
        good.then_some(consumer)
    };
    raw.0.iter().enumerate().filter_map(one).collect()
}

/// Names that a header can list: no space, comma, quote or control character in them.
pub(super) fn words(texts: &[String], at: At<'_>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let at = at.item(index);
        if found.contains(text) {
            let message = format!("`{}` is given twice", shorten(text));
            at.error_with_help(message, "remove one of the two");
        } else if word(text, at) {
            found.push(text.clone());
        }
    }
    found
}

pub(super) fn word(text: &str, at: At<'_>) -> bool {
    let good = is_name(text);
    if !good {
        at.error_with_help(
            format!("`{}` is no name", shorten(text)),
            format!(
                "write 1 to {NAME_MAX_BYTES} letters, digits and signs, without spaces, commas, \
                 semicolons, quotes and backslashes"
            ),
        );
    }
    good
}
