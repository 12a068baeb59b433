//! A list as bytes: in the state directory, and on its way over the admin socket. Read back whole or not at all.
//!
//! ```text
//! one line of JSON: the header, with how many words of each kind follow
//! IPv4 entries, IPv6 entries, notes: little-endian words, as they lie in memory; the highest bit of the length of a
//! reason says whether the entries with this note reset
//! the reasons: UTF-8
//! CRC-32 of all that
//! ```

use std::io::{self, Read, Write};
use std::sync::Arc;

use gateway_common::rule::Action;
use gateway_common::table::{TagV4, TagV6};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::entries::{Entries, EntryV6, NOTES_MAX, Note};
use super::list::Kind;
use crate::base::time::UtcMillis;

/// Version 1 knew of no resets.
const VERSION: u32 = 2;
const HEADER_MAX_BYTES: usize = 64 * 1024;
/// Written at once.
const PIECE_BYTES: usize = 64 * 1024;
const WORD: usize = size_of::<u64>();
const CHECKSUM: usize = size_of::<u32>();
/// No reason is so long (see `REASONS_MAX_BYTES`).
const RESETS: u32 = 1 << 31;

/// Why bytes are no list.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// The first line.
    #[error("its header cannot be read: {0}")]
    Header(String),
    /// Written by a later version.
    #[error("it has version {0} and this gateway reads {VERSION}")]
    Version(u32),
    /// Something is missing, or too much.
    #[error(
        "it has {found} bytes behind its header instead of {expected}: it was not written to its end"
    )]
    Length {
        /// Bytes that the header announces.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// Some byte is not what was written.
    #[error("its checksum is wrong: it was damaged")]
    Checksum,
    /// The checksum is right, and still.
    #[error("its {0}")]
    Content(&'static str),
}

/// All that is known of a list besides its entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    version: u32,
    /// Its name.
    pub name: String,
    /// What is done with the packets of its prefixes.
    pub action: ActionName,
    /// Who keeps it.
    pub kind: Kind,
    /// Where it comes from.
    pub source: String,
    /// Whether it only counts what it would do.
    pub dry_run: bool,
    /// Why, for the entries that do not say so themselves.
    pub reason: String,
    /// When this version of it was read.
    pub created: UtcMillis,
    /// A moment of the boot that is named, by the wall clock.
    pub utc: UtcMillis,
    /// The same moment by the clock of the kernel (unit: nanoseconds).
    pub boot_ns: u64,
    /// The boot in which that means anything.
    pub boot: String,
    /// When this version comes back, if it was replaced by one that waits to be confirmed.
    #[serde(default)]
    pub deadline: Option<UtcMillis>,
    /// When it was replaced by that one. Earlier gateways said that under `created`.
    #[serde(default)]
    pub replaced: Option<UtcMillis>,
    v4: u64,
    v6: u64,
    notes: u64,
    reasons_bytes: u64,
}

/// `allow` or `deny`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum ActionName {
    Allow,
    Deny,
}

impl ActionName {
    /// The name in listings.
    pub fn name(self) -> &'static str {
        Action::from(self).name()
    }
}

impl From<ActionName> for Action {
    fn from(name: ActionName) -> Self {
        match name {
            ActionName::Allow => Self::Allow,
            ActionName::Deny => Self::Deny,
        }
    }
}

impl Malformed {
    fn endless() -> Self {
        Self::Header("it does not end".to_owned())
    }
}

impl Header {
    /// Bytes that follow it.
    fn rest_bytes(&self) -> Option<u64> {
        let words = [(self.v4, WORD), (self.v6, 3 * WORD), (self.notes, 2 * WORD)];
        let all = words.into_iter().chain([(self.reasons_bytes, 1), (1, CHECKSUM)]);
        let mut bytes = all.map(|(count, bytes)| count.checked_mul(bytes as u64));
        bytes.try_fold(0u64, |sum, bytes| sum.checked_add(bytes?))
    }

    /// The header of a list that was not read in any boot yet.
    pub fn new(name: &str, action: ActionName, kind: Kind, source: &str) -> Self {
        Self {
            version: VERSION,
            name: name.to_owned(),
            action,
            kind,
            source: source.to_owned(),
            dry_run: false,
            reason: String::new(),
            created: UtcMillis(0),
            utc: UtcMillis(0),
            boot_ns: 0,
            boot: String::new(),
            deadline: None,
            replaced: None,
            v4: 0,
            v6: 0,
            notes: 0,
            reasons_bytes: 0,
        }
    }
}

/// Writes the bytes of a list.
pub fn write(header: &Header, entries: &Arc<Entries>, mut to: impl Write) -> io::Result<()> {
    Pieces::new(header, Arc::clone(entries)).try_for_each(|piece| to.write_all(&piece))
}

/// The bytes of a list, never more than a small part of them in memory.
pub struct Pieces {
    entries: Arc<Entries>,
    /// The header, until it is taken.
    begun: Vec<u8>,
    /// IPv4 entries, IPv6 entries, notes, and bytes of reasons that were taken.
    taken: [usize; 4],
    checksum: crc32fast::Hasher,
    left_bytes: u64,
}

impl Pieces {
    /// Of a list.
    pub fn new(header: &Header, entries: Arc<Entries>) -> Self {
        let header = Header {
            version: VERSION,
            v4: entries.v4.len() as u64,
            v6: entries.v6.len() as u64,
            notes: entries.notes.len() as u64,
            reasons_bytes: entries.reasons.len() as u64,
            ..header.clone()
        };
        // Text, numbers and names have no reason to fail.
        let mut begun = serde_json::to_vec(&header).unwrap_or_default();
        begun.push(b'\n');
        let left_bytes = header.rest_bytes().unwrap_or(0) + begun.len() as u64;
        let checksum = crc32fast::Hasher::new();
        Self { entries, begun, taken: [0; 4], checksum, left_bytes }
    }

    /// Bytes that are still to come.
    pub fn left_bytes(&self) -> u64 {
        self.left_bytes
    }
}

impl Iterator for Pieces {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.left_bytes == 0 {
            return None;
        }
        let mut piece = std::mem::take(&mut self.begun);
        let Entries { v4, v6, notes, reasons } = &*self.entries;
        let [taken_v4, taken_v6, taken_notes, taken_reasons] = &mut self.taken;
        let v6_of = |one: &EntryV6| bytes_of::<{ 3 * WORD }>(&[one.high, one.low, one.meta]);
        let note_of = |note: &Note| {
            let length = note.reason_bytes | if note.resets { RESETS } else { 0 };
            let reason = u64::from(note.reason_at) << 32 | u64::from(length);
            bytes_of::<{ 2 * WORD }>(&[note.until_ms, reason])
        };
        let has_words = fill(&mut piece, v4, taken_v4, |word| word.to_le_bytes())
            && fill(&mut piece, v6, taken_v6, v6_of)
            && fill(&mut piece, notes, taken_notes, note_of);
        if has_words {
            fill(&mut piece, reasons.as_bytes(), taken_reasons, |byte| [*byte]);
        }
        self.checksum.update(&piece);
        self.left_bytes -= piece.len() as u64;
        if self.left_bytes == CHECKSUM as u64 {
            piece.extend_from_slice(&self.checksum.clone().finalize().to_le_bytes());
            self.left_bytes = 0;
        }
        Some(piece)
    }
}

/// Puts as many into a piece as it has room for. Answers whether there are no more.
fn fill<T, const N: usize>(
    piece: &mut Vec<u8>,
    all: &[T],
    taken: &mut usize,
    bytes: impl Fn(&T) -> [u8; N],
) -> bool {
    let room = PIECE_BYTES.saturating_sub(piece.len()) / N;
    let rest = all.get(*taken..).unwrap_or_default();
    let some = rest.get(..room).unwrap_or(rest);
    *taken += some.len();
    piece.reserve_exact(some.len() * N);
    some.iter().for_each(|one| piece.extend_from_slice(&bytes(one)));
    *taken == all.len()
}

fn bytes_of<const N: usize>(words: &[u64]) -> [u8; N] {
    let mut bytes = [0; N];
    for (place, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
    bytes
}

/// Reads the list of so many bytes.
pub fn read(mut from: impl Read, length: u64) -> io::Result<Result<(Header, Entries), Malformed>> {
    let mut decoder = Decoder::new(length);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = match from.read(&mut piece) {
            Ok(0) => return Ok(decoder.finish()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if let Err(malformed) = decoder.push(piece.get(..count).unwrap_or_default()) {
            return Ok(Err(malformed));
        }
    }
}

/// Makes a list of its bytes while they come.
pub struct Decoder {
    /// Of all of it.
    length: u64,
    header: Option<Header>,
    entries: Entries,
    reasons: Vec<u8>,
    checksum: crc32fast::Hasher,
    /// What has come and is a part of something.
    part: Vec<u8>,
}

impl Decoder {
    /// Of a list of so many bytes. It takes no more memory than those, whatever they say.
    pub fn new(length: u64) -> Self {
        Self {
            length,
            header: None,
            entries: Entries::default(),
            reasons: Vec::new(),
            checksum: crc32fast::Hasher::new(),
            part: Vec::new(),
        }
    }

    /// Takes the next bytes, a small part of the whole at a time.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        self.part.extend_from_slice(bytes);
        if self.header.is_none() && !self.begin()? {
            return Ok(());
        }
        let Some(header) = &self.header else { return Ok(()) };
        let Entries { v4, v6, notes, .. } = &mut self.entries;
        let mut rest = self.part.as_slice();
        let v6_of = |[high, low, meta]: [u64; 3]| EntryV6 { high, low, meta };
        let note_of = |[until_ms, reason]: [u64; 2]| Note {
            until_ms,
            reason_at: (reason >> 32) as u32,
            reason_bytes: reason as u32 & !RESETS,
            resets: reason as u32 & RESETS != 0,
        };
        let has_words = words(&mut rest, v4, header.v4, |[word]| word)
            && words(&mut rest, v6, header.v6, v6_of)
            && words(&mut rest, notes, header.notes, note_of);
        if has_words {
            let missing = header.reasons_bytes as usize - self.reasons.len();
            let (some, after) = rest.split_at_checked(missing).unwrap_or((rest, &[]));
            self.reasons.extend_from_slice(some);
            rest = after;
        }
        let taken = self.part.len() - rest.len();
        self.checksum.update(self.part.get(..taken).unwrap_or_default());
        self.part.drain(..taken);
        Ok(())
    }

    /// Reads the header. Answers whether it is all there.
    fn begin(&mut self) -> Result<bool, Malformed> {
        let end = self.part.iter().take(HEADER_MAX_BYTES).position(|byte| *byte == b'\n');
        let Some(end) = end else {
            let is_too_long = self.part.len() >= HEADER_MAX_BYTES;
            return if is_too_long { Err(Malformed::endless()) } else { Ok(false) };
        };
        let line: Vec<u8> = self.part.drain(..=end).collect();
        let header: Header =
            serde_json::from_slice(&line).map_err(|error| Malformed::Header(error.to_string()))?;
        if header.version > VERSION {
            return Err(Malformed::Version(header.version));
        }
        let found = self.length.saturating_sub(line.len() as u64);
        let expected = header.rest_bytes();
        if expected != Some(found) {
            return Err(Malformed::Length { expected: expected.unwrap_or(u64::MAX), found });
        }
        self.checksum.update(&line);
        // The lengths add up to what was announced.
        self.entries.v4.reserve_exact(header.v4 as usize);
        self.entries.v6.reserve_exact(header.v6 as usize);
        self.entries.notes.reserve_exact(header.notes as usize);
        self.reasons.reserve_exact(header.reasons_bytes as usize);
        self.header = Some(header);
        Ok(true)
    }

    /// The list, when all has come.
    pub fn finish(self) -> Result<(Header, Entries), Malformed> {
        let Self { header, mut entries, reasons, checksum, part, .. } = self;
        let header = header.ok_or_else(Malformed::endless)?;
        let expected = header.rest_bytes().unwrap_or(u64::MAX);
        let Entries { v4, v6, notes, .. } = &entries;
        let lengths = [size_of_val(&**v4), 3 * WORD * v6.len(), 2 * WORD * notes.len()];
        let found = lengths.iter().sum::<usize>() + reasons.len() + part.len();
        if expected != found as u64 {
            return Err(Malformed::Length { expected, found: found as u64 });
        }
        if checksum.finalize().to_le_bytes().as_slice() != part {
            return Err(Malformed::Checksum);
        }
        let reasons = String::from_utf8(reasons);
        entries.reasons = reasons.map_err(|_| Malformed::Content("reasons are no text"))?;
        check(&entries)?;
        Ok((header, entries))
    }
}

/// Takes whole groups of words until there are as many as there are to be. Answers whether there are.
fn words<T, const N: usize>(
    bytes: &mut &[u8],
    to: &mut Vec<T>,
    count: u64,
    of: impl Fn([u64; N]) -> T,
) -> bool {
    let missing = count as usize - to.len();
    let (words, _) = bytes.as_chunks::<WORD>();
    let (groups, _) = words.as_chunks::<N>();
    let groups = groups.get(..missing).unwrap_or(groups);
    to.extend(groups.iter().map(|group| of(group.map(u64::from_le_bytes))));
    *bytes = bytes.get(groups.len() * N * WORD..).unwrap_or_default();
    to.len() as u64 == count
}

/// Refuses what no list has, whoever wrote it.
fn check(entries: &Entries) -> Result<(), Malformed> {
    let fits = |fits: bool, what| if fits { Ok(()) } else { Err(Malformed::Content(what)) };
    let Entries { v4, v6, notes, reasons } = entries;
    fits(notes.len() <= NOTES_MAX, "notes are too many")?;
    let known = |note: u64| note as usize <= notes.len();
    let whole_v4 = |word: &u64| {
        let tag = TagV4::of(*word);
        tag.length() <= 32 && TagV4::new(tag.address(), tag.length()) == tag
    };
    fits(v4.iter().all(whole_v4), "IPv4 entries are no prefixes")?;
    fits(v4.is_sorted_by(|a, b| TagV4::of(*a) < TagV4::of(*b)), "IPv4 entries are not in order")?;
    fits(v4.iter().all(|word| known(Entries::note_of(*word))), "IPv4 entries lack their notes")?;
    let whole_v6 = |entry: &EntryV6| {
        let TagV6 { address, length } = entry.tag();
        length <= 128 && address.masked(length) == address && entry.meta >> 32 == 0
    };
    fits(v6.iter().all(whole_v6), "IPv6 entries are no prefixes")?;
    fits(v6.is_sorted_by(|a, b| a.key() < b.key()), "IPv6 entries are not in order")?;
    fits(
        v6.iter().all(|entry| known(Entries::note_of(entry.meta))),
        "IPv6 entries lack their notes",
    )?;
    let has_reason = |note: &Note| {
        let start = note.reason_at as usize;
        reasons.get(start..start + note.reason_bytes as usize).is_some()
    };
    fits(notes.iter().all(has_reason), "notes lack their reasons")
}

#[cfg(test)]
mod tests {
    use super::super::entries::{Builder, Entry};
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header::new("drop", ActionName::Deny, Kind::Import, "a file")
    }

    fn encode(header: &Header, entries: &Entries) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut pieces = Pieces::new(header, Arc::new(entries.clone()));
        let announced = pieces.left_bytes();
        pieces.by_ref().for_each(|piece| bytes.extend(piece));
        assert_eq!((bytes.len() as u64, pieces.left_bytes()), (announced, 0));
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<(Header, Entries), Malformed> {
        read(bytes, bytes.len() as u64).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            nets in proptest::collection::vec(
                (any::<std::net::IpAddr>(), 0u8..=128, 0u64..3, "[a-c]{0,2}", any::<bool>()), 0..40,
            ),
            damage: proptest::sample::Index,
            piece in 1usize..50,
        ) {
            let mut builder = Builder::default();
            for (address, length, until, reason, resets) in nets {
                let length = if address.is_ipv4() { length % 33 } else { length };
                let prefix = ipnet::IpNet::new(address, length).unwrap().trunc();
                let until = (until > 0).then_some(UtcMillis(until));
                builder.add(Entry { prefix, until, reason: &reason, resets }).unwrap();
            }
            let entries = builder.build();
            let bytes = encode(&header(), &entries);
            let (read, back) = decode(&bytes).unwrap();
            prop_assert_eq!(&read.name, "drop");
            prop_assert_eq!(&back, &entries);
            let mut decoder = Decoder::new(bytes.len() as u64);
            bytes.chunks(piece).try_for_each(|piece| decoder.push(piece)).unwrap();
            prop_assert_eq!(decoder.finish().unwrap().1, entries);
            let mut damaged = bytes.clone();
            let at = damage.index(bytes.len());
            damaged[at] ^= 0x10;
            prop_assert!(decode(&damaged).is_err());
            prop_assert!(decode(&bytes[..at]).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, v4: u64, reasons: u64) {
            drop(decode(&bytes));
            let claims = Header { v4, reasons_bytes: reasons, ..header() };
            let mut line = serde_json::to_vec(&claims).unwrap();
            line.push(b'\n');
            line.extend(&bytes);
            drop(decode(&line));
        }
    }

    #[test]
    fn what_takes_many_pieces_is_read_again() {
        let mut builder = Builder::default();
        for index in 0..20_000u32 {
            let reason = format!("reason {index}");
            let v4 = std::net::Ipv4Addr::from(0x0b00_0000 + index);
            let v6 = std::net::Ipv6Addr::from_bits(u128::from(index) << 64 | 1 << 125);
            builder.push(ipnet::IpNet::from(std::net::IpAddr::from(v4)), None, &reason).unwrap();
            builder.push(ipnet::IpNet::from(std::net::IpAddr::from(v6)), None, "").unwrap();
        }
        let entries = builder.build();
        let bytes = encode(&header(), &entries);
        assert!(Pieces::new(&header(), Arc::new(entries.clone())).count() > 10);
        assert_eq!(decode(&bytes).unwrap().1, entries);
        let mut long = bytes.clone();
        long.push(0);
        assert!(matches!(decode(&long), Err(Malformed::Length { .. })));
    }

    #[test]
    fn what_no_list_has_is_refused_though_its_checksum_is_right() {
        let bad = |v4: &[u64]| {
            let entries = Entries { v4: v4.to_vec(), ..Entries::default() };
            decode(&encode(&header(), &entries)).unwrap_err().to_string()
        };
        let host = |last: u64| (0xc000_0200 + last) << 32 | 32 << 24;
        assert_eq!(bad(&[0xc000_0201 << 32 | 24 << 24]), "its IPv4 entries are no prefixes");
        assert_eq!(bad(&[host(2), host(1)]), "its IPv4 entries are not in order");
        assert_eq!(bad(&[host(1), host(1)]), "its IPv4 entries are not in order");
        assert_eq!(bad(&[host(1) | 1]), "its IPv4 entries lack their notes");
    }
}
