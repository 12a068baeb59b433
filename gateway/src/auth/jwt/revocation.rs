//! The list of tokens that hold no longer, though they have not expired.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use crate::auth::claims::{Claims, text, time};
use crate::base::time::UtcMillis;

/// Half a million tokens (unit: bytes).
pub(super) const FILE_BYTES_MAX: u64 = 32 << 20;

/// What is revoked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Revoked {
    tokens: HashSet<Box<str>>,
    /// Users, and the moment before which their tokens were issued.
    users: HashMap<Box<str>, UtcMillis>,
}

impl Revoked {
    /// Lines `jti ID`, `sub USER` and `sub USER before 2026-01-01T00:00:00Z`. The error fits after the name
    /// of the file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "is no UTF-8")?;
        let mut revoked = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') && revoked.add(line).is_none() {
                let number = number + 1;
                return Err(format!(
                    "has a mistake in line {number}: write `jti ID`, `sub USER` or \
                     `sub USER before 2026-01-01T00:00:00Z`"
                ));
            }
        }
        Ok(revoked)
    }

    fn add(&mut self, line: &str) -> Option<()> {
        let (word, rest) = line.split_once(' ')?;
        let rest = rest.trim_start();
        match word {
            "jti" => drop(self.tokens.insert(rest.into())),
            "sub" => {
                let (user, before) = match rest.rsplit_once(" before ") {
                    Some((user, moment)) => (user.trim_end(), moment_of(moment.trim())?),
                    None => (rest, UtcMillis(u64::MAX)),
                };
                let latest = self.users.entry(user.into()).or_insert(before);
                *latest = (*latest).max(before);
            }
            _ => return None,
        }
        Some(())
    }

    /// Whether a token with these claims is revoked.
    pub(super) fn has(&self, claims: &Claims) -> Result<bool, &'static str> {
        let token = text(claims, "jti")?;
        if token.is_some_and(|token| self.tokens.contains(token)) {
            return Ok(true);
        }
        let user = text(claims, "sub")?;
        let Some(before) = user.and_then(|user| self.users.get(user)) else { return Ok(false) };
        // One that does not say when it was issued may have been before.
        Ok(time(claims, "iat")?.is_none_or(|issued| issued < *before))
    }
}

fn moment_of(text: &str) -> Option<UtcMillis> {
    let time = humantime::parse_rfc3339(text).ok()?;
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok().map(UtcMillis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::json;

    fn has(list: &str, claims: &str) -> bool {
        let revoked = Revoked::parse(list.as_bytes()).unwrap();
        revoked.has(&json::object(claims.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn tokens_are_revoked_by_their_id() {
        let list = "# stolen\njti a b\n\n  jti  c  \n";
        assert!(has(list, r#"{"jti": "a b"}"#) && has(list, r#"{"jti": "c"}"#));
        assert!(!has(list, r#"{"jti": "a"}"#) && !has(list, r#"{"jti": "A b"}"#));
        assert!(!has(list, r#"{"sub": "c"}"#) && !has(list, "{}"));
    }

    #[test]
    fn tokens_of_a_user_are_revoked_by_when_they_were_issued() {
        let list =
            "sub ann\nsub bob before 2026-01-01T00:00:00Z\nsub bob before 2025-01-01T00:00:00Z";
        assert!(has(list, r#"{"sub": "ann", "iat": 4102444800}"#));
        assert!(has(list, r#"{"sub": "ann"}"#));
        assert!(has(list, r#"{"sub": "bob", "iat": 1767225599}"#));
        assert!(!has(list, r#"{"sub": "bob", "iat": 1767225600}"#));
        assert!(has(list, r#"{"sub": "bob"}"#), "it does not say when it was issued");
        assert!(!has(list, r#"{"sub": "eve"}"#));
    }

    #[test]
    fn a_line_with_a_mistake_is_named() {
        for bad in ["jti", "sub", "kid a", "a", "sub bob before yesterday"] {
            let error = Revoked::parse(format!("jti a\n{bad}").as_bytes()).unwrap_err();
            assert!(error.contains("line 2"), "{error}");
        }
        assert_eq!(Revoked::parse(b"\xff").unwrap_err(), "is no UTF-8");
    }
}
