//! Whether a new version of a list from elsewhere is believed: one that lost most of its entries, grew beyond measure
//! or covers half the Internet is a mistake of its maker or somebody else's list. Decides only; the caller keeps the
//! last good copy.

use std::fmt;

use ipnet::IpNet;
use thiserror::Error;

use crate::config::{FeedBounds, Share};

/// A version of up to so many entries has not grown too much, whatever was before: a young feed doubles in a day.
pub const SMALL_ENTRIES: u64 = 1000;

/// Addresses of IPv4.
const V4_ADDRESSES: u64 = 1 << 32;
/// /64s of 2000::/3, the IPv6 addresses that are handed out (RFC 4291, section 2.4).
const V6_NETWORKS: u64 = 1 << 61;

/// How large a version is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Its prefixes, each once.
    pub entries: u64,
    /// IPv4 addresses that it covers, each once.
    pub addresses_v4: u64,
    /// /64s of 2000::/3 that it covers at least a part of, each once.
    pub networks_v6: u64,
}

/// Why a version is held back. Reads on after `feed NAME`.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HeldBack {
    /// Not one entry.
    #[error("has no entries")]
    Empty,
    /// Too few are left.
    #[error(
        "lost {} % of its entries ({} of {} left, below min_entries: {min})",
        percent(was.saturating_sub(*is), *was), Grouped(*is), Grouped(*was)
    )]
    Lost {
        /// Entries of the last good version.
        was: u64,
        /// Entries of this one.
        is: u64,
        /// The bound.
        min: Share,
    },
    /// Too many came.
    #[error(
        "grew from {} to {} entries (above max_entries: {max})",
        Grouped(*was), Grouped(*is)
    )]
    Grew {
        /// Entries of the last good version.
        was: u64,
        /// Entries of this one.
        is: u64,
        /// The bound.
        max: Share,
    },
    /// It is about too many.
    #[error("covers {} % of {family} (above max_address_share: {max})", percent(*covered, *of))]
    Wide {
        /// IPv4 or IPv6.
        family: &'static str,
        /// Addresses or /64s.
        covered: u64,
        /// All of them.
        of: u64,
        /// The bound.
        max: Share,
    },
}

/// Whether the version `new` may take the place of `old`, the last good one. With `min_entries: 0%` it may also be
/// empty.
pub fn check(old: Option<Summary>, new: Summary, bounds: &FeedBounds) -> Result<(), HeldBack> {
    let FeedBounds { min_entries, max_entries, max_address_share } = *bounds;
    if new.entries == 0 && min_entries != Share::ZERO {
        return Err(HeldBack::Empty);
    }
    let is = new.entries;
    if let Some(Summary { entries: was, .. }) = old {
        check_loss(was, is, min_entries)?;
        if is > SMALL_ENTRIES && max_entries.compare(is, was).is_gt() {
            return Err(HeldBack::Grew { was, is, max: max_entries });
        }
    }
    match new.beyond(max_address_share) {
        Some((family, covered, of)) => {
            Err(HeldBack::Wide { family, covered, of, max: max_address_share })
        }
        None => Ok(()),
    }
}

/// Whether a version of `is` entries has kept enough of the `was` that there were.
pub fn check_loss(was: u64, is: u64, min: Share) -> Result<(), HeldBack> {
    match min.compare(is, was).is_lt() {
        true => Err(HeldBack::Lost { was, is, min }),
        false => Ok(()),
    }
}

impl Summary {
    /// The family of which it covers more than `max`: how many of its addresses or /64s, and of how many.
    pub fn beyond(&self, max: Share) -> Option<(&'static str, u64, u64)> {
        let v4 = ("IPv4", self.addresses_v4, V4_ADDRESSES);
        let v6 = ("IPv6", self.networks_v6, V6_NETWORKS);
        [v4, v6].into_iter().find(|(_, covered, of)| max.compare(*covered, *of).is_gt())
    }

    /// Measures a version: its prefixes by address and then by length, each once.
    pub fn of_sorted(prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        let mut summary = Self::default();
        // In this order a prefix comes after the one that covers it.
        let mut counted_to_v4 = 0;
        let mut counted_to_v6 = 0;
        for prefix in prefixes {
            summary.entries += 1;
            match prefix {
                IpNet::V4(net) => {
                    let (first, end) = (
                        u64::from(net.network().to_bits()),
                        u64::from(net.broadcast().to_bits()) + 1,
                    );
                    summary.addresses_v4 += end.saturating_sub(first.max(counted_to_v4));
                    counted_to_v4 = counted_to_v4.max(end);
                }
                IpNet::V6(net) => {
                    let first = (net.network().to_bits() >> 64).clamp(GLOBAL.0, GLOBAL.1);
                    let end = ((net.broadcast().to_bits() >> 64) + 1).clamp(GLOBAL.0, GLOBAL.1);
                    let new = end.saturating_sub(first.max(counted_to_v6));
                    summary.networks_v6 += u64::try_from(new).unwrap_or(u64::MAX);
                    counted_to_v6 = counted_to_v6.max(end);
                }
            }
        }
        summary
    }
}

/// The /64s of 2000::/3: the first, and the one after the last.
const GLOBAL: (u128, u128) = (0x2000 << 48, 0x4000 << 48);

/// With one decimal, rounded up: what is beyond a bound is never shown as the bound.
pub fn percent(part: u64, whole: u64) -> String {
    let tenths = (u128::from(part) * 1000).div_ceil(u128::from(whole.max(1)));
    let text = format!("{}.{}", tenths / 10, tenths % 10);
    text.trim_end_matches(".0").to_owned()
}

/// `17,000`.
pub struct Grouped<T>(pub T);

impl<T: fmt::Display> fmt::Display for Grouped<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                formatter.write_str(",")?;
            }
            write!(formatter, "{digit}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    const BOUNDS: FeedBounds = FeedBounds {
        min_entries: Share::per_million(500_000),
        max_entries: Share::per_million(10_000_000),
        max_address_share: Share::per_million(50_000),
    };

    fn of(prefixes: &[IpNet]) -> Summary {
        Summary::of_sorted(prefixes.iter().copied().collect::<BTreeSet<_>>())
    }

    fn entries(entries: u64) -> Summary {
        Summary { entries, ..Summary::default() }
    }

    fn held(old: u64, new: Summary) -> String {
        check(Some(entries(old)), new, &BOUNDS).unwrap_err().to_string()
    }

    #[test]
    fn what_is_held_back_and_why() {
        assert_eq!(
            held(17_000, entries(1200)),
            "lost 93 % of its entries (1,200 of 17,000 left, below min_entries: 50%)"
        );
        assert_eq!(
            held(17_000, entries(1_700_000)),
            "grew from 17,000 to 1,700,000 entries (above max_entries: 1000%)"
        );
        let half = of(&["0.0.0.0/1".parse().unwrap()]);
        assert_eq!(held(1, half), "covers 50 % of IPv4 (above max_address_share: 5%)");
        let barely = Summary { addresses_v4: (V4_ADDRESSES / 20) + 1, ..entries(1) };
        assert_eq!(held(1, barely), "covers 5.1 % of IPv4 (above max_address_share: 5%)");
        let half = of(&["2000::/4".parse().unwrap()]);
        assert_eq!(held(1, half), "covers 50 % of IPv6 (above max_address_share: 5%)");
        assert_eq!(held(1, entries(0)), "has no entries");
        assert_eq!(check(None, entries(0), &BOUNDS), Err(HeldBack::Empty));
    }

    #[test]
    fn bounds_are_exact() {
        let check = |old, new| check(Some(entries(old)), entries(new), &BOUNDS).is_ok();
        assert!(check(3, 2) && !check(3, 1));
        assert!(check(1000, 500) && !check(1000, 499));
        assert!(check(1000, 10_000) && !check(1000, 10_001));
        assert!(check(1, SMALL_ENTRIES) && !check(1, SMALL_ENTRIES + 1));
        let share = |addresses_v4| {
            super::check(None, Summary { addresses_v4, ..entries(1) }, &BOUNDS).is_ok()
        };
        assert!(share(V4_ADDRESSES / 20) && !share(V4_ADDRESSES / 20 + 1));
        let any = FeedBounds { min_entries: Share::ZERO, ..BOUNDS };
        assert!(super::check(Some(entries(9)), entries(0), &any).is_ok());
    }

    #[test]
    fn everything_is_counted_once() {
        let of = |texts: &[&str]| {
            let prefixes: Vec<IpNet> = texts.iter().map(|text| text.parse().unwrap()).collect();
            let summary = of(&prefixes);
            (summary.entries, summary.addresses_v4, summary.networks_v6)
        };
        assert_eq!(
            of(&["10.0.0.1/32", "10.0.0.0/8", "10.0.0.0/8", "9.0.0.0/32"]),
            (3, (1 << 24) + 1, 0)
        );
        assert_eq!(of(&["0.0.0.0/0", "255.255.255.255/32"]), (2, V4_ADDRESSES, 0));
        assert_eq!(of(&["2001:db8::1/128", "2001:db8::2/128", "2001:db8:0:1::/64"]), (3, 0, 2));
        assert_eq!(of(&["::/0", "fe80::/10"]), (2, 0, V6_NETWORKS));
        assert_eq!(of(&["::/1"]), (1, 0, V6_NETWORKS));
        assert_eq!(of(&["fe80::/10", "::1/128", "4000::/128"]), (3, 0, 0));
        assert_eq!(of(&["3fff:ffff:ffff:ffff::/64"]), (1, 0, 1));
        assert_eq!(of(&[]), (0, 0, 0));
    }

    prop_compose! {
        /// Small worlds, so that prefixes overlap.
        fn prefix()(v4: bool, low: u8, length in 0u8..=8) -> IpNet {
            let (address, length) = if v4 {
                (IpAddr::from(Ipv4Addr::new(192, 0, 2, low)), 24 + length)
            } else {
                (IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, low.into(), 0, 0, 0, 1)), 56 + length)
            };
            IpNet::new(address, length).unwrap().trunc()
        }
    }

    proptest! {
        #[test]
        fn a_summary_is_what_counting_one_by_one_gives(
            prefixes in proptest::collection::vec(prefix(), 0..20),
        ) {
            let covered = |address: IpAddr| prefixes.iter().any(|net| net.contains(&address));
            let v4 = (0..=255).filter(|low| covered(Ipv4Addr::new(192, 0, 2, *low).into()));
            let v6 = (0..=255).filter(|low| {
                prefixes.iter().any(|net| {
                    let whole = Ipv6Addr::new(0x2001, 0xdb8, 0, *low, 0, 0, 0, 0);
                    net.contains(&IpNet::new(whole.into(), 64).unwrap())
                })
            });
            let distinct: BTreeSet<&IpNet> = prefixes.iter().collect();
            let expected = Summary {
                entries: distinct.len() as u64,
                addresses_v4: v4.count() as u64,
                networks_v6: v6.count() as u64,
            };
            prop_assert_eq!(of(&prefixes), expected);
        }

        /// What passes keeps every bound, what does not breaks one, and both are said without a panic.
        #[test]
        fn exactly_what_keeps_the_bounds_passes(
            old in 0u64..20_000, new in 0u64..200_000, small: bool,
            addresses_v4 in 0..=V4_ADDRESSES, networks_v6 in 0..=V6_NETWORKS,
        ) {
            let shrink = if small { 30 } else { 0 };
            let new = Summary {
                entries: new,
                addresses_v4: addresses_v4 >> (shrink / 3),
                networks_v6: networks_v6 >> shrink,
            };
            let result = check(Some(entries(old)), new, &BOUNDS);
            let good = new.entries > 0
                && new.entries * 2 >= old
                && (new.entries <= SMALL_ENTRIES || new.entries <= old * 10)
                && new.addresses_v4 * 20 <= V4_ADDRESSES
                && u128::from(new.networks_v6) * 20 <= u128::from(V6_NETWORKS);
            prop_assert_eq!(result.is_ok(), good, "{:?}", result);
            if let Err(held) = result {
                prop_assert!(!held.to_string().is_empty());
            }
        }

        #[test]
        fn the_same_again_always_passes(entries in 1u64.., addresses_v4 in 0..=V4_ADDRESSES / 20) {
            let same = Summary { entries, addresses_v4, networks_v6: 0 };
            prop_assert_eq!(check(Some(same), same, &BOUNDS), Ok(()));
        }
    }
}
