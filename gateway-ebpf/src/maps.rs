//! What the program shares with user space: the maps and the constants, under the names and layouts of
//! `gateway_common::layout`. Nothing outside of this file touches their memory.
#![expect(unsafe_code, reason = "values of maps are raw addresses that several CPUs use at once")]

use core::intrinsics::{AtomicOrdering::Relaxed, atomic_cxchg, atomic_xadd};

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use gateway_common::bucket::Bucket;
use gateway_common::layout::{
    BUCKETS_DEFAULT, COUNTERS_LEN, Counter, Hits, LENGTH_WORDS, PORT_WORDS, PROFILES_MAX,
    RULES_DEFAULT, RuleKeyV4, RuleKeyV6, Settings,
};
use gateway_common::rule::Rules;
use gateway_common::source::SourceKey;

// Not preallocated: a host with ten rules pays for ten.
#[btf_map]
static RULES_V4: HashMap<
    RuleKeyV4,
    Rules,
    { RULES_DEFAULT as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
#[btf_map]
static RULES_V6: HashMap<
    RuleKeyV6,
    Rules,
    { RULES_DEFAULT as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
#[btf_map]
static LENGTHS: Array<u64, { LENGTH_WORDS as usize }> = Array::new();
#[btf_map]
static HITS: Array<Hits, { 2 * RULES_DEFAULT as usize }> = Array::new();
#[btf_map]
static BUCKETS: LruHashMap<SourceKey, u64, { BUCKETS_DEFAULT as usize }> = LruHashMap::new();
#[btf_map]
static PROFILES: Array<Bucket, { PROFILES_MAX as usize }> = Array::new();
#[btf_map]
static PORTS: Array<u64, { PORT_WORDS as usize }> = Array::new();
#[btf_map]
static COUNTERS: PerCpuArray<Counter, { COUNTERS_LEN as usize }> = PerCpuArray::new();
/// Of no use to user space, so not part of the layout.
#[btf_map]
static TICK: PerCpuArray<Tick, 1> = PerCpuArray::new();

/// The time as it was read first in a timer tick.
#[repr(C)]
struct Tick {
    tick: u64,
    now_ns: u64,
}

/// Patched by the loader, after which the verifier knows each field and removes what it switches off.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings { rules: 1, buckets: 1, dry_run: 0, reserved: 0 };

#[inline(always)]
fn is_on(field: &u32) -> bool {
    // SAFETY: it is a reference. Volatile, or the compiler would build in the value above instead of the patched one.
    unsafe { core::ptr::read_volatile(field) != 0 }
}

/// Whether rules are looked at.
#[inline(always)]
pub(crate) fn rules_are_on() -> bool {
    is_on(&SETTINGS.rules)
}

/// Whether packet buckets are looked at.
#[inline(always)]
pub(crate) fn buckets_are_on() -> bool {
    is_on(&SETTINGS.buckets)
}

/// Whether drops are only counted.
#[inline(always)]
pub(crate) fn is_dry_run() -> bool {
    is_on(&SETTINGS.dry_run)
}

/// The rules of one IPv4 prefix.
#[inline(always)]
pub(crate) fn rules_v4(key: RuleKeyV4) -> Option<&'static Rules> {
    // SAFETY: user space replaces elements whole and never writes into one, and the kernel keeps a replaced element's
    // memory readable until the program has ended. It may be given to another prefix meanwhile: whoever reads copies
    // at once what it acts on.
    unsafe { RULES_V4.get(key) }
}

/// The rules of one IPv6 prefix.
#[inline(always)]
pub(crate) fn rules_v6(key: RuleKeyV6) -> Option<&'static Rules> {
    // SAFETY: as for IPv4.
    unsafe { RULES_V6.get(key) }
}

/// A word of the prefix lengths that have rules.
#[inline(always)]
pub(crate) fn lengths(word: u32) -> u64 {
    LENGTHS.get(word).map_or(0, |bits| load(bits))
}

/// Whether buckets apply to a port.
#[inline(always)]
pub(crate) fn is_protected(port: u16) -> bool {
    PORTS.get(u32::from(port) / 64).is_some_and(|bits| load(bits) >> (port % 64) & 1 != 0)
}

/// The packet bucket of a profile.
#[inline(always)]
pub(crate) fn profile(index: u16) -> Option<Bucket> {
    PROFILES.get(u32::from(index)).map(|bucket| Bucket {
        interval_ns: load(&bucket.interval_ns),
        depth_ns: load(&bucket.depth_ns),
    })
}

/// Notes that the rule of `slot` decided about a packet.
#[inline(always)]
pub(crate) fn count_hit(slot: u32, now_ns: u64) {
    if let Some(hits) = HITS.get_ptr_mut(slot) {
        // SAFETY: an array's elements live as long as the map. Other CPUs write here too: the count is added to
        // atomically, and of two times that are less than a packet apart either may stay.
        unsafe {
            atomic_xadd::<u64, u64, { Relaxed }>(&raw mut (*hits).packets, 1);
            core::ptr::write_volatile(&raw mut (*hits).last_ns, now_ns);
        }
    }
}

/// What `now_ns` said when this CPU first asked in `tick`.
#[inline(always)]
pub(crate) fn once_a_tick(tick: u64, now_ns: impl Fn() -> u64) -> u64 {
    let Some(last) = TICK.get_ptr_mut(0) else { return now_ns() };
    // SAFETY: the element is this CPU's own and the kernel does not interrupt one XDP program by another.
    unsafe {
        if (*last).tick != tick {
            *last = Tick { tick, now_ns: now_ns() };
        }
        (*last).now_ns
    }
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

/// The word of a source's bucket. It may be evicted and given to another source at any time: then a packet is charged
/// to the wrong bucket once, and nothing worse.
pub(crate) struct Word(*mut u64);

impl Word {
    /// The word of `source`, if it has one.
    #[inline(always)]
    pub(crate) fn of(source: &SourceKey) -> Option<Self> {
        BUCKETS.get_ptr_mut(source).map(Self)
    }

    /// Makes the word of a source that has none. `false` when another CPU was first.
    #[inline(always)]
    pub(crate) fn make(source: &SourceKey, word: u64) -> bool {
        BUCKETS.insert(source, word, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    pub(crate) fn load(&self) -> u64 {
        // SAFETY: the kernel keeps an element's memory readable until the program has ended, evicted or not.
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
fn load(word: &u64) -> u64 {
    // SAFETY: it is a reference.
    unsafe { core::ptr::read_volatile(word) }
}
