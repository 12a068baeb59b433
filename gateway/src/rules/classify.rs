//! Classification in user space, by the same tables as the XDP program: for believed addresses, and for hosts where the
//! kernel door cannot be opened.

use std::net::IpAddr;

use gateway_common::rule::{Action, Origin};
use gateway_common::table::{Head, Span};
use ipnet::IpNet;

use super::tables::Reader;
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

impl Entry {
    /// What a cell of a table says; `None` where it decides nothing.
    pub fn of(head: Head, span: Span) -> Option<Self> {
        if head.is_trial() {
            return None;
        }
        let (action, origin) = (head.action()?, head.origin()?);
        Some(Self { action, origin, until: BootTime(span.end_ns()) })
    }
}

/// Looks up what the rules say; nothing, in a dry run.
#[derive(Clone, Debug, Default)]
pub struct Classifier {
    reader: Option<Reader>,
    /// What holds for requests that are believed to come from somewhere, and for no packet.
    believed: Option<Reader>,
}

impl Classifier {
    /// Looks them up in these tables, as they are at each moment.
    pub fn new(reader: Reader) -> Self {
        Self { reader: Some(reader), believed: None }
    }

    /// The same, and these for addresses that are only believed.
    pub fn with_believed(self, believed: Option<Reader>) -> Self {
        Self { believed, ..self }
    }

    /// Whether there is nothing to look at, so that the caller need not even ask for the time.
    pub fn is_empty(&self) -> bool {
        self.reader.is_none()
    }

    /// The most specific live rule for `address`.
    pub fn find(&self, address: IpAddr, now: BootTime) -> Option<(IpNet, Entry)> {
        self.reader.as_ref()?.find(address, now)
    }

    /// The most specific live rule for a believed `address`: of two for one prefix the one that packets meet, too.
    pub fn find_believed(&self, address: IpAddr, now: BootTime) -> Option<(IpNet, Entry)> {
        let all = self.find(address, now);
        let Some(believed) = &self.believed else { return all };
        let own = believed.find(address, now);
        let length =
            |found: &Option<(IpNet, Entry)>| found.as_ref().map(|(prefix, _)| prefix.prefix_len());
        if length(&own) > length(&all) { own } else { all }
    }

    /// What is done with `address`, if a rule says so.
    pub fn action(&self, address: IpAddr, now: BootTime) -> Option<Action> {
        self.find(address, now).map(|(_, entry)| entry.action)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tables::{Memory, RuleTables};
    use super::*;
    use proptest::prelude::*;

    const TICK: u64 = 1 << gateway_common::table::TICK_SHIFT;

    fn tables(rules: impl IntoIterator<Item = (IpNet, Action, u64)>) -> RuleTables {
        let mut tables = RuleTables::open(Memory::own(64).unwrap(), 64);
        for (prefix, action, until) in rules {
            let head = Head::new(action, Origin::Operator, 0, false);
            tables.put(prefix, ((head, Span::until_ns(until)), None)).unwrap();
        }
        tables
    }

    #[test]
    fn an_expired_rule_yields_to_the_second_and_then_to_the_next_shorter() {
        let mut tables = tables([("10.0.0.0/8".parse().unwrap(), Action::Deny, u64::MAX)]);
        let head = |action, second| Head::new(action, Origin::Operator, 0, second);
        let first = (head(Action::Allow, false), Span::until_ns(10 * TICK));
        let second = (head(Action::Limit, true), Span::until_ns(20 * TICK));
        tables.put("10.1.0.0/16".parse().unwrap(), (first, Some(second))).unwrap();
        let classifier = Classifier::new(tables.reader());
        let action = |now: u64| classifier.action("10.1.2.3".parse().unwrap(), BootTime(now));
        assert_eq!(action(10 * TICK - 1), Some(Action::Allow));
        assert_eq!(action(10 * TICK), Some(Action::Limit));
        assert_eq!(action(20 * TICK), Some(Action::Deny));
        assert_eq!(classifier.action("11.0.0.1".parse().unwrap(), BootTime(0)), None);
    }

    #[test]
    fn a_rule_for_believed_addresses_yields_to_a_more_specific_one_and_stops_no_peer() {
        let prefix = |text: &str| text.parse::<IpNet>().unwrap();
        let all = tables([
            (prefix("10.0.0.5/32"), Action::Allow, u64::MAX),
            (prefix("10.0.0.0/8"), Action::Allow, u64::MAX),
        ]);
        let believed = tables([
            (prefix("10.0.0.0/24"), Action::Deny, u64::MAX),
            (prefix("10.0.0.5/32"), Action::Deny, u64::MAX),
        ]);
        let classifier = Classifier::new(all.reader()).with_believed(Some(believed.reader()));
        let action = |address: &str| {
            let found = classifier.find_believed(address.parse().unwrap(), BootTime(0));
            found.map(|(_, entry)| entry.action)
        };
        assert_eq!(action("10.0.0.4"), Some(Action::Deny));
        assert_eq!(action("10.0.0.5"), Some(Action::Allow));
        assert_eq!(action("10.0.1.1"), Some(Action::Allow));
        assert_eq!(action("11.0.0.1"), None);
        let peer = classifier.action("10.0.0.4".parse().unwrap(), BootTime(0));
        assert_eq!(peer, Some(Action::Allow));
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
            let mut expected: Vec<(IpNet, Action, u64)> = Vec::new();
            for ((six, bits, length), (action, until)) in set {
                let length = if six { length } else { length % 33 };
                let prefix = IpNet::new(address(six, bits), length).unwrap().trunc();
                if !expected.iter().any(|(other, ..)| *other == prefix) {
                    let action = Action::from_number(action).unwrap();
                    expected.push((prefix, action, until * TICK));
                }
            }
            let tables = tables(expected.clone());
            let target = address(six, host);
            let now = BootTime(now * TICK);
            let model = expected.iter()
                .filter(|(prefix, _, until)| prefix.contains(&target) && now.0 < *until)
                .max_by_key(|(prefix, ..)| prefix.prefix_len())
                .map(|(prefix, ..)| *prefix);
            let found = Classifier::new(tables.reader()).find(target, now);
            prop_assert_eq!(found.map(|found| found.0), model);
        }
    }
}
