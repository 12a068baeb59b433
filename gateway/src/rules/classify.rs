//! Classification in user space, by the same words as the kernel's maps: for believed addresses, for hosts where the
//! kernel door cannot be opened, and to say what the kernel ought to do.

use std::collections::HashMap;
use std::net::IpAddr;

use gateway_common::layout::length_bit_v6;
use gateway_common::rule::{Action, Origin};
use gateway_common::source::Source;
use gateway_common::table::{TagV4, TagV6, length_bit_v4};
use ipnet::IpNet;

use crate::base::time::BootTime;

/// What a rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is done.
    pub action: Action,
    /// Who made it.
    pub origin: Origin,
    /// First moment at which it holds no longer.
    pub until: BootTime,
}

/// The rules of one prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Holds now.
    pub first: Entry,
    /// Holds when the first has ended.
    pub second: Option<Entry>,
}

impl Pair {
    /// The rule that holds. `None` sends the search on to the next shorter prefix.
    pub fn live(&self, now: BootTime) -> Option<Entry> {
        let both = [Some(self.first), self.second].into_iter().flatten();
        both.into_iter().find(|entry| now < entry.until)
    }
}

/// Every rule, looked up as the XDP program does it: the lengths that exist, the longest first.
#[derive(Clone, Debug, Default)]
pub struct Classifier {
    v4: HashMap<TagV4, Pair>,
    v6: HashMap<TagV6, Pair>,
    lengths_v4: u64,
    lengths_v6: [u64; 3],
}

impl Classifier {
    /// A classifier of these rules, each prefix at most once.
    pub fn new(rules: impl IntoIterator<Item = (IpNet, Pair)>) -> Self {
        let mut classifier = Self::default();
        for (prefix, rules) in rules {
            let length = u32::from(prefix.prefix_len());
            match Source::from(prefix.addr()) {
                Source::V4(address) => {
                    classifier.v4.insert(TagV4::new(address, length), rules);
                    classifier.lengths_v4 |= length_bit_v4(length);
                }
                Source::V6(address) => {
                    classifier.v6.insert(TagV6::new(address, length), rules);
                    let (word, bit) = length_bit_v6(length);
                    if let Some(word) = classifier.lengths_v6.get_mut(word as usize) {
                        *word |= bit;
                    }
                }
            }
        }
        classifier
    }

    /// Whether there is nothing to look at, so that the caller need not even ask for the time.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The most specific live rule for `address`.
    pub fn find(&self, address: IpAddr, now: BootTime) -> Option<(IpNet, Entry)> {
        let address = address.to_canonical();
        match Source::from(address) {
            Source::V4(bits) => bits_of(self.lengths_v4).find_map(|position| {
                let length = 32 - position;
                found(address, length, self.v4.get(&TagV4::new(bits, length))?, now)
            }),
            Source::V6(bits) => {
                let words = self.lengths_v6.iter().zip(0u32..);
                let mut positions =
                    words.flat_map(|(word, index)| bits_of(*word).map(move |bit| index * 64 + bit));
                positions.find_map(|position| {
                    let length = 128 - position;
                    found(address, length, self.v6.get(&TagV6::new(bits, length))?, now)
                })
            }
        }
    }

    /// What is done with `address`, if a rule says so.
    pub fn action(&self, address: IpAddr, now: BootTime) -> Option<Action> {
        self.find(address, now).map(|(_, entry)| entry.action)
    }
}

fn found(address: IpAddr, length: u32, rules: &Pair, now: BootTime) -> Option<(IpNet, Entry)> {
    let entry = rules.live(now)?;
    let prefix = IpNet::new(address, u8::try_from(length).ok()?).ok()?.trunc();
    Some((prefix, entry))
}

/// The positions of the bits that are set, lowest first.
fn bits_of(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let position = word.trailing_zeros();
        (position < 64).then(|| {
            word &= word - 1;
            position
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_common::rule::FOREVER;
    use proptest::prelude::*;

    fn rules(action: Action, until: u64) -> Pair {
        let first = Entry { action, origin: Origin::Operator, until: BootTime(until) };
        Pair { first, second: None }
    }

    #[test]
    fn the_second_takes_over_when_the_first_ends() {
        let pair =
            Pair { second: Some(rules(Action::Deny, FOREVER).first), ..rules(Action::Allow, 20) };
        let live = |now| pair.live(BootTime(now)).map(|entry| entry.action);
        assert_eq!((live(19), live(20)), (Some(Action::Allow), Some(Action::Deny)));
        assert_eq!(rules(Action::Deny, 20).live(BootTime(20)), None);
    }

    #[test]
    fn an_expired_rule_yields_to_the_next_shorter() {
        let classifier = Classifier::new([
            ("10.0.0.0/8".parse().unwrap(), rules(Action::Deny, FOREVER)),
            ("10.1.0.0/16".parse().unwrap(), rules(Action::Allow, 100)),
        ]);
        let address = "10.1.2.3".parse().unwrap();
        assert_eq!(classifier.action(address, BootTime(99)), Some(Action::Allow));
        assert_eq!(classifier.action(address, BootTime(100)), Some(Action::Deny));
        assert_eq!(classifier.action("11.0.0.1".parse().unwrap(), BootTime(0)), None);
    }

    proptest! {
        /// The model: of all live prefixes that contain the address, the longest.
        #[test]
        fn agrees_with_a_linear_search(
            set in proptest::collection::hash_map(
                (any::<bool>(), 0u128..64, 0u8..=128),
                (1u8..=3, 0u64..100),
                0..40,
            ),
            six: bool,
            host in 0u128..64,
            now in 0u64..100,
        ) {
            let address = |six: bool, bits: u128| -> IpAddr {
                // The interesting bits stand at both ends, so that short and long prefixes differ.
                if six { (bits << 122 | bits).to_be_bytes().into() }
                else { (((bits << 26 | bits) as u32).to_be_bytes()).into() }
            };
            let mut expected: Vec<(IpNet, Pair)> = Vec::new();
            for ((six, bits, length), (action, until)) in set {
                let length = if six { length } else { length % 33 };
                let prefix = IpNet::new(address(six, bits), length).unwrap().trunc();
                if !expected.iter().any(|(other, _)| *other == prefix) {
                    expected.push((prefix, rules(Action::from_number(action).unwrap(), until)));
                }
            }
            let classifier = Classifier::new(expected.clone());
            let target = address(six, host);
            let model = expected.iter()
                .filter(|(prefix, _)| prefix.contains(&target))
                .filter(|(_, rules)| rules.live(BootTime(now)).is_some())
                .max_by_key(|(prefix, _)| prefix.prefix_len())
                .map(|(prefix, _)| *prefix);
            prop_assert_eq!(classifier.find(target, BootTime(now)).map(|found| found.0), model);
        }
    }
}
