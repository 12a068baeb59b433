//! The entries of a list: an IPv4 one takes 8 bytes, an IPv6 one 24; what only some of them have, an end or a reason of
//! their own, lies beside.

use std::collections::HashMap;
use std::thread;

use gateway_common::source::{Source, V6};
use gateway_common::table::{TagV4, TagV6};
use ipnet::IpNet;
use thiserror::Error;

use super::tables::{Tag, prefix_of_v4, prefix_of_v6, tag};
use crate::base::time::UtcMillis;

/// Ends and reasons that the entries of one list can have.
pub const NOTES_MAX: usize = (1 << NOTE_BITS) - 1;
/// Length of the text of all reasons of one list.
pub const REASONS_MAX_BYTES: usize = 256 * 1024 * 1024;
/// More are sorted by two threads.
const ALONE_MAX: usize = 10_000;
const NOTE_BITS: u32 = 24;
const NOTE: u64 = (1 << NOTE_BITS) - 1;

/// More different reasons and ends than a list can have.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "too many entries have a reason or an end of their own: {NOTES_MAX} different ones fit into one list, \
     {} MiB of reasons, which no setting changes: split it",
    REASONS_MAX_BYTES / 1024 / 1024
)]
pub struct TooManyNotes;

/// The entries of a list: sorted, each prefix once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// The prefix, as a cell's head has it, and below it the number of the note.
    pub(crate) v4: Vec<u64>,
    pub(crate) v6: Vec<EntryV6>,
    /// From number 1 on; 0 is none.
    pub(crate) notes: Vec<Note>,
    /// The reasons, one behind the other.
    pub(crate) reasons: String,
}

/// An IPv6 entry. Ordered by address, then by length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntryV6 {
    pub(crate) high: u64,
    pub(crate) low: u64,
    /// The length, and below it the number of the note.
    pub(crate) meta: u64,
}

/// What an entry has of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Note {
    /// When it ends; 0 for never.
    pub(crate) until_ms: u64,
    /// Where its reason begins.
    pub(crate) reason_at: u32,
    /// How long that is.
    pub(crate) reason_bytes: u32,
    /// See [`Entry::resets`].
    pub(crate) resets: bool,
}

/// An entry as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Whose packets.
    pub prefix: IpNet,
    /// When it ends.
    pub until: Option<UtcMillis>,
    /// Why; empty where the list says it.
    pub reason: &'a str,
    /// Whether new connections are answered with a reset, in a list that denies.
    pub resets: bool,
}

impl Entries {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// How many there are of IPv4 and of IPv6.
    pub fn counts(&self) -> [usize; 2] {
        [self.v4.len(), self.v6.len()]
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// What they take in this process (unit: bytes).
    pub fn memory_bytes(&self) -> usize {
        size_of_val(self.v4.as_slice())
            + size_of_val(self.v6.as_slice())
            + size_of_val(self.notes.as_slice())
            + self.reasons.len()
    }

    /// All of them, IPv4 first, by address and then by length.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.v4
            .iter()
            .map(|word| self.seen_v4(*word))
            .chain(self.v6.iter().map(|e| self.seen_v6(e)))
    }

    /// Those behind a prefix in that order.
    pub fn after(&self, prefix: IpNet) -> impl Iterator<Item = Entry<'_>> {
        let (v4, v6) = match tag(&prefix) {
            Tag::V4(tag) => (self.v4.partition_point(|word| of_v4(*word) <= tag), 0),
            Tag::V6(tag) => {
                let key = key_v6(tag);
                (self.v4.len(), self.v6.partition_point(|entry| entry.key() <= key))
            }
        };
        let v4 = self.v4.get(v4..).unwrap_or_default().iter().map(|word| self.seen_v4(*word));
        let v6 = self.v6.get(v6..).unwrap_or_default().iter();
        v4.chain(v6.map(|entry| self.seen_v6(entry)))
    }

    /// The entry of a prefix.
    pub fn find(&self, prefix: IpNet) -> Option<Entry<'_>> {
        match tag(&prefix) {
            Tag::V4(tag) => {
                let place = self.v4.partition_point(|word| of_v4(*word) < tag);
                let word = self.v4.get(place).filter(|word| of_v4(**word) == tag)?;
                Some(self.seen_v4(*word))
            }
            Tag::V6(tag) => {
                let wanted = key_v6(tag);
                let place = self.v6.partition_point(|entry| entry.key() < wanted);
                let entry = self.v6.get(place).filter(|entry| entry.key() == wanted)?;
                Some(self.seen_v6(entry))
            }
        }
    }

    /// The entries inside of a prefix, that one included.
    pub fn inside(&self, prefix: IpNet) -> impl Iterator<Item = Entry<'_>> {
        let (v4, v6) = match (Source::from(prefix.network()), Source::from(prefix.broadcast())) {
            (Source::V4(first), Source::V4(last)) => (self.slice_v4(first, last), [].as_slice()),
            (Source::V6(first), Source::V6(last)) => ([].as_slice(), self.slice_v6(first, last)),
            _ => ([].as_slice(), [].as_slice()),
        };
        let all = v4.iter().map(|word| self.seen_v4(*word));
        let all = all.chain(v6.iter().map(|entry| self.seen_v6(entry)));
        all.filter(move |entry| entry.prefix.prefix_len() >= prefix.prefix_len())
    }

    /// The prefixes that one of the two has and the other has not, or with another end, or that only one resets; and
    /// whether `other` has them.
    pub fn difference<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (IpNet, bool)> + use<'a> {
        let does_v4 = |entries: &Self, word: &u64| entries.does(*word & NOTE);
        let v4 = Difference::new(&self.v4, &other.v4, |word: &u64| of_v4(*word))
            .filter(move |(_, old, new)| match (old, new) {
                (Some(old), Some(new)) => does_v4(self, old) != does_v4(other, new),
                _ => true,
            })
            .map(|(tag, _, new)| (prefix_of_v4(tag), new.is_some()));
        let does_v6 = |entries: &Self, entry: &EntryV6| entries.does(entry.meta & NOTE);
        let v6 = Difference::new(&self.v6, &other.v6, EntryV6::key)
            .filter(move |(_, old, new)| match (old, new) {
                (Some(old), Some(new)) => does_v6(self, old) != does_v6(other, new),
                _ => true,
            })
            .map(|(key, _, new)| (prefix_of_v6(tag_of(key)), new.is_some()));
        v4.chain(v6)
    }

    /// Those that are kept; notes keep their numbers.
    pub fn retain(&self, keep: impl Fn(&Entry<'_>) -> bool) -> Self {
        Self {
            v4: self.v4.iter().copied().filter(|word| keep(&self.seen_v4(*word))).collect(),
            v6: self.v6.iter().copied().filter(|entry| keep(&self.seen_v6(entry))).collect(),
            notes: self.notes.clone(),
            reasons: self.reasons.clone(),
        }
    }

    /// The IPv4 networks with an address from `first` to `last`.
    pub fn within(&self, first: u32, last: u32) -> impl Iterator<Item = TagV4> {
        self.slice_v4(first, last).iter().map(|word| of_v4(*word))
    }

    fn slice_v4(&self, first: u32, last: u32) -> &[u64] {
        let start = self.v4.partition_point(|word| of_v4(*word).address() < first);
        let rest = self.v4.get(start..).unwrap_or_default();
        leading(rest, |word| of_v4(*word).address() <= last)
    }

    fn slice_v6(&self, first: V6, last: V6) -> &[EntryV6] {
        let address = |entry: &EntryV6| (entry.high, entry.low);
        let start = self.v6.partition_point(|entry| address(entry) < (first.high, first.low));
        let rest = self.v6.get(start..).unwrap_or_default();
        leading(rest, |entry| address(entry) <= (last.high, last.low))
    }

    fn seen_v4(&self, word: u64) -> Entry<'_> {
        self.seen(prefix_of_v4(of_v4(word)), word & NOTE)
    }

    fn seen_v6(&self, entry: &EntryV6) -> Entry<'_> {
        self.seen(prefix_of_v6(tag_of(entry.key())), entry.meta & NOTE)
    }

    fn seen(&self, prefix: IpNet, note: u64) -> Entry<'_> {
        let reason = self.note(note).and_then(|note| {
            let start = note.reason_at as usize;
            self.reasons.get(start..start + note.reason_bytes as usize)
        });
        let (until, resets) = self.does(note);
        Entry { prefix, until, reason: reason.unwrap_or_default(), resets }
    }

    /// Until when an entry with this note holds, and whether it resets.
    fn does(&self, note: u64) -> (Option<UtcMillis>, bool) {
        let Some(note) = self.note(note) else { return (None, false) };
        (Some(note.until_ms).filter(|end| *end != 0).map(UtcMillis), note.resets)
    }

    /// The number of the note of an entry's word.
    pub(crate) fn note_of(word: u64) -> u64 {
        word & NOTE
    }

    fn note(&self, number: u64) -> Option<&Note> {
        self.notes.get((number as usize).checked_sub(1)?)
    }
}

pub(crate) type KeyV6 = (u64, u64, u64);

impl EntryV6 {
    pub(crate) fn key(&self) -> KeyV6 {
        (self.high, self.low, self.meta >> NOTE_BITS)
    }

    pub(crate) fn tag(&self) -> TagV6 {
        let Self { high, low, meta } = *self;
        TagV6 { address: V6 { high, low }, length: (meta >> NOTE_BITS) as u32 }
    }
}

/// Those at the beginning that are inside, all others being behind them. They are few for most that are asked about,
/// so the end is not looked for in all of memory.
fn leading<T>(sorted: &[T], is_inside: impl Fn(&T) -> bool) -> &[T] {
    let mut bound = 1;
    while sorted.get(bound).is_some_and(&is_inside) {
        bound *= 2;
    }
    let near = sorted.get(..bound).unwrap_or(sorted);
    near.get(..near.partition_point(is_inside)).unwrap_or_default()
}

fn of_v4(word: u64) -> TagV4 {
    TagV4::of(word)
}

fn key_v6(tag: TagV6) -> KeyV6 {
    (tag.address.high, tag.address.low, tag.length.into())
}

fn tag_of((high, low, length): KeyV6) -> TagV6 {
    TagV6::new(V6 { high, low }, length as u32)
}

/// Sorts both families, on two processors if there are many.
fn sort(v4: &mut [u64], v6: &mut [EntryV6]) {
    if v4.len() + v6.len() <= ALONE_MAX {
        v4.sort_unstable();
        v6.sort_unstable();
        return;
    }
    let (first_v4, second_v4) = v4.split_at_mut(v4.len() / 2);
    let (first_v6, second_v6) = v6.split_at_mut(v6.len() / 2);
    thread::scope(|scope| {
        scope.spawn(|| {
            first_v4.sort_unstable();
            first_v6.sort_unstable();
        });
        second_v4.sort_unstable();
        second_v6.sort_unstable();
    });
    // The stable sort notices that there are two sorted halves, and merges them.
    thread::scope(|scope| {
        scope.spawn(|| v4.sort());
        v6.sort();
    });
}

/// Two sorted slices side by side: for each key that is in one of them, what either has.
struct Difference<'a, T, F> {
    old: &'a [T],
    new: &'a [T],
    key: F,
}

impl<'a, T, F> Difference<'a, T, F> {
    fn new(old: &'a [T], new: &'a [T], key: F) -> Self {
        Self { old, new, key }
    }
}

impl<'a, T: PartialEq, K: Ord + Copy, F: Fn(&T) -> K> Iterator for Difference<'a, T, F> {
    type Item = (K, Option<&'a T>, Option<&'a T>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = |side: &'a [T]| side.first().map(&self.key);
        let (old, new) = (key(self.old), key(self.new));
        let least = match (old, new) {
            (Some(old), Some(new)) => old.min(new),
            (old, new) => old.or(new)?,
        };
        let take = |side: &mut &'a [T], has: bool| has.then(|| side.split_off_first()).flatten();
        let old = take(&mut self.old, old == Some(least));
        let new = take(&mut self.new, new == Some(least));
        Some((least, old, new))
    }
}

/// Collects the entries of a list in any order.
#[derive(Debug, Default)]
pub struct Builder {
    entries: Entries,
    /// Where a note is, by its end, its reason and whether it resets.
    numbers: HashMap<(u64, Box<str>, bool), u64>,
}

impl Builder {
    /// Adds a prefix with which is done what the list says.
    pub fn push(
        &mut self,
        prefix: IpNet,
        until: Option<UtcMillis>,
        reason: &str,
    ) -> Result<(), TooManyNotes> {
        self.add(Entry { prefix, until, reason, resets: false })
    }

    /// Adds an entry. Of a prefix that comes again the entry that ends last counts, and of those the first.
    pub fn add(&mut self, entry: Entry<'_>) -> Result<(), TooManyNotes> {
        let note = self.note(&entry)?;
        match tag(&entry.prefix) {
            Tag::V4(tag) => {
                let bits = u64::from(tag.address()) << 8 | u64::from(tag.length());
                self.entries.v4.push(bits << NOTE_BITS | note);
            }
            Tag::V6(tag) => {
                let V6 { high, low } = tag.address;
                let meta = u64::from(tag.length) << NOTE_BITS | note;
                self.entries.v6.push(EntryV6 { high, low, meta });
            }
        }
        Ok(())
    }

    /// Adds what another one has collected, as if it came now.
    pub fn append(&mut self, other: Self) -> Result<(), TooManyNotes> {
        let Self { entries, .. } = other;
        let mut numbers = vec![0];
        for number in 1..=entries.notes.len() as u64 {
            // Whose the note is makes no difference.
            numbers.push(self.note(&entries.seen(IpNet::default(), number))?);
        }
        let here = |word: u64| {
            let number = numbers.get((word & NOTE) as usize).copied().unwrap_or_default();
            word & !NOTE | number
        };
        self.entries.v4.extend(entries.v4.iter().map(|word| here(*word)));
        let v6 = entries.v6.iter().map(|entry| EntryV6 { meta: here(entry.meta), ..*entry });
        self.entries.v6.extend(v6);
        Ok(())
    }

    /// The list.
    pub fn build(self) -> Entries {
        let mut entries = self.entries;
        let notes = std::mem::take(&mut entries.notes);
        let end = |note: u64| {
            let note = (note as usize).checked_sub(1).and_then(|place| notes.get(place));
            note.map_or(u64::MAX, |note| if note.until_ms == 0 { u64::MAX } else { note.until_ms })
        };
        if notes.is_empty() {
            sort(&mut entries.v4, &mut entries.v6);
        } else {
            // Whatever ends last comes first among the same, and is the one that stays.
            entries.v4.sort_by_key(|word| (of_v4(*word), u64::MAX - end(*word & NOTE)));
            entries.v6.sort_by_key(|entry| (entry.key(), u64::MAX - end(entry.meta & NOTE)));
        }
        entries.v4.dedup_by_key(|word| of_v4(*word));
        entries.v6.dedup_by_key(|entry| entry.key());
        entries.v4.shrink_to_fit();
        entries.v6.shrink_to_fit();
        entries.reasons.shrink_to_fit();
        Entries { notes, ..entries }
    }

    fn note(&mut self, entry: &Entry<'_>) -> Result<u64, TooManyNotes> {
        let Entry { reason, resets, .. } = *entry;
        let until_ms = entry.until.map_or(0, |until| until.0.max(1));
        if until_ms == 0 && reason.is_empty() && !resets {
            return Ok(0);
        }
        let key = (until_ms, Box::from(reason), resets);
        if let Some(number) = self.numbers.get(&key) {
            return Ok(*number);
        }
        let notes = &mut self.entries.notes;
        let at = self.entries.reasons.len();
        if notes.len() >= NOTES_MAX || at + reason.len() > REASONS_MAX_BYTES {
            return Err(TooManyNotes);
        }
        self.entries.reasons.push_str(reason);
        let place = |bytes: usize| u32::try_from(bytes).map_err(|_| TooManyNotes);
        let (reason_at, reason_bytes) = (place(at)?, place(reason.len())?);
        notes.push(Note { until_ms, reason_at, reason_bytes, resets });
        let number = notes.len() as u64;
        self.numbers.insert(key, number);
        Ok(number)
    }
}
