//! What the program shares with user space: the maps and the constants, under the names and layouts of
//! `gateway_common::layout`. Nothing outside of this file touches their memory.
#![expect(unsafe_code, reason = "values of maps are raw addresses that several CPUs use at once")]

use core::intrinsics::{AtomicOrdering::Relaxed, atomic_cxchg, atomic_xadd};

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_NOEXIST};
use aya_ebpf::btf_maps::{Array, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use gateway_common::bucket::Bucket;
use gateway_common::event::Event;
use gateway_common::layout::{
    BUCKETS_DEFAULT, COUNTERS_LEN, Counter, EVENTS_BYTES, HOST_LINES, HOST_OWN, Hits,
    InterfaceName, LENGTH_WORDS_V6, Line, ListName, PORT_WORDS, PROFILES_MAX, Profile, SEATS_LEN,
    SHARED_LEN, SLOT_WORDS, SLOTS_LEN, Settings, slot_of,
};
use gateway_common::source::SourceKey;
use gateway_common::table::{
    BLOCKS_LEN_V4, BlockV4, BucketV4, BucketV6, CELLS, FILTER_WORDS_V4, NETWORK_WORDS_V4,
    SHORT_WORDS_V4, TagV4, TagV6, WORDS_V4, WORDS_V6, block_v4, filter_bit_v4, filter_bit_v6,
    long_lengths_v4, network_bit_v4, short_lengths_v4, short_word_v4,
};

/// User space writes these through a mapping. Where the number here is 1 the loader says how many there are.
const MAPPED: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
static TABLE_V4: Array<BucketV4, 1, MAPPED> = Array::new();
#[btf_map]
static TABLE_V6: Array<BucketV6, 1, MAPPED> = Array::new();
#[btf_map]
static NETWORKS_V4: Array<u64, { NETWORK_WORDS_V4 as usize }, MAPPED> = Array::new();
#[btf_map]
static FILTER_V4: Array<u64, { FILTER_WORDS_V4 as usize }, MAPPED> = Array::new();
#[btf_map]
static SHORT_V4: Array<u64, { SHORT_WORDS_V4 as usize }, MAPPED> = Array::new();
#[btf_map]
static BLOCKS_V4: Array<BlockV4, { BLOCKS_LEN_V4 as usize }, MAPPED> = Array::new();
#[btf_map]
static FILTER_V6: Array<u64, 1, MAPPED> = Array::new();
#[btf_map]
static LENGTHS_V6: Array<u64, { LENGTH_WORDS_V6 as usize }, MAPPED> = Array::new();
/// Not read here: it tells the next daemon what [`Settings::seed`] has to be.
#[btf_map]
static SEED: Array<u64, 1, MAPPED> = Array::new();
#[btf_map]
static BUCKETS: LruHashMap<SourceKey, u64, { BUCKETS_DEFAULT as usize }> = LruHashMap::new();
#[btf_map]
static SHARED: Array<u64, { SHARED_LEN as usize }, MAPPED> = Array::new();
#[btf_map]
static PROFILES: Array<Profile, { PROFILES_MAX as usize }> = Array::new();
#[btf_map]
static PORTS: Array<u64, { PORT_WORDS as usize }> = Array::new();
#[btf_map]
static COUNTERS: PerCpuArray<Counter, { COUNTERS_LEN as usize }> = PerCpuArray::new();
#[btf_map]
static SLOTS: Array<u64, { SLOT_WORDS as usize }> = Array::new();
/// Not read here: it tells whose the slots are.
#[btf_map]
static INTERFACES: Array<InterfaceName, { SLOTS_LEN as usize }> = Array::new();
#[btf_map]
static LISTS: PerCpuArray<u64, { 2 * SEATS_LEN as usize }> = PerCpuArray::new();
/// Nor is this: it tells whose the seats are.
#[btf_map]
static LIST_NAMES: Array<ListName, { SEATS_LEN as usize }> = Array::new();
#[btf_map]
static HOST: Array<Line, { HOST_LINES as usize }, MAPPED> = Array::new();
#[btf_map]
static EVENTS: RingBuf<Event, { EVENTS_BYTES as usize }> = RingBuf::new();
/// The word of the bucket of events. Of no use to user space, as what follows, and so not part of the layout.
#[btf_map]
static EVENTS_DUE: Array<u64, 1> = Array::new();
#[btf_map]
static TICK: PerCpuArray<Tick, 1> = PerCpuArray::new();

/// What a CPU does once in a timer tick.
#[repr(C)]
struct Tick {
    /// In which the time was read.
    tick: u64,
    now_ns: u64,
    /// In which a dropped packet was last held against the bucket of events.
    asked: u64,
}

/// Patched by the loader, after which the verifier knows each field and removes what it switches off.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    seed: 0,
    new_sources: Bucket::UNLIMITED,
    unknown_sources: Bucket::UNLIMITED,
    source_mask_v6: u64::MAX,
    table_mask_v4: 0,
    table_mask_v6: 0,
    filter_mask_v6: 0,
    rules: 1,
    buckets: 1,
    dry_run: 0,
    tcp_flags: 0,
    martian: 0,
    malformed: 0,
    loopback: 0,
    events: Bucket::UNLIMITED,
    host_udp: Bucket::UNLIMITED,
    host_fragments: Bucket::UNLIMITED,
    resets: Bucket::UNLIMITED,
};

/// A constant that is patched. Volatile, or the compiler would build in the value above instead of the patched one.
macro_rules! setting {
    ($($field:ident).+) => {
        // SAFETY: it is a reference.
        unsafe { core::ptr::read_volatile(&SETTINGS.$($field).+) }
    };
}

/// Whether rules are looked at.
#[inline(always)]
pub(crate) fn rules_are_on() -> bool {
    setting!(rules) != 0
}

/// Whether buckets are looked at.
#[inline(always)]
pub(crate) fn buckets_are_on() -> bool {
    setting!(buckets) != 0
}

/// Whether drops are only counted.
#[inline(always)]
pub(crate) fn is_dry_run() -> bool {
    setting!(dry_run) != 0
}

/// Whether TCP with flags that cannot be is dropped.
#[inline(always)]
pub(crate) fn tcp_flags_are_checked() -> bool {
    setting!(tcp_flags) != 0
}

/// Whether what comes from where nothing can come from is dropped.
#[inline(always)]
pub(crate) fn sources_are_checked() -> bool {
    setting!(martian) != 0
}

/// Whether headers that contradict themselves are dropped.
#[inline(always)]
pub(crate) fn headers_are_checked() -> bool {
    setting!(malformed) != 0
}

/// The interface that is spared all that; 0 for none.
#[inline(always)]
pub(crate) fn loopback() -> u32 {
    setting!(loopback)
}

/// What the host takes of UDP to ports that are not protected.
#[inline(always)]
pub(crate) fn host_udp() -> Bucket {
    Bucket { interval_ns: setting!(host_udp.interval_ns), depth_ns: setting!(host_udp.depth_ns) }
}

/// What the host takes of fragments.
#[inline(always)]
pub(crate) fn host_fragments() -> Bucket {
    Bucket {
        interval_ns: setting!(host_fragments.interval_ns),
        depth_ns: setting!(host_fragments.depth_ns),
    }
}

/// New connections that are answered; unlimited: none.
#[inline(always)]
pub(crate) fn resets() -> Bucket {
    Bucket { interval_ns: setting!(resets.interval_ns), depth_ns: setting!(resets.depth_ns) }
}

/// Until when the host's own addresses are sure to be its own, by CLOCK_BOOTTIME.
#[inline(always)]
pub(crate) fn own_addresses_hold_until_ns() -> u64 {
    HOST.get(HOST_OWN).map_or(0, |line| load(&line.word))
}

/// The bits of the first half of an IPv6 address that tell one source from another.
#[inline(always)]
pub(crate) fn source_mask_v6() -> u64 {
    setting!(source_mask_v6)
}

/// The bucket of sources that are given a bucket of their own.
#[inline(always)]
pub(crate) fn new_sources() -> Bucket {
    Bucket {
        interval_ns: setting!(new_sources.interval_ns),
        depth_ns: setting!(new_sources.depth_ns),
    }
}

/// The bucket of packets from sources that have none of their own.
#[inline(always)]
pub(crate) fn unknown_sources() -> Bucket {
    Bucket {
        interval_ns: setting!(unknown_sources.interval_ns),
        depth_ns: setting!(unknown_sources.depth_ns),
    }
}

/// The lengths of the rules that may cover an IPv4 address. For most sources one load says that there are none.
#[inline(always)]
pub(crate) fn lengths_v4(address: u32) -> u64 {
    let (word, bit) = network_bit_v4(address);
    if NETWORKS_V4.get(word).is_none_or(|bits| load(bits) >> bit & 1 == 0) {
        return 0;
    }
    // What cannot be, that an element is missing, ends here: to go on would double what the verifier follows.
    let Some(short) = SHORT_V4.get(short_word_v4(address)) else { return 0 };
    let short = short_lengths_v4(load(short), address);
    let (word, bit) = filter_bit_v4(address);
    if FILTER_V4.get(word).is_none_or(|bits| load(bits) >> bit & 1 == 0) {
        return short;
    }
    let Some([touched, lengths]) = BLOCKS_V4.get(block_v4(address)) else { return 0 };
    long_lengths_v4([load(touched), load(lengths)], address) | short
}

/// A word of the IPv6 lengths that have rules.
#[inline(always)]
pub(crate) fn lengths_v6(word: u32) -> u64 {
    LENGTHS_V6.get(word).map_or(0, load)
}

/// Whether a rule of `bits` or more lies in the network of the first `bits` of an IPv6 address, or in one with the
/// same hash.
#[inline(always)]
pub(crate) fn is_touched_v6(high: u64, bits: u32) -> bool {
    let bit = filter_bit_v6(high, bits, setting!(seed), setting!(filter_mask_v6));
    FILTER_V6.get(bit / 64).is_some_and(|word| load(word) >> (bit % 64) & 1 != 0)
}

/// A bucket of the IPv4 table, `probe` further than where `tag` is looked for first.
#[inline(always)]
pub(crate) fn bucket_v4(tag: TagV4, probe: u32) -> Option<(u32, &'static BucketV4)> {
    let mask = setting!(table_mask_v4);
    let index = tag.bucket(setting!(seed), mask).wrapping_add(probe) & mask;
    TABLE_V4.get(index).map(|bucket| (index, bucket))
}

/// A bucket of the IPv6 table, `probe` further than where `tag` is looked for first.
#[inline(always)]
pub(crate) fn bucket_v6(tag: TagV6, probe: u32) -> Option<(u32, &'static BucketV6)> {
    let mask = setting!(table_mask_v6);
    let index = tag.bucket(setting!(seed), mask).wrapping_add(probe) & mask;
    TABLE_V6.get(index).map(|bucket| (index, bucket))
}

/// Whether buckets apply to a port.
#[inline(always)]
pub(crate) fn is_protected(port: u16) -> bool {
    PORTS.get(u32::from(port) / 64).is_some_and(|bits| load(bits) >> (port % 64) & 1 != 0)
}

/// The buckets of a profile.
#[inline(always)]
pub(crate) fn profile(index: u16) -> Option<Profile> {
    let bucket = |bucket: &Bucket| Bucket {
        interval_ns: load(&bucket.interval_ns),
        depth_ns: load(&bucket.depth_ns),
    };
    PROFILES.get(u32::from(index)).map(|profile| Profile {
        packets: bucket(&profile.packets),
        connections: bucket(&profile.connections),
    })
}

/// Notes that the IPv4 rule of a cell decided about a packet.
#[inline(always)]
pub(crate) fn count_hit_v4(index: u32, now_ns: u64) {
    if let Some(bucket) = TABLE_V4.get_ptr_mut(index / CELLS as u32) {
        count_hit(bucket.cast(), CELLS * WORDS_V4, index, now_ns);
    }
}

/// Notes that the IPv6 rule of a cell decided about a packet.
#[inline(always)]
pub(crate) fn count_hit_v6(index: u32, now_ns: u64) {
    if let Some(bucket) = TABLE_V6.get_ptr_mut(index / CELLS as u32) {
        count_hit(bucket.cast(), CELLS * WORDS_V6, index, now_ns);
    }
}

/// Notes that the rule of a list met a packet.
#[inline(always)]
pub(crate) fn count_list(seat: u32) {
    if let Some(count) = LISTS.get_ptr_mut(seat) {
        // SAFETY: the element is this CPU's own and the kernel does not interrupt one XDP program by another.
        unsafe { *count += 1 };
    }
}

/// Counts at the hits of a bucket, which begin `at` so many words.
#[inline(always)]
fn count_hit(bucket: *mut u64, at: usize, index: u32, now_ns: u64) {
    let cell = index as usize % CELLS;
    // SAFETY: an array's elements live as long as the map, and behind its cells a bucket has the hits of each. Other
    // CPUs write here too: the count is added to atomically, and of two times that are less than a packet apart either
    // may stay.
    unsafe {
        let hits: *mut Hits = bucket.add(at).cast::<Hits>().add(cell);
        atomic_xadd::<u64, u64, { Relaxed }>(&raw mut (*hits).packets, 1);
        core::ptr::write_volatile(&raw mut (*hits).last_ns, now_ns);
    }
}

/// What `now_ns` said when this CPU first asked in `tick`.
#[inline(always)]
pub(crate) fn once_a_tick(tick: u64, now_ns: impl Fn() -> u64) -> u64 {
    let Some(last) = TICK.get_ptr_mut(0) else { return now_ns() };
    // SAFETY: the element is this CPU's own and the kernel does not interrupt one XDP program by another.
    unsafe {
        if (*last).tick != tick {
            (*last).tick = tick;
            (*last).now_ns = now_ns();
        }
        (*last).now_ns
    }
}

/// The slot that an interface is counted in.
#[inline(always)]
pub(crate) fn slot(interface: u32) -> u32 {
    slot_of(SLOTS.get(interface % SLOT_WORDS).map_or(0, load), interface)
}

/// Adds a frame to this CPU's counter.
#[inline(always)]
pub(crate) fn count(index: u32, bytes: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the element is this CPU's own and the kernel does not interrupt one XDP program by another.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
}

/// Whether dropped packets are reported, and this CPU has not asked for one in `tick`. It has then.
#[inline(always)]
pub(crate) fn may_report(tick: impl Fn() -> u64) -> bool {
    if setting!(events.interval_ns) == 0 {
        return false;
    }
    let Some(last) = TICK.get_ptr_mut(0) else { return false };
    let tick = tick();
    // SAFETY: the element is this CPU's own and the kernel does not interrupt one XDP program by another.
    unsafe { core::mem::replace(&mut (*last).asked, tick) != tick }
}

/// Takes a report from the bucket of all CPUs, and says whether there was one.
#[inline(always)]
pub(crate) fn take_report(now_ns: u64) -> bool {
    let bucket =
        Bucket { interval_ns: setting!(events.interval_ns), depth_ns: setting!(events.depth_ns) };
    let Some(word) = EVENTS_DUE.get_ptr_mut(0).map(Word) else { return false };
    let before = word.load();
    let taken = bucket.take(before, now_ns);
    // Whoever loses against another CPU leaves the report to that one.
    taken.admitted && word.exchange(before, taken.word)
}

/// Hands an event to user space, unless the buffer is full.
#[inline(always)]
pub(crate) fn report(event: &Event) {
    if let Some(mut room) = EVENTS.reserve(0) {
        room.write(*event);
        room.submit(0);
    }
}

/// The word of a bucket. A source's own may be evicted and given to another source at any time: then a packet is
/// charged to the wrong bucket once, and nothing worse.
pub(crate) struct Word(*mut u64);

impl Word {
    /// The word of `source`, if it has one.
    #[inline(always)]
    pub(crate) fn of(source: &SourceKey) -> Option<Self> {
        BUCKETS.get_ptr_mut(source).map(Self)
    }

    /// The word that `source` shares with others while it has none of its own.
    #[inline(always)]
    pub(crate) fn shared(source: &SourceKey) -> Option<Self> {
        SHARED.get_ptr_mut(source.shared(setting!(seed))).map(Self)
    }

    /// The word of the whole host in a line of [`HOST`].
    #[inline(always)]
    pub(crate) fn of_host(line: u32) -> Option<Self> {
        // SAFETY: an array's elements live as long as the map.
        HOST.get_ptr_mut(line).map(|line| Self(unsafe { &raw mut (*line).word }))
    }

    /// Makes the word of a source that has none. `false` when another CPU was first.
    #[inline(always)]
    pub(crate) fn make(source: &SourceKey, word: u64) -> bool {
        BUCKETS.insert(source, word, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    pub(crate) fn load(&self) -> u64 {
        // SAFETY: the kernel keeps an element's memory until the program has ended, evicted or not.
        load(unsafe { &*self.0 })
    }

    /// Whether the word was still `old`; it is `new` then.
    #[inline(always)]
    pub(crate) fn exchange(&self, old: u64, new: u64) -> bool {
        // SAFETY: as above; aligned to eight bytes by the kernel.
        unsafe { atomic_cxchg::<u64, { Relaxed }, { Relaxed }>(self.0, old, new).1 }
    }
}

/// Another CPU may be writing: one read, of the whole word, that the compiler neither repeats nor splits.
#[inline(always)]
pub(crate) fn load(word: &u64) -> u64 {
    // SAFETY: it is a reference.
    unsafe { core::ptr::read_volatile(word) }
}
