//! A list as bytes: in the state directory, and on its way over the admin socket. Read back whole or not at all.
//!
//! ```text
//! one line of JSON: the header, with how many words of each kind follow
//! IPv4 entries, IPv6 entries, notes: little-endian words, as they lie in memory; the highest bit of the length of a
//! reason says whether the entries with this note reset
//! the reasons: UTF-8
//! CRC-32 of all that
//! ```

use std::io::{self, Write};

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

impl Header {
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
            v4: 0,
            v6: 0,
            notes: 0,
            reasons_bytes: 0,
        }
    }
}

/// The bytes of a list.
pub fn encode(header: &Header, entries: &Entries) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_MAX_BYTES + entries.memory_bytes());
    // A vector takes whatever is written.
    drop(write(header, entries, &mut bytes));
    bytes
}

/// Writes the bytes of a list, never more than a small part of them in memory.
pub fn write(header: &Header, entries: &Entries, to: impl Write) -> io::Result<()> {
    let header = Header {
        version: VERSION,
        v4: entries.v4.len() as u64,
        v6: entries.v6.len() as u64,
        notes: entries.notes.len() as u64,
        reasons_bytes: entries.reasons.len() as u64,
        ..header.clone()
    };
    let mut piece = serde_json::to_vec(&header)?;
    piece.push(b'\n');
    let mut pieces = Pieces { to, checksum: crc32fast::Hasher::new(), piece };
    pieces.words(entries.v4.iter().map(|entry| [*entry]))?;
    pieces.words(entries.v6.iter().map(|EntryV6 { high, low, meta }| [*high, *low, *meta]))?;
    pieces.words(entries.notes.iter().map(|note| {
        let length = note.reason_bytes | if note.resets { RESETS } else { 0 };
        [note.until_ms, u64::from(note.reason_at) << 32 | u64::from(length)]
    }))?;
    pieces.flush()?;
    pieces.checksum.update(entries.reasons.as_bytes());
    pieces.to.write_all(entries.reasons.as_bytes())?;
    pieces.to.write_all(&pieces.checksum.finalize().to_le_bytes())
}

/// What is written, with its checksum.
struct Pieces<W> {
    to: W,
    checksum: crc32fast::Hasher,
    /// Not yet written.
    piece: Vec<u8>,
}

impl<W: Write> Pieces<W> {
    fn words<const N: usize>(&mut self, groups: impl Iterator<Item = [u64; N]>) -> io::Result<()> {
        for group in groups {
            for word in group {
                self.piece.extend_from_slice(&word.to_le_bytes());
            }
            if self.piece.len() >= PIECE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.checksum.update(&self.piece);
        self.to.write_all(&self.piece)?;
        self.piece.clear();
        Ok(())
    }
}

/// The list of these bytes.
pub fn decode(bytes: &[u8]) -> Result<(Header, Entries), Malformed> {
    let line = bytes.iter().take(HEADER_MAX_BYTES).position(|byte| *byte == b'\n');
    let line = line.ok_or_else(|| Malformed::Header("it does not end".to_owned()))?;
    let (line, rest) = bytes.split_at(line + 1);
    let header: Header =
        serde_json::from_slice(line).map_err(|error| Malformed::Header(error.to_string()))?;
    if header.version > VERSION {
        return Err(Malformed::Version(header.version));
    }
    let found = rest.len() as u64;
    let lengths = [(header.v4, WORD), (header.v6, 3 * WORD), (header.notes, 2 * WORD)];
    let expected = lengths
        .into_iter()
        .chain([(header.reasons_bytes, 1), (1, CHECKSUM)])
        .try_fold(0u64, |sum, (count, bytes)| sum.checked_add(count.checked_mul(bytes as u64)?));
    if expected != Some(found) {
        return Err(Malformed::Length { expected: expected.unwrap_or(u64::MAX), found });
    }
    let content = bytes.len() - CHECKSUM;
    let (content, checksum) = bytes.split_at_checked(content).ok_or(Malformed::Checksum)?;
    if crc32fast::hash(content).to_le_bytes() != checksum {
        return Err(Malformed::Checksum);
    }
    let rest = content.get(line.len()..).unwrap_or_default();
    // The lengths add up to what is there, so each of them fits.
    let (v4, rest) = rest.split_at(header.v4 as usize * WORD);
    let (v6, rest) = rest.split_at(header.v6 as usize * 3 * WORD);
    let (notes, reasons) = rest.split_at(header.notes as usize * 2 * WORD);
    let entries = Entries {
        v4: words(v4).map(|[word]| word).collect(),
        v6: words(v6).map(|[high, low, meta]| EntryV6 { high, low, meta }).collect(),
        notes: words(notes)
            .map(|[until_ms, reason]| Note {
                until_ms,
                reason_at: (reason >> 32) as u32,
                reason_bytes: reason as u32 & !RESETS,
                resets: reason as u32 & RESETS != 0,
            })
            .collect(),
        reasons: String::from_utf8(reasons.to_vec())
            .map_err(|_| Malformed::Content("reasons are no text"))?,
    };
    check(&entries)?;
    Ok((header, entries))
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

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u64; N]> {
    let (words, _) = bytes.as_chunks::<WORD>();
    let (groups, _) = words.as_chunks::<N>();
    groups.iter().map(|group| group.map(u64::from_le_bytes))
}

#[cfg(test)]
mod tests {
    use super::super::entries::{Builder, Entry};
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header::new("drop", ActionName::Deny, Kind::Import, "a file")
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            nets in proptest::collection::vec(
                (any::<std::net::IpAddr>(), 0u8..=128, 0u64..3, "[a-c]{0,2}", any::<bool>()), 0..40,
            ),
            damage: proptest::sample::Index,
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
