//! Open connections of clients in all workers: how many there are, and how many each source has. A source is an IPv4
//! address, or the IPv6 network that `kernel.ipv6_source_length` says.
//!
//! The workers share one table of words and no lock. A word is a source's tag and its count, and is free again when
//! the count is zero. A source lies within [`WINDOW`] words from a place that a secret hash gives it; while two workers
//! enter it at once it may come to lie there twice, so that its count is the sum over the window. Whoever enters adds
//! itself first and takes the sum after: of those who enter at once the last sees all others, so that no more than the
//! bound are ever let in, though at the bound itself two may be turned away where there was room for one.
//!
//! Two words for each connection that may be open: 16 bytes, 1 MiB by default. A source that finds its window full of
//! others is let in uncounted; `bounds.connections` holds all the same.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, AtomicUsize};

use gateway_common::source::Source;

use crate::base::random::mix;
use crate::base::time::Now;

/// Words in which a source may lie: two cache lines, or three.
const WINDOW: usize = 16;

/// More than twice the connections that may be open. The rest of a word is the tag: that two sources in one window
/// share a tag, and so a count, has a chance of one in 2^43.
const COUNT_BITS: u32 = 21;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// Between two lines in the log.
const QUIET_NS: u64 = 10_000_000_000;

/// What is open.
#[derive(Debug)]
pub(super) struct Sources {
    connections: AtomicUsize,
    /// A power of two. There is none before the first connection that is counted.
    words: OnceLock<Box<[AtomicU64]>>,
    size: usize,
    seed: u64,
    /// When the log was last told, on the boot clock.
    complained_ns: AtomicU64,
}

impl Sources {
    /// Nothing is open; room for so many connections, each of a source of its own.
    pub(super) fn new(connections: usize) -> Self {
        Self {
            connections: AtomicUsize::new(0),
            words: OnceLock::new(),
            size: (2 * connections).next_power_of_two().max(2 * WINDOW),
            seed: RandomState::new().hash_one(0),
            complained_ns: AtomicU64::new(0),
        }
    }

    /// A connection was opened; how many there were before.
    pub(super) fn open(&self) -> usize {
        self.connections.fetch_add(1, Relaxed)
    }

    /// A connection was closed, which was counted in this place, if it was.
    pub(super) fn close(&self, place: Option<usize>) {
        self.connections.fetch_sub(1, Relaxed);
        if let Some(place) = place {
            self.leave(place);
        }
    }

    /// Counts a connection of `address`: in which place, and how many its source has with this one. `None`: there is
    /// no room.
    pub(super) fn enter(&self, address: IpAddr, ipv6_length: u8) -> Option<(usize, usize)> {
        let hash = self.hash(address, ipv6_length);
        let tag = hash & !COUNT;
        'again: loop {
            let mut free = None;
            for place in self.window(hash) {
                let word = self.word(place)?;
                let seen = word.load(SeqCst);
                if seen & COUNT == 0 {
                    free = free.or(Some((place, word)));
                } else if seen & !COUNT == tag {
                    if word.compare_exchange(seen, seen + 1, SeqCst, SeqCst).is_err() {
                        continue 'again;
                    }
                    return Some((place, self.sum(hash)));
                }
            }
            let (place, word) = free?;
            if word.compare_exchange(0, tag | 1, SeqCst, SeqCst).is_ok() {
                return Some((place, self.sum(hash)));
            }
        }
    }

    /// Tells the log that `address` was turned away, now and then.
    pub(super) fn complain(&self, address: IpAddr, max: usize) {
        let (now, last) = (Now::read().boot.0, self.complained_ns.load(Relaxed));
        let is_quiet = last == 0 || now.saturating_sub(last) >= QUIET_NS;
        if is_quiet && self.complained_ns.compare_exchange(last, now, Relaxed, Relaxed).is_ok() {
            tracing::warn!(%address, max, "a source has bounds.connections_per_source; refused");
        }
    }

    fn leave(&self, place: usize) {
        let Some(word) = self.word(place) else { return };
        let less = |seen| Some(if seen & COUNT > 1 { seen - 1 } else { 0 });
        // It always has something to put: this cannot fail.
        word.fetch_update(SeqCst, SeqCst, less).ok();
    }

    fn hash(&self, address: IpAddr, ipv6_length: u8) -> u64 {
        let (family, source) = match Source::from(address) {
            Source::V4(bits) => (4, u64::from(bits)),
            Source::V6(bits) => (6, bits.masked(u32::from(ipv6_length).min(64)).high),
        };
        mix(mix(self.seed ^ source) ^ family)
    }

    /// The low bits decide about the place, the others are the tag.
    fn window(&self, hash: u64) -> impl Iterator<Item = usize> {
        let mask = self.size - 1;
        let home = hash as usize & mask;
        (home..home + WINDOW).map(move |place| place & mask)
    }

    fn word(&self, place: usize) -> Option<&AtomicU64> {
        let empty = || (0..self.size).map(|_| AtomicU64::new(0)).collect();
        self.words.get_or_init(empty).get(place)
    }

    fn sum(&self, hash: u64) -> usize {
        let words = self.window(hash).filter_map(|place| Some(self.word(place)?.load(SeqCst)));
        let own = words.filter(|word| word & !COUNT == hash & !COUNT);
        own.map(|word| (word & COUNT) as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;

    impl Sources {
        fn used(&self) -> usize {
            let words = self.words.get().unwrap().iter();
            words.filter(|word| word.load(SeqCst) != 0).count()
        }
    }

    #[test]
    fn an_ipv6_source_is_a_network_and_an_ipv4_source_an_address() {
        let sources = Sources::new(100);
        let count = |address: &str| sources.enter(address.parse().unwrap(), 56).unwrap().1;
        assert_eq!(count("192.0.2.1"), 1);
        assert_eq!(count("192.0.2.2"), 1);
        assert_eq!(count("192.0.2.1"), 2);
        assert_eq!(count("2001:db8:0:aa00::1"), 1);
        assert_eq!(count("2001:db8:0:aaff:1::"), 2);
        assert_eq!(count("2001:db8:0:ab00::1"), 1);
        assert_eq!(count("::c000:201"), 1, "no IPv4 address");
    }

    #[test]
    fn who_finds_no_room_is_not_counted() {
        let sources = Sources::new(1);
        let address = |number: u32| IpAddr::V4(number.into());
        let entered = (0..1000).filter(|number| sources.enter(address(*number), 64).is_some());
        let entered = entered.count();
        assert!((WINDOW..=2 * WINDOW).contains(&entered), "{entered}");
        assert_eq!(sources.used(), entered);
    }

    #[test]
    fn no_more_than_the_bound_are_let_in_at_once() {
        const MAX: usize = 3;
        const HOSTS: u8 = 4;
        let sources = Sources::new(64);
        let let_in: Vec<AtomicUsize> = (0..HOSTS).map(|_| AtomicUsize::new(0)).collect();
        let exceeded = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (sources, let_in, exceeded) = (&sources, &let_in, &exceeded);
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for turn in 0..50_000u64 {
                        let random = mix(turn << 8 | thread);
                        let host = random as u8 % HOSTS;
                        if random & 0x100 == 0
                            && let Some((host, place)) = held.pop()
                        {
                            let count: &AtomicUsize = &let_in[usize::from(host)];
                            count.fetch_sub(1, SeqCst);
                            sources.leave(place);
                            continue;
                        }
                        let address = IpAddr::from([10, 0, 0, host]);
                        let (place, count) = sources.enter(address, 64).unwrap();
                        if count > MAX {
                            sources.leave(place);
                        } else {
                            let before = let_in[usize::from(host)].fetch_add(1, SeqCst);
                            exceeded.fetch_or(before >= MAX, SeqCst);
                            held.push((host, place));
                        }
                    }
                    for (host, place) in held {
                        let_in[usize::from(host)].fetch_sub(1, SeqCst);
                        sources.leave(place);
                    }
                });
            }
        });
        assert!(!exceeded.into_inner(), "more than the bound were let in");
        assert_eq!(sources.used(), 0, "nothing is left of who has gone");
    }

    proptest! {
        #[test]
        fn alone_it_counts_as_a_map_does(
            steps in proptest::collection::vec((0u32..20, any::<bool>()), 0..200),
        ) {
            let sources = Sources::new(200);
            let mut model: HashMap<u32, Vec<usize>> = HashMap::new();
            for (host, enters) in steps {
                let places = model.entry(host).or_default();
                if enters {
                    let (place, count) = sources.enter(IpAddr::V4(host.into()), 64).unwrap();
                    places.push(place);
                    prop_assert_eq!(count, places.len());
                } else if let Some(place) = places.pop() {
                    sources.leave(place);
                }
            }
            let open = model.values().filter(|places| !places.is_empty()).count();
            prop_assert_eq!(sources.words.get().map_or(0, |_| sources.used()), open);
        }
    }
}
