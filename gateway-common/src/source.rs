//! Where a packet comes from, as numbers in host order, and the keys that are made of it.

use core::net::IpAddr;

use crate::layout::SHARED_LEN;
use crate::table::finish;

/// A source address as the packet carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An IPv4 address, in host byte order.
    V4(u32),
    /// An IPv6 address.
    V6(V6),
}

/// An IPv6 address as two words in host byte order: the kernel has no 128-bit registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V6 {
    /// The first 64 bits, the network part of most addresses.
    pub high: u64,
    /// The last 64 bits.
    pub low: u64,
}

impl V6 {
    /// Keeps the first `length` bits (at most 128) and clears the rest.
    #[inline(always)]
    pub const fn masked(self, length: u32) -> Self {
        if length <= 64 {
            Self { high: self.high & mask64(length), low: 0 }
        } else {
            Self { high: self.high, low: self.low & mask64(length - 64) }
        }
    }
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            IpAddr::V6(v6) => {
                let bits = v6.to_bits();
                Self::V6(V6 { high: (bits >> 64) as u64, low: bits as u64 })
            }
        }
    }
}

impl From<Source> for IpAddr {
    fn from(source: Source) -> Self {
        match source {
            Source::V4(bits) => Self::V4(bits.into()),
            Source::V6(V6 { high, low }) => {
                Self::V6((u128::from(high) << 64 | u128::from(low)).into())
            }
        }
    }
}

/// The first `length` bits set, for `length` of 0 to 32; anything longer counts as 32.
#[inline(always)]
pub const fn mask32(length: u32) -> u32 {
    // A shift by the full width is undefined in the kernel's instruction set.
    if length == 0 {
        0
    } else if length >= 32 {
        u32::MAX
    } else {
        u32::MAX << (32 - length)
    }
}

/// The first `length` bits set, for `length` of 0 to 64; anything longer counts as 64.
#[inline(always)]
pub const fn mask64(length: u32) -> u64 {
    if length == 0 {
        0
    } else if length >= 64 {
        u64::MAX
    } else {
        u64::MAX << (64 - length)
    }
}

/// Who owns a bucket, and which: one IPv4 address, or one IPv6 network, by default a /64, the least that a subscriber
/// is given (RFC 6177).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceKey {
    /// The address or the network part, in host byte order.
    pub bits: u64,
    /// 4 or 6, so that no IPv4 address shares a bucket with an IPv6 network, and whether packets or connections count.
    pub kind: u64,
}

impl SourceKey {
    const CONNECTIONS: u64 = 0x100;

    /// The key of the bucket that packets of `source` are charged to, of IPv6 by the bits of the first half that are
    /// set in `mask_v6`.
    #[inline(always)]
    pub const fn packets(source: Source, mask_v6: u64) -> Self {
        match source {
            Source::V4(address) => Self { bits: address as u64, kind: 4 },
            Source::V6(V6 { high, .. }) => Self { bits: high & mask_v6, kind: 6 },
        }
    }

    /// The key of the bucket that new connections of the same source are charged to.
    #[inline(always)]
    pub const fn connections(self) -> Self {
        Self { bits: self.bits, kind: self.kind | Self::CONNECTIONS }
    }

    /// The key of the same source's other bucket.
    #[inline(always)]
    pub const fn other(self) -> Self {
        Self { bits: self.bits, kind: self.kind ^ Self::CONNECTIONS }
    }

    /// Which of [`SHARED_LEN`] buckets the source shares with others while it has none of its own: packets in one half,
    /// connections in the other. `seed` keeps it from being chosen.
    #[inline(always)]
    pub const fn shared(self, seed: u64) -> u32 {
        const HALF: u32 = SHARED_LEN / 2;
        let half = if self.kind & Self::CONNECTIONS == 0 { 0 } else { HALF };
        let family = (self.kind & !Self::CONNECTIONS) << 61;
        half | finish(self.bits ^ family ^ seed) & (HALF - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn masks_at_the_edges() {
        assert_eq!(mask32(0), 0);
        assert_eq!(mask32(1), 0x8000_0000);
        assert_eq!(mask32(32), u32::MAX);
        assert_eq!(mask64(0), 0);
        assert_eq!(mask64(64), u64::MAX);
    }

    #[test]
    fn no_two_buckets_share_a_key() {
        let v4 = SourceKey::packets(Source::V4(7), u64::MAX);
        let v6 = |high, mask| SourceKey::packets(Source::V6(V6 { high, low: 9 }), mask);
        let keys = [v4, v6(7, u64::MAX), v4.connections(), v6(7, u64::MAX).connections()];
        let unique: std::collections::HashSet<_> = keys.into_iter().collect();
        assert_eq!(unique.len(), keys.len());
        assert_eq!(v6(0xabcd, !0xff), v6(0xab00, u64::MAX), "only the first bits count");
    }

    #[test]
    fn sources_without_a_bucket_are_spread_over_the_shared_ones() {
        const SOURCES: u32 = 100_000;
        let mut seen = std::vec![0u32; SHARED_LEN as usize];
        for address in 0..SOURCES {
            let key = SourceKey::packets(Source::V4(address), u64::MAX);
            assert_eq!(key.other(), key.connections());
            assert_eq!(key.other().other(), key);
            let (packets, connections) = (key.shared(7), key.other().shared(7));
            assert!(
                packets < SHARED_LEN / 2 && (SHARED_LEN / 2..SHARED_LEN).contains(&connections)
            );
            seen[packets as usize] += 1;
        }
        // Poisson with a mean of 1.5: twelve in one place is a chance of one in a million places.
        assert!(seen.iter().all(|count| *count <= 14), "{:?}", seen.iter().max());
        let moved = (0..SOURCES).filter(|address| {
            let key = SourceKey::packets(Source::V4(*address), u64::MAX);
            key.shared(7) != key.shared(8)
        });
        assert!(moved.count() > SOURCES as usize - 100, "the seed decides");
    }

    proptest! {
        #[test]
        fn v6_masking_agrees_with_plain_arithmetic(bits: u128, length in 0u32..=128) {
            let mask = if length == 0 { 0 } else { u128::MAX << (128 - length) };
            let masked = V6 { high: (bits >> 64) as u64, low: bits as u64 }.masked(length);
            prop_assert_eq!(u128::from(masked.high) << 64 | u128::from(masked.low), bits & mask);
        }

        #[test]
        fn an_address_survives_the_way_there_and_back(address: IpAddr) {
            prop_assert_eq!(IpAddr::from(Source::from(address)), address);
        }
    }
}
