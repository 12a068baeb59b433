//! Rules: what is done with the packets of a prefix, from when until when, and on whose word.

/// What a rule does. 0 is no rule at all, so that zeroed map memory never decides anything.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Pass, past every bucket.
    Allow = 1,
    /// Drop.
    Deny = 2,
    /// Pass within the buckets of the rule's profile.
    Limit = 3,
    /// Reserved: answer a new connection with TCP RST.
    Reset = 4,
}

impl Action {
    /// The action with this number, if there is one.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Allow),
            2 => Some(Self::Deny),
            3 => Some(Self::Limit),
            4 => Some(Self::Reset),
            _ => None,
        }
    }

    /// The name in configuration, listings and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Limit => "limit",
            Self::Reset => "reset",
        }
    }
}

/// Who made a rule. Within one prefix the higher origin wins.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The feedback loop.
    Ban = 1,
    /// A list fetched by URL.
    Feed = 2,
    /// A list in a file.
    List = 3,
    /// The configuration file.
    Configuration = 4,
    /// Somebody at the command line.
    Operator = 5,
    /// The gateway itself, for an address that must never be blocked.
    Protected = 6,
    /// Somebody at the command line who was told that the address is protected, and insisted.
    Forced = 7,
}

impl Origin {
    /// Every origin, weakest first.
    pub const ALL: [Self; 7] = [
        Self::Ban,
        Self::Feed,
        Self::List,
        Self::Configuration,
        Self::Operator,
        Self::Protected,
        Self::Forced,
    ];

    /// The origin with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|origin| *origin as u8 == number)
    }

    /// The name in listings and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ban => "ban",
            Self::Feed => "feed",
            Self::List => "list",
            Self::Configuration => "configuration",
            Self::Operator => "operator",
            Self::Protected => "protected",
            Self::Forced => "forced",
        }
    }
}

/// A rule without end.
pub const FOREVER: u64 = u64::MAX;

/// One rule as the kernel sees it. All zero is no rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// First nanosecond of CLOCK_BOOTTIME at which it holds.
    pub active_from: u64,
    /// First nanosecond of CLOCK_BOOTTIME at which it holds no longer; [`FOREVER`] for none.
    pub active_until: u64,
    /// Where its hits are counted.
    pub slot: u32,
    /// Tells a slot's present rule from those that had the slot before.
    pub generation: u32,
    /// An [`Action`] by number.
    pub action: u8,
    /// An [`Origin`] by number.
    pub origin: u8,
    /// Index of the profile of a `limit` rule.
    pub profile: u16,
    /// Zero, so that no byte of the map's memory is undefined.
    pub reserved: u32,
}

impl Entry {
    /// Whether the rule exists and holds at `now_ns` of CLOCK_BOOTTIME.
    #[inline(always)]
    pub const fn is_live(&self, now_ns: u64) -> bool {
        self.action != 0 && self.active_from <= now_ns && now_ns < self.active_until
    }
}

/// What the maps hold for one prefix: the rule that holds now and the one that takes over when it ends. Two, because
/// rules end in the kernel also while nobody is there to write the next one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The winner by origin and action.
    pub first: Entry,
    /// The winner among those that outlive it, or all zero.
    pub second: Entry,
}

impl Rules {
    /// The rule that holds at `now_ns` of CLOCK_BOOTTIME. `None` sends the search on to the next shorter prefix.
    #[inline(always)]
    pub const fn live(&self, now_ns: u64) -> Option<&Entry> {
        if self.first.is_live(now_ns) {
            Some(&self.first)
        } else if self.second.is_live(now_ns) {
            Some(&self.second)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(active_from: u64, active_until: u64) -> Entry {
        Entry { active_from, active_until, action: Action::Deny as u8, ..Entry::default() }
    }

    #[test]
    fn a_rule_holds_from_its_first_nanosecond_to_the_one_before_its_end() {
        let rule = entry(10, 20);
        assert_eq!([9, 10, 19, 20].map(|now| rule.is_live(now)), [false, true, true, false]);
    }

    #[test]
    fn zeroed_memory_is_no_rule() {
        assert!(Rules::default().live(0).is_none());
        assert!(!Entry { active_until: FOREVER, ..Entry::default() }.is_live(5));
    }

    #[test]
    fn the_second_takes_over_when_the_first_ends() {
        let rules = Rules { first: entry(0, 20), second: entry(0, FOREVER) };
        assert_eq!(rules.live(19).unwrap().active_until, 20);
        assert_eq!(rules.live(20).unwrap().active_until, FOREVER);
    }

    #[test]
    fn numbers_and_names_go_there_and_back() {
        for origin in Origin::ALL {
            assert_eq!(Origin::from_number(origin as u8), Some(origin));
        }
        for number in 1..=4 {
            assert_eq!(Action::from_number(number).map(|action| action as u8), Some(number));
        }
        assert_eq!(Action::from_number(0), None);
        assert_eq!(Origin::from_number(0), None);
    }
}
