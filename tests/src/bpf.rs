//! The forms of bpf(2) that aya does not offer: loading a program from bare instructions, test-running any program by
//! its descriptor, attaching it by a link that nobody pins, and maps without an object, filled in batches.
#![expect(unsafe_code, reason = "bpf(2) takes and fills a structure by its address")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use libc::c_int;

const MAP_CREATE: c_int = 0;
const MAP_UPDATE: c_int = 2;
const PROG_LOAD: c_int = 5;
const PROG_TEST_RUN: c_int = 10;
const MAP_UPDATE_BATCH: c_int = 26;
const LINK_CREATE: c_int = 28;

const PROG_TYPE_XDP: u32 = 6;
/// BPF_XDP and BPF_F_XDP_HAS_FRAGS, as the gateway's: programs differ in neither along a tail call.
const ATTACH_TYPE_XDP: u32 = 37;
const XDP_HAS_FRAGS: u32 = 1 << 5;
/// XDP_FLAGS_DRV_MODE: native, or not at all.
const XDP_NATIVE: u32 = 1 << 2;
/// BPF_F_TEST_XDP_LIVE_FRAMES: what becomes of a frame happens.
const LIVE_FRAMES: u32 = 1 << 1;

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_PROG_ARRAY: u32 = 3;
const MAP_TYPE_LPM_TRIE: u32 = 11;
/// A trie is not made in any other way.
const NO_PREALLOC: u32 = 1;

/// An IPv4 prefix as a trie has it: its length in the machine's byte order, its address in the network's.
pub type TrieKey = [u8; 8];

/// The first fields of the kernel's `bpf_attr` for `BPF_PROG_LOAD`; it takes those that it is not given as zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The same for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// The same for `BPF_MAP_CREATE`.
#[repr(C)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The same for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct Update {
    map_fd: u64,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same for `BPF_MAP_UPDATE_BATCH`.
#[repr(C)]
struct UpdateBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// What a test run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What the program returned the last time.
    pub verdict: u32,
    /// The kernel's mean over the repetitions, in whole nanoseconds, rounded down.
    pub ns: u32,
}

/// Loads an XDP program.
pub fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let mut attributes = Load {
        prog_type: PROG_TYPE_XDP,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_flags: XDP_HAS_FRAGS,
        expected_attach_type: ATTACH_TYPE_XDP,
        ..Load::default()
    };
    bpf(PROG_LOAD, &mut attributes).map(owned)
}

/// Runs a program on a frame `repeat` times, on the CPU that the thread is on.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<Ran> {
    let mut attributes = TestRun {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_in: frame.as_ptr() as u64,
        repeat,
        ..TestRun::default()
    };
    bpf(PROG_TEST_RUN, &mut attributes)?;
    Ok(Ran { verdict: attributes.retval, ns: attributes.duration })
}

/// Runs a program on `count` copies of a frame and does with each what it says, from the namespace of the thread.
pub fn send(program: BorrowedFd<'_>, frame: &[u8], count: u32) -> io::Result<()> {
    let mut attributes = TestRun {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_in: frame.as_ptr() as u64,
        repeat: count,
        flags: LIVE_FRAMES,
        ..TestRun::default()
    };
    bpf(PROG_TEST_RUN, &mut attributes).map(drop)
}

/// Attaches a program in native mode to an interface of the thread's namespace, until the descriptor is closed.
pub fn attach(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_ifindex: interface,
        attach_type: ATTACH_TYPE_XDP,
        flags: XDP_NATIVE,
    };
    bpf(LINK_CREATE, &mut attributes).map(owned)
}

/// An array of programs with one in it. The kernel empties it when the descriptor is closed.
pub fn program_array(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let array = create(Create {
        map_type: MAP_TYPE_PROG_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
    })?;
    let (key, value) = (0u32, program.as_raw_fd());
    let mut attributes = Update {
        map_fd: array.as_raw_fd() as u64,
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    bpf(MAP_UPDATE, &mut attributes)?;
    Ok(array)
}

/// An array of words.
pub fn array(values: &[u64]) -> io::Result<OwnedFd> {
    let count = u32::try_from(values.len()).map_err(io::Error::other)?;
    let array = create(Create {
        map_type: MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: count,
        map_flags: 0,
    })?;
    let keys: Vec<u32> = (0..count).collect();
    let mut attributes = UpdateBatch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map_fd: array.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    bpf(MAP_UPDATE_BATCH, &mut attributes)?;
    Ok(array)
}

/// A trie of these IPv4 prefixes, each with a byte.
pub fn trie(keys: &[TrieKey]) -> io::Result<OwnedFd> {
    const BATCH: usize = 65_536;
    const STUCK_MAX: u32 = 1000;
    let trie = create(Create {
        map_type: MAP_TYPE_LPM_TRIE,
        key_size: size_of::<TrieKey>() as u32,
        value_size: 1,
        max_entries: u32::try_from(keys.len().max(1)).map_err(io::Error::other)?,
        map_flags: NO_PREALLOC,
    })?;
    let values = [1u8; BATCH];
    let mut left = keys;
    let mut stuck = 0;
    while !left.is_empty() {
        let batch = left.get(..BATCH).unwrap_or(left);
        let mut attributes = UpdateBatch {
            in_batch: 0,
            out_batch: 0,
            keys: batch.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: u32::try_from(batch.len()).map_err(io::Error::other)?,
            map_fd: trie.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // The kernel refills what tries take their nodes from behind our back, and says ENOMEM when we are faster.
        match bpf(MAP_UPDATE_BATCH, &mut attributes) {
            Ok(_) => stuck = 0,
            Err(error) if error.raw_os_error() != Some(libc::ENOMEM) || stuck == STUCK_MAX => {
                return Err(error);
            }
            Err(_) => {
                stuck = if attributes.count == 0 { stuck + 1 } else { 0 };
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        left = left.get(attributes.count as usize..).unwrap_or_default();
    }
    Ok(trie)
}

fn create(mut attributes: Create) -> io::Result<OwnedFd> {
    bpf(MAP_CREATE, &mut attributes).map(owned)
}

fn owned(descriptor: c_int) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for the call above, and nothing else knows it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn bpf<T>(command: c_int, attributes: &mut T) -> io::Result<c_int> {
    // SAFETY: `T` is one of the structures above, whose fields lie where the kernel's do; the size tells it where
    // they end, and what they point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    c_int::try_from(result).map_err(io::Error::other)
}
