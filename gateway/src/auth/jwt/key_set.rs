//! The keys of one issuer, and which of them a token is verified by.

use std::collections::HashMap;

use serde_json::Value;

use super::algorithm::Algorithm;
use super::key::Key;
use super::token::Token;
use crate::auth::json;

/// Keys of a set. Well-known issuers have ten.
const KEYS_MAX: usize = 1000;
/// Keys that one token may be tried by: each costs a signature.
const TRIES_MAX: usize = 4;

/// The keys of one issuer.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    by_id: HashMap<Box<str>, Vec<usize>>,
    without_id: Vec<usize>,
}

/// What a signature is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// By the key of this index.
    Good,
    /// The token names a key that is not in the set.
    UnknownKey,
    /// Not by a key of the set, and why.
    Bad(&'static str),
}

impl KeySet {
    pub(super) fn new(keys: Vec<Key>) -> Self {
        let mut set = Self::default();
        for (index, key) in keys.iter().enumerate() {
            match key.id() {
                Some(id) => set.by_id.entry(id.into()).or_default().push(index),
                None => set.without_id.push(index),
            }
        }
        Self { keys, ..set }
    }

    /// A set as it is published (RFC 7517, section 5). Keys that are of no use here are left out; the error says why
    /// nothing is left, and fits after the name of the place.
    pub(super) fn of_jwks(
        bytes: &[u8],
        are_secrets_taken: bool,
        only: &[Algorithm],
    ) -> Result<Self, String> {
        let set = json::object(bytes).ok_or("is no plain JSON object")?;
        let Some(Value::Array(members)) = set.get("keys") else {
            return Err("has no list `keys`, so that it is no set of keys".to_owned());
        };
        if members.len() > KEYS_MAX {
            return Err(format!("has {} keys, which is more than {KEYS_MAX}", members.len()));
        }
        let (mut keys, mut reason) = (Vec::new(), "no key is in it");
        for member in members {
            let Value::Object(jwk) = member else { continue };
            match Key::of_jwk(jwk, are_secrets_taken, only) {
                Ok(key) => keys.push(key),
                Err(why) => reason = why,
            }
        }
        match (keys.is_empty(), members.is_empty()) {
            (false, _) => Ok(Self::new(keys)),
            (true, true) => Err(format!("has no key that can be used: {reason}")),
            (true, false) => Err(format!("has no key that can be used: the last one {reason}")),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Holds the signature of `token` against the keys that it can be by. A token that names a key which is known is
    /// verified by no other; keys without a name are for tokens of any.
    pub(super) fn verify(&self, token: &Token<'_>) -> Verdict {
        let named = token.key_id.as_deref().and_then(|id| self.by_id.get(id));
        let indices = match (named, &token.key_id) {
            (Some(indices), _) => indices.as_slice(),
            (None, Some(_)) if self.without_id.is_empty() => return Verdict::UnknownKey,
            (None, Some(_)) => self.without_id.as_slice(),
            (None, None) => return self.try_all(self.keys.iter(), token),
        };
        self.try_all(indices.iter().filter_map(|index| self.keys.get(*index)), token)
    }

    fn try_all<'k>(&self, keys: impl Iterator<Item = &'k Key>, token: &Token<'_>) -> Verdict {
        let mut tried = 0;
        for key in keys.filter(|key| key.is_for(token.algorithm)) {
            if tried == TRIES_MAX {
                return Verdict::Bad("the token does not say by which of many keys it is signed");
            }
            tried += 1;
            if key.verify(token.algorithm, token.signed, &token.signature) {
                return Verdict::Good;
            }
        }
        match tried {
            0 => Verdict::Bad("the token's algorithm is not that of the key"),
            _ => Verdict::Bad("the token's signature is wrong"),
        }
    }
}
