//! Random numbers that nobody may rely on as secrets: ids, choices, pauses. Whatever decides by one takes it as an
//! argument, so that tests decide what is random.

use std::cell::Cell;
use std::hash::{BuildHasher as _, RandomState};

/// Splitmix64 from a seed of the operating system, one state a thread: no lock and no system call a request.
pub fn random() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0));
    }
    STATE.with(|state| {
        let seed = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(seed);
        mix(seed)
    })
}

/// The end of splitmix64: each bit of the result depends on every bit of `number`.
pub fn mix(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
