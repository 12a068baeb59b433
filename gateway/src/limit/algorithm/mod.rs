//! How much is too much. Each algorithm is a pure function: from the words that are kept for a key, the time and what a
//! request costs to the words from now on and a [`Verdict`]. Nothing here waits, allocates or reads a clock; who keeps
//! the words, and how several threads change them, is `counter`'s.

pub mod fixed_window;
pub mod leaky_bucket;
pub mod sliding_log;
pub mod sliding_window;
pub mod token_bucket;

/// What a limit says of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the request is within the limit.
    pub admitted: bool,
    /// What is left after it, in the unit of costs.
    pub remaining: u64,
    /// Nanoseconds until all of the limit is there again, if nobody takes of it.
    pub reset_ns: u64,
    /// Of one that is admitted: nanoseconds until its turn. Of one that is refused: nanoseconds after which the same
    /// request would be admitted, if nobody else comes.
    pub wait_ns: u64,
}
