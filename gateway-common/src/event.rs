//! A dropped packet as the program reports it: a sample, of a few a second. What is counted never depends on it.

use core::mem::offset_of;

use crate::packet::{Packet, Transport};
use crate::source::{Source, V6};
use crate::table::Head;
use crate::verdict::Reason;

/// The rule that decided about a packet, in one word: the length of its prefix above what decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruled(u32);

impl Ruled {
    /// No rule did.
    pub const NONE: Self = Self(0);

    const LENGTH_SHIFT: u32 = 24;
    const HEAD: u32 = (1 << Self::LENGTH_SHIFT) - 1;

    /// The rule of a prefix of `length` bits (0 to 128) around the source.
    #[inline(always)]
    pub const fn new(head: Head, length: u32) -> Self {
        Self(length << Self::LENGTH_SHIFT | head.bits() & Self::HEAD)
    }

    /// From [`Ruled::bits`].
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// As a number, 0 where no rule decided.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// What decided.
    #[inline(always)]
    pub const fn head(self) -> Head {
        Head::from_bits(self.0 & Self::HEAD)
    }

    /// The length of its prefix (bits).
    pub const fn length(self) -> u32 {
        self.0 >> Self::LENGTH_SHIFT
    }
}

/// One dropped packet, as it lies in the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// CLOCK_BOOTTIME in nanoseconds.
    pub time_ns: u64,
    /// The first half of an IPv6 source, 0 for IPv4.
    pub high: u64,
    /// The second half, or an IPv4 source.
    pub low: u64,
    /// 4 or 6.
    pub family: u16,
    /// The source port, where the transport has the other; else 0.
    pub source_port: u16,
    /// Index of the interface that it came in by.
    pub interface: u32,
    /// [`Transport::bits`].
    pub transport: u32,
    /// [`Ruled::bits`].
    pub rule: u32,
    /// Number of the [`Reason`].
    pub reason: u32,
    /// 1: it passed, for this is a dry run.
    pub dry_run: u32,
}

impl Event {
    /// Bytes of an event in the ring buffer.
    pub const BYTES: usize = size_of::<Self>();

    /// What is known of a packet before it is decided about.
    #[inline(always)]
    pub const fn of(packet: Packet) -> Self {
        let Packet { source: V6 { high, low }, family, transport } = packet;
        Self {
            time_ns: 0,
            high,
            low,
            family: family as u16,
            source_port: 0,
            interface: 0,
            transport: transport.bits(),
            rule: 0,
            reason: 0,
            dry_run: 0,
        }
    }

    /// As it was written by a program of the same ABI; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u64::from_ne_bytes);
        let half = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes);
        let short = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes);
        Some(Self {
            time_ns: word(offset_of!(Self, time_ns))?,
            high: word(offset_of!(Self, high))?,
            low: word(offset_of!(Self, low))?,
            family: short(offset_of!(Self, family))?,
            source_port: short(offset_of!(Self, source_port))?,
            interface: half(offset_of!(Self, interface))?,
            transport: half(offset_of!(Self, transport))?,
            rule: half(offset_of!(Self, rule))?,
            reason: half(offset_of!(Self, reason))?,
            dry_run: half(offset_of!(Self, dry_run))?,
        })
    }

    /// Whose packet it was.
    pub fn source(&self) -> Source {
        let Self { high, low, .. } = *self;
        if self.family == 4 { Source::V4(low as u32) } else { Source::V6(V6 { high, low }) }
    }

    /// Why it ended.
    pub fn reason(&self) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| *reason as u32 == self.reason)
    }

    /// The rule that decided.
    pub const fn rule(&self) -> Ruled {
        Ruled::from_bits(self.rule)
    }

    /// Its source and destination ports, where they are known.
    pub fn ports(&self) -> Option<(u16, u16)> {
        self.transport().port().map(|port| (self.source_port, port))
    }

    /// What is known of its transport.
    pub const fn transport(&self) -> Transport {
        Transport::from_bits(self.transport)
    }
}

const _: () = assert!(Event::BYTES == 48 && align_of::<Event>() == 8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Action, Origin};
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn a_rule_keeps_its_length_and_what_decided() {
        let head = Head::new(Action::Deny, Origin::Forced, 255, true);
        let rule = Ruled::new(head, 128);
        assert_eq!((rule.length(), rule.head()), (128, head));
        assert_eq!(Ruled::NONE.head().action(), None);
    }

    proptest! {
        #[test]
        fn an_event_survives_the_ring_buffer(
            words: [u64; 3],
            shorts: [u16; 2],
            numbers: [u32; 5],
        ) {
            let [time_ns, high, low] = words;
            let [family, source_port] = shorts;
            let [interface, transport, rule, reason, dry_run] = numbers;
            let bytes: Vec<u8> = words
                .into_iter()
                .flat_map(u64::to_ne_bytes)
                .chain(shorts.into_iter().flat_map(u16::to_ne_bytes))
                .chain(numbers.into_iter().flat_map(u32::to_ne_bytes))
                .collect();
            let event = Event::from_bytes(&bytes).unwrap();
            prop_assert_eq!(event, Event {
                time_ns, high, low, family, source_port, interface, transport,
                rule, reason, dry_run,
            });
            // Whatever is in it, it is read without a panic.
            let _ = (event.source(), event.reason(), event.rule().head(), event.ports());
            prop_assert_eq!(Event::from_bytes(&bytes[1..]), None);
        }
    }
}
