//! Nonces that are accepted once by all gateways together. With Redis out of reach nobody can tell, so whoever asks
//! has to refuse.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use redis::{Cmd, Value};

use super::{Redis, Unavailable, hex};

impl Redis {
    /// Whether `nonce` of `owner` (an authenticator and a key of it) has not been seen by any gateway for `keep`. From
    /// now on it has. One command, `SET NX PX`, which is never sent twice: on [`Unavailable`] the nonce may be used up
    /// and must be refused.
    pub async fn is_first(
        &self,
        owner: &str,
        nonce: &[u8],
        keep: Duration,
    ) -> Result<bool, Unavailable> {
        // Of a fixed length, whatever a client sends, and no owner can be another's beginning.
        let mut whole = Vec::with_capacity(owner.len() + 1 + nonce.len());
        whole.extend_from_slice(owner.as_bytes());
        whole.push(0);
        whole.extend_from_slice(nonce);
        let digest = digest(&SHA256, &whole);
        let key = format!("{}:nonce:{}", self.config().prefix, hex(digest.as_ref()));
        let ms = keep.as_millis().clamp(1, i64::MAX as u128);
        let mut set = Cmd::new();
        set.arg("SET").arg(&key).arg("1").arg("NX").arg("PX").arg(ms.to_string());
        match self.call(key.as_bytes(), &set).await? {
            Value::Okay => Ok(true),
            Value::Nil => Ok(false),
            _ => Err(Unavailable::Refused),
        }
    }
}
