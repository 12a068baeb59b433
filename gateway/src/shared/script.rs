//! Scripts that Redis runs: each known by the digest of its text, and sent whole only to a server that does not know
//! it (EVALSHA, then EVAL).

use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use redis::{Cmd, Value};

use super::{Redis, Unavailable, hex};

/// A script.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    digest: String,
}

impl Script {
    /// Knows the script by its text.
    pub fn new(text: &'static str) -> Self {
        let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        Self { text, digest: hex(digest.as_ref()) }
    }

    /// Runs it within `deadline`. In a Cluster all keys have to be in one slot: that of the first.
    pub async fn run<K, A>(
        &self,
        redis: &Redis,
        keys: &[K],
        arguments: &[A],
        deadline: Duration,
    ) -> Result<Value, Unavailable>
    where
        K: AsRef<[u8]> + Sync,
        A: AsRef<[u8]> + Sync,
    {
        let command = |name: &str, script: &str| {
            let mut command = Cmd::new();
            command.arg(name).arg(script).arg(keys.len());
            for key in keys {
                command.arg(key.as_ref());
            }
            for argument in arguments {
                command.arg(argument.as_ref());
            }
            command
        };
        let whole = || command("EVAL", self.text);
        let first = keys.first().map(AsRef::as_ref).unwrap_or_default();
        let known = command("EVALSHA", &self.digest);
        redis.call_or(first, &known, Some(&whole), deadline).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_server() {
        // `SCRIPT LOAD "return 1"` answers with it.
        assert_eq!(Script::new("return 1").digest, "e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
    }
}
