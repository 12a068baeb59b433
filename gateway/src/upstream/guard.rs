//! What stands before a service as a whole: its breaker and its limit of concurrency. All workers share it, and it
//! stays when the configuration changes.

use std::sync::Arc;

use tokio::time::Instant;

use crate::base::time::instant;
use crate::upstream::breaker::Breaker;
use crate::upstream::concurrency::Limiter;

/// The state of one service.
#[derive(Debug)]
pub struct Guard {
    /// Of requests after their retries.
    pub breaker: Breaker,
    /// Of requests at once.
    pub limiter: Limiter,
}

impl Guard {
    /// Of a service that nothing is known about, for so many workers.
    pub fn new(workers: usize) -> Arc<Self> {
        let breaker = Breaker::new(workers, Instant::from_std(instant()));
        Arc::new(Self { breaker, limiter: Limiter::default() })
    }
}
