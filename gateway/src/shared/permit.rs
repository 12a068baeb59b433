//! Permits of limits of concurrency that all gateways count together. One that nobody renews ends by itself, so a
//! gateway that dies takes none with it for longer than a lease.

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use redis::Cmd;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::Redis;
use super::script::Script;
use crate::base::random::random;

/// How long a permit lasts that is not renewed (unit: µs).
pub(super) const LEASE_US: u64 = 10_000_000;
/// Two renewals may be lost.
const RENEW_EVERY: Duration = Duration::from_micros(LEASE_US / 3);

/// Also where it is gone, for Redis may be another one by now.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local time = redis.call('TIME')\n\
         local stop = time[1] * 1000000 + time[2] + ARGV[2]\n\
         redis.call('ZADD', KEYS[1], string.format('%.0f', stop), ARGV[1])\n\
         return redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[2] / 1000))",
    )
});

/// Room for one request, until it is dropped.
pub struct Permit {
    redis: Redis,
    keys: Vec<String>,
    pub(super) name: String,
    renewal: Option<AbortHandle>,
}

impl Permit {
    pub(super) fn new(redis: &Redis, keys: Vec<String>) -> Self {
        let name = format!("{:016x}{:016x}", random(), random());
        Self { redis: redis.clone(), keys, name, renewal: None }
    }

    /// Renews it from now on, on this thread.
    pub(super) fn kept(mut self) -> Self {
        let (redis, keys, name) = (self.redis.clone(), self.keys.clone(), self.name.clone());
        let renewing = tokio::spawn(async move {
            let lease = LEASE_US.to_string();
            loop {
                sleep(RENEW_EVERY).await;
                for key in &keys {
                    // One that is lost is made good by the next.
                    let deadline = redis.config().timeout;
                    RENEW.run(&redis, &[key], &[&name, &lease], deadline).await.ok();
                }
            }
        });
        self.renewal = Some(renewing.abort_handle());
        self
    }

    /// It was not taken.
    pub(super) fn unused(mut self) {
        self.keys.clear();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(renewal) = self.renewal.take() {
            renewal.abort();
        }
        if self.keys.is_empty() {
            return;
        }
        // Without a runtime the thread is ending, and the permit does by itself.
        let Ok(runtime) = Handle::try_current() else { return };
        let (redis, name) = (self.redis.clone(), std::mem::take(&mut self.name));
        let keys = std::mem::take(&mut self.keys);
        runtime.spawn(async move {
            for key in keys {
                let mut remove = Cmd::new();
                remove.arg("ZREM").arg(&key).arg(&name);
                redis.call(key.as_bytes(), &remove).await.ok();
            }
        });
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Permit").field("keys", &self.keys).finish_non_exhaustive()
    }
}
