//! Rules: what is done with the packets of a prefix, and on whose word. How they lie in memory, and when they hold, is
//! in [`crate::table`].

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
    /// Drop, but answer a new connection with TCP RST first.
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

/// In the place of the profile of an `allow` rule: its address is the host's own.
pub const OWN_ADDRESS: u8 = 1;

/// In the place of the profile of a rule that limits nobody, from this number on: the seat of its list in the counters
/// of lists, see [`crate::layout::LISTS`].
pub const SEAT_FIRST: u8 = 2;

/// A rule without end, in nanoseconds of CLOCK_BOOTTIME.
pub const FOREVER: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;

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
