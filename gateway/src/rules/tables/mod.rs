//! The rules as they are looked up: flat tables with filters before them. They lie in the maps of the XDP program,
//! which the proxy's workers read too, or in memory of this process where there is no kernel door.
//!
//! There is one writer, [`RuleTables`], and any number of [`Reader`]s, which it never keeps waiting.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use gateway_common::layout::{Hits, LENGTH_WORDS_V6};
use gateway_common::source::Source;
use gateway_common::table::{
    BLOCKS_LEN_V4, BucketV4, BucketV6, FILTER_WORDS_V4, Head, NETWORK_WORDS_V4, SHORT_WORDS_V4,
    Span, TagV4, TagV6, buckets_for,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

use super::classify::Entry;
use crate::base::prefix::display;
use crate::base::time::BootTime;

pub mod filters;
pub mod mapping;
pub mod table;

use filters::{BLOCK_WORDS, FiltersV4, FiltersV6, NetworksV6};
use mapping::Mapping;
use table::{Cells, Family, Held, NoRoom, Table, V4Cells, V6Cells};

/// Why rules were not written. Nothing was changed, or what was is said.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RoomError {
    /// More rules than fit. Nothing was changed.
    #[error(
        "{wanted} {family} rules do not fit into {table}, which has room for {capacity}, protected addresses \
         included: raise kernel.max_rules"
    )]
    Full {
        /// IPv4 or IPv6.
        family: &'static str,
        /// The table of that family.
        table: Named,
        /// Rules that there would be.
        wanted: usize,
        /// Rules that fit.
        capacity: u32,
    },
    /// The rules before it crowd the place where this one would have to lie.
    #[error(
        "{} finds no room in {table}, which has some for {capacity} rules, among those that share its buckets: \
         raise kernel.max_rules",
        display(prefix)
    )]
    Crowded {
        /// Whose rule.
        prefix: IpNet,
        /// The table of its family.
        table: Named,
        /// Rules that fit.
        capacity: u32,
    },
}

/// A table as people find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// A map of the kernel, by its name.
    Map(&'static str),
    /// Memory of this process, by its family.
    Own(&'static str),
}

impl fmt::Display for Named {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(name) => write!(formatter, "the map {name}"),
            Self::Own(family) => write!(formatter, "the {family} table of user space"),
        }
    }
}

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// Bits of the IPv6 filter for so many rules: one in eight that is set makes a false look-up as rare.
pub fn filter_bits_for(rules: u32) -> u32 {
    let bits = rules.saturating_mul(8).max(1 << 16);
    bits.checked_next_power_of_two().unwrap_or(1 << 31)
}

/// What new tables are hashed with: something that nobody can guess, because whoever is banned chooses the addresses.
pub fn random_seed() -> u64 {
    RandomState::new().hash_one(0)
}

/// Knows which IPv4 networks have rules.
pub trait Networks {
    /// Those with an address from `first` to `last`.
    fn within(&self, first: u32, last: u32) -> impl Iterator<Item = TagV4>;
}

impl Networks for BTreeSet<TagV4> {
    fn within(&self, first: u32, last: u32) -> impl Iterator<Item = TagV4> {
        // Tags are ordered by address and then by length, which must not mask the address here.
        let start = TagV4::of(u64::from(first) << 32);
        self.range(start..).copied().take_while(move |tag| tag.address() <= last)
    }
}

/// The memory that the tables lie in.
pub struct Memory {
    /// Buckets of either family.
    pub tables: [Mapping; 2],
    /// Which /16 networks IPv4 rules touch, which /22 networks long ones do, which short ones there are, and what is
    /// known of each block.
    pub filters_v4: [Mapping; 4],
    /// Which networks long IPv6 rules lie in, and which lengths there are.
    pub filters_v6: [Mapping; 2],
    /// What all of it is hashed with.
    pub seed: u64,
    /// What the tables are called.
    pub names: [Named; 2],
}

impl Memory {
    /// Of this process, with room for `rules` of each family.
    pub fn own(rules: u32) -> io::Result<Self> {
        let words = |count: u32| Mapping::anonymous(count as usize * size_of::<u64>());
        let table = |bytes: usize| Mapping::anonymous(buckets_for(rules) as usize * bytes);
        Ok(Self {
            tables: [table(size_of::<BucketV4>())?, table(size_of::<BucketV6>())?],
            filters_v4: [
                words(NETWORK_WORDS_V4)?,
                words(FILTER_WORDS_V4)?,
                words(SHORT_WORDS_V4)?,
                words(BLOCKS_LEN_V4 * BLOCK_WORDS)?,
            ],
            filters_v6: [words(filter_bits_for(rules) / 64)?, words(LENGTH_WORDS_V6)?],
            seed: random_seed(),
            names: FAMILIES.map(Named::Own),
        })
    }
}

/// The tables of both families with their only writer.
pub struct RuleTables {
    v4: Table<V4Cells>,
    v6: Table<V6Cells>,
    filters_v4: Arc<FiltersV4>,
    filters_v6: FiltersV6,
    names: [Named; 2],
    /// Prefixes of one family that may have rules.
    capacity: u32,
}

/// What a prefix is to have.
pub type Pair = ((Head, Span), Option<(Head, Span)>);

impl RuleTables {
    /// The tables in `memory`, with the rules that they hold.
    pub fn open(memory: Memory, capacity: u32) -> Self {
        let Memory { tables: [v4, v6], filters_v4, filters_v6, seed, names } = memory;
        let mask = |table: &Mapping, bucket: usize| {
            u32::try_from((table.words().len() * size_of::<u64>() / bucket).saturating_sub(1))
                .unwrap_or(u32::MAX)
        };
        let masks = (mask(&v4, size_of::<BucketV4>()), mask(&v6, size_of::<BucketV6>()));
        let [networks_v6, lengths] = filters_v6;
        let mut tables = Self {
            v4: Table::new(Cells::new(v4, seed, masks.0)),
            v6: Table::new(Cells::new(v6, seed, masks.1)),
            filters_v4: Arc::new(FiltersV4::new(filters_v4)),
            filters_v6: FiltersV6::new(NetworksV6::new(networks_v6, lengths, seed)),
            names,
            capacity,
        };
        let cells = Arc::clone(tables.v4.cells());
        cells.iter().for_each(|held| tables.filters_v4.add(held.tag));
        let cells = Arc::clone(tables.v6.cells());
        // A second without a first was left by a process that was killed between the two.
        let counts =
            |held: &Held<TagV6>| !held.head.is_second() || cells.find(held.tag, false).is_none();
        cells.iter().filter(counts).for_each(|held| tables.filters_v6.add(held.tag));
        tables
    }

    /// Somebody who looks rules up.
    pub fn reader(&self) -> Reader {
        Reader {
            v4: Arc::clone(self.v4.cells()),
            v6: Arc::clone(self.v6.cells()),
            filters_v4: Arc::clone(&self.filters_v4),
            filters_v6: Arc::clone(self.filters_v6.shared()),
        }
    }

    /// How many prefixes of IPv4 and of IPv6 have rules.
    pub fn prefixes(&self) -> [usize; 2] {
        [self.v4.prefixes(), self.v6.prefixes()]
    }

    /// Prefixes of one family that may have rules.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Refuses more prefixes of one family than there may be.
    pub fn check(&self, wanted: [usize; 2]) -> Result<(), RoomError> {
        let capacity = self.capacity;
        let tables = FAMILIES.into_iter().zip(self.names).zip(wanted);
        let mut over = tables.filter(|(_, wanted)| *wanted > capacity as usize);
        over.next().map_or(Ok(()), |((family, table), wanted)| {
            Err(RoomError::Full { family, table, wanted, capacity })
        })
    }

    /// Whether a prefix has rules.
    pub fn has(&self, prefix: &IpNet) -> bool {
        [false, true].into_iter().any(|second| self.held(prefix, second).is_some())
    }

    /// Every prefix that has rules.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.v4.cells().iter().map(|held| prefix_of_v4(held.tag));
        v4.chain(self.v6.cells().iter().map(|held| prefix_of_v6(held.tag)))
    }

    /// The first or the second rule of a prefix.
    pub fn held(&self, prefix: &IpNet, second: bool) -> Option<(Head, Span)> {
        match tag(prefix) {
            Tag::V4(tag) => self.v4.cells().find(tag, second).map(|held| (held.head, held.span)),
            Tag::V6(tag) => self.v6.cells().find(tag, second).map(|held| (held.head, held.span)),
        }
    }

    /// What the first or the second rule of a prefix has met.
    pub fn hits(&self, prefix: &IpNet, second: bool) -> Hits {
        match tag(prefix) {
            Tag::V4(tag) => self.v4.cells().hits(tag, second),
            Tag::V6(tag) => self.v6.cells().hits(tag, second),
        }
    }

    /// Takes over what the same rules have met in the tables that these took over from.
    pub fn inherit(&self, before: &Self) {
        inherit(self.v4.cells(), before.v4.cells());
        inherit(self.v6.cells(), before.v6.cells());
    }

    /// Whether whoever had them inherit was killed at it.
    pub fn is_inheriting(&self) -> bool {
        is_inheriting(self.v4.cells()) || is_inheriting(self.v6.cells())
    }

    /// Takes out of the tables `from` what the same rules took over by [`Self::inherit`], where whoever did that was
    /// killed at it.
    pub fn end_inherit(&self, from: &Self) {
        end_inherit(self.v4.cells(), from.v4.cells());
        end_inherit(self.v6.cells(), from.v6.cells());
    }

    /// Writes the rules of a prefix. If they find no room, a new one is not begun, but the filters go on saying that
    /// there may be some until it is taken out.
    pub fn put(&mut self, prefix: IpNet, rules: Pair) -> Result<(), RoomError> {
        let is_new = !self.has(&prefix);
        let written = match tag(&prefix) {
            Tag::V4(tag) => {
                if is_new {
                    self.filters_v4.add(tag);
                }
                put_pair(&mut self.v4, tag, rules)
            }
            Tag::V6(tag) => {
                if is_new {
                    self.filters_v6.add(tag);
                }
                put_pair(&mut self.v6, tag, rules)
            }
        };
        written.map_err(|NoRoom| {
            match tag(&prefix) {
                Tag::V4(tag) if is_new => [false, true].map(|second| self.v4.remove(tag, second)),
                Tag::V6(tag) if is_new => {
                    self.filters_v6.remove(tag);
                    [false, true].map(|second| self.v6.remove(tag, second))
                }
                _ => [false; 2],
            };
            let [v4, v6] = self.names;
            let table = if prefix.addr().is_ipv4() { v4 } else { v6 };
            RoomError::Crowded { prefix, table, capacity: self.capacity }
        })
    }

    /// Takes the rules of a prefix out. `rest` knows the networks that have rules without it; where nobody does, the
    /// filters go on saying that there may be some.
    pub fn remove(&mut self, prefix: IpNet, rest: Option<&impl Networks>) {
        match tag(&prefix) {
            Tag::V4(tag) => {
                self.v4.remove(tag, false);
                self.v4.remove(tag, true);
                let Some(rest) = rest else { return };
                let has = |length| self.v4.cells().find(TagV4::new(tag.address(), length), false);
                let shorter = self.filters_v4.long_lengths_of_block(tag.address());
                let mut shorter = shorter.take_while(|length| *length < tag.length());
                let covers = shorter.any(|length| has(length).is_some());
                self.filters_v4.remove(tag, covers, |first, last| rest.within(first, last));
            }
            Tag::V6(tag) => {
                let first = self.v6.remove(tag, false);
                if self.v6.remove(tag, true) || first {
                    self.filters_v6.remove(tag);
                }
            }
        }
    }
}

/// Looks rules up while they are written.
#[derive(Clone)]
pub struct Reader {
    v4: Arc<Cells<V4Cells>>,
    v6: Arc<Cells<V6Cells>>,
    filters_v4: Arc<FiltersV4>,
    filters_v6: Arc<NetworksV6>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Reader")
    }
}

impl Reader {
    /// The most specific rule that holds for `address` now.
    pub fn find(&self, address: IpAddr, now: BootTime) -> Option<(IpNet, Entry)> {
        match Source::from(address.to_canonical()) {
            Source::V4(bits) => bits_of(self.filters_v4.lengths(bits)).find_map(|position| {
                let tag = TagV4::new(bits, 32u32.saturating_sub(position));
                let (head, span) = self.v4.live(tag, now.0)?;
                Some((prefix_of_v4(tag), Entry::of(head, span)?))
            }),
            Source::V6(bits) => {
                let words = (0u32..).zip(self.filters_v6.lengths());
                let mut positions = words
                    .flat_map(|(word, lengths)| bits_of(lengths).map(move |bit| 64 * word + bit));
                positions.find_map(|position| {
                    let tag = TagV6::new(bits, 128u32.saturating_sub(position));
                    if !self.filters_v6.may_have(bits.high, tag.length) {
                        return None;
                    }
                    let (head, span) = self.v6.live(tag, now.0)?;
                    Some((prefix_of_v6(tag), Entry::of(head, span)?))
                })
            }
        }
    }
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

/// Gives each rule what the same one met elsewhere.
fn inherit<F: Family>(cells: &Cells<F>, before: &Cells<F>) {
    for old in before.iter() {
        if let Some(new) = same_rule(cells, &old) {
            cells.take_hits(old.tag, new.head.is_second(), (before, old.head.is_second()));
        }
    }
}

fn is_inheriting<F: Family>(cells: &Cells<F>) -> bool {
    cells.iter().any(|held| cells.is_taking(held.tag, held.head.is_second()))
}

fn end_inherit<F: Family>(cells: &Cells<F>, before: &Cells<F>) {
    for new in cells.iter().filter(|held| cells.is_taking(held.tag, held.head.is_second())) {
        if let Some(old) = same_rule(before, &new) {
            cells.take_hits(new.tag, new.head.is_second(), (before, old.head.is_second()));
        }
    }
}

/// The rule of the same prefix that does the same and has the same origin.
fn same_rule<F: Family>(cells: &Cells<F>, of: &Held<F::Tag>) -> Option<Held<F::Tag>> {
    let there = [false, true].into_iter().filter_map(|second| cells.find(of.tag, second));
    let does = |held: &Held<F::Tag>| (held.head.action(), held.head.origin());
    there.into_iter().find(|held| does(held) == does(of))
}

/// Writes the rules of a prefix over those that it has.
fn put_pair<F: Family>(table: &mut Table<F>, tag: F::Tag, rules: Pair) -> Result<(), NoRoom> {
    let (first, second) = rules;
    // The second must not decide before the first does, nor be missing when that ends, should this process be killed.
    let held = table.cells().find(tag, false);
    let is_outlived = held.is_some_and(|held| first.1.until <= held.span.until);
    if is_outlived && let Some((head, span)) = second {
        table.put(tag, head, span)?;
    }
    table.put(tag, first.0, first.1)?;
    match second {
        Some((head, span)) => table.put(tag, head, span),
        None => {
            table.remove(tag, true);
            Ok(())
        }
    }
}

/// A prefix in the terms of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// IPv4.
    V4(TagV4),
    /// IPv6.
    V6(TagV6),
}

/// The tag of a prefix.
pub fn tag(prefix: &IpNet) -> Tag {
    let length = u32::from(prefix.prefix_len());
    match Source::from(prefix.addr()) {
        Source::V4(address) => Tag::V4(TagV4::new(address, length)),
        Source::V6(address) => Tag::V6(TagV6::new(address, length)),
    }
}

/// The tag of an IPv4 prefix.
pub fn tag_v4(prefix: &IpNet) -> Option<TagV4> {
    match tag(prefix) {
        Tag::V4(tag) => Some(tag),
        Tag::V6(_) => None,
    }
}

/// The prefix of a tag.
pub fn prefix_of_v4(tag: TagV4) -> IpNet {
    let length = u8::try_from(tag.length()).unwrap_or(u8::MAX);
    let address = std::net::Ipv4Addr::from(tag.address());
    IpNet::V4(Ipv4Net::new(address, length).unwrap_or_else(|_| Ipv4Net::from(address)))
}

/// The prefix of a tag.
pub fn prefix_of_v6(tag: TagV6) -> IpNet {
    let length = u8::try_from(tag.length).unwrap_or(u8::MAX);
    let bits = u128::from(tag.address.high) << 64 | u128::from(tag.address.low);
    let address = std::net::Ipv6Addr::from(bits);
    IpNet::V6(Ipv6Net::new(address, length).unwrap_or_else(|_| Ipv6Net::from(address)))
}
