//! What one worker remembers of credentials that it has checked: bounded, without a lock, and never the credential.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use quick_cache::unsync::Cache;

use super::Identity;
use crate::base::time::{BootTime, Now, UtcMillis};

/// SHA-256 of a credential.
pub type Digest = [u8; 32];

/// What is remembered by.
pub fn digest_of(credential: &[u8]) -> Digest {
    let mut bytes = Digest::default();
    for (to, from) in bytes.iter_mut().zip(digest(&SHA256, credential).as_ref()) {
        *to = *from;
    }
    bytes
}

/// The callers whom one authenticator knew lately, as one worker has seen them.
pub struct Memory(RefCell<Cache<Digest, Remembered>>);

#[derive(Clone)]
struct Remembered {
    identity: Arc<Identity>,
    generation: u64,
    /// On both clocks, and over when one says so: a step of the wall clock makes nothing last longer.
    until: (BootTime, UtcMillis),
}

impl Memory {
    /// Room for so many.
    pub fn new(capacity: usize) -> Self {
        Self(RefCell::new(Cache::new(capacity)))
    }

    /// Who was known by `digest`, if that still holds and nothing has changed that it was checked by.
    pub fn get(&self, digest: &Digest, generation: u64, now: Now) -> Option<Arc<Identity>> {
        let seen = self.0.borrow();
        let Remembered { identity, until, .. } =
            seen.get(digest).filter(|seen| seen.generation == generation)?;
        (now.boot < until.0 && now.utc < until.1).then(|| Arc::clone(identity))
    }

    /// Remembers for `time` who was known by `digest`, checked by what `generation` numbers.
    pub fn put(
        &self,
        digest: Digest,
        generation: u64,
        (now, time): (Now, Duration),
        identity: Arc<Identity>,
    ) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let until = (BootTime(now.boot.0.saturating_add(nanos)), now.utc.after(time));
        self.0.borrow_mut().insert(digest, Remembered { identity, generation, until });
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Memory").field("known", &self.0.borrow().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { boot: BootTime(5_000_000_000), utc: UtcMillis(1_000_000) };

    #[test]
    fn what_is_remembered_ends_by_either_clock_and_with_its_generation() {
        let memory = Memory::new(10);
        let digest = digest_of(b"token");
        memory.put(digest, 7, (NOW, Duration::from_secs(2)), Arc::default());
        let get = |generation, boot: u64, utc: u64| {
            let now = Now { boot: BootTime(boot), utc: UtcMillis(utc) };
            memory.get(&digest, generation, now).is_some()
        };
        assert!(get(7, 6_999_999_999, 1_001_999));
        assert!(!get(7, 7_000_000_000, 1_000_000), "the boot clock has passed it");
        assert!(!get(7, 5_000_000_000, 1_002_000), "the wall clock has passed it");
        assert!(!get(8, 5_000_000_000, 1_000_000), "it was checked by other keys");
        assert!(memory.get(&digest_of(b"other"), 7, NOW).is_none());
    }

    #[test]
    fn it_is_bounded() {
        let memory = Memory::new(100);
        for number in 0..10_000u32 {
            let digest = digest_of(&number.to_be_bytes());
            memory.put(digest, 0, (NOW, Duration::from_secs(1)), Arc::default());
        }
        assert!(memory.0.borrow().len() <= 100);
    }
}
