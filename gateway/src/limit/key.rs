//! Whose requests are counted together: the parts of a key, and the hash by which it is found.
//!
//! The hash is seeded anew in each process, so nobody outside can choose keys that crowd one place of a table.

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::base::random::mix;

/// Makes the hash of a key from its parts. Each part has a kind, so that no text of one kind is taken for another's,
/// and no two parts for one.
#[derive(Clone, Copy, Debug)]
pub struct KeyHash {
    hash: u128,
}

impl KeyHash {
    /// The key without parts of the limit of this salt.
    pub fn new(seed: u64, salt: u64) -> Self {
        Self { hash: u128::from(mix(seed ^ mix(salt))) }
    }

    /// With one more part.
    #[must_use]
    pub fn part(self, kind: u8, bytes: &[u8]) -> Self {
        let [low, high] = [self.hash, self.hash >> 64].map(|half| half as u64);
        let seed = low ^ high.rotate_left(32) ^ u64::from(kind).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { hash: xxh3_128_with_seed(bytes, seed) }
    }

    /// The hash.
    pub fn hash(self) -> u128 {
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn parts_are_told_from_each_other() {
        let new = |salt| KeyHash::new(7, salt);
        let hashes = [
            new(1).hash(),
            new(1).part(1, b"ab").hash(),
            new(2).part(1, b"ab").hash(),
            KeyHash::new(8, 1).part(1, b"ab").hash(),
            new(1).part(2, b"ab").hash(),
            new(1).part(1, b"a").part(1, b"b").hash(),
            new(1).part(1, b"").part(1, b"ab").hash(),
            new(1).part(1, b"ab").part(1, b"").hash(),
            new(1).part(1, b"b").part(1, b"a").hash(),
        ];
        assert_eq!(HashSet::from(hashes).len(), hashes.len());
        assert_eq!(new(1).part(1, b"ab").hash(), new(1).part(1, b"ab").hash());
    }
}
