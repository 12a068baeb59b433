//! The two forms of bpf(2) that aya does not offer: loading a program from bare instructions, and test-running any
//! program by its descriptor. It owns no map and attaches nothing.
#![expect(unsafe_code, reason = "bpf(2) takes and fills a structure by its address")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::c_int;

const PROG_LOAD: c_int = 5;
const PROG_TEST_RUN: c_int = 10;
const PROG_TYPE_XDP: u32 = 6;
/// `r0 = 2 (XDP_PASS); exit`, as two instructions of eight bytes.
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];

/// The first fields of the kernel's `bpf_attr` for `BPF_PROG_LOAD`; it takes those that it is not given as zero.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The same for `BPF_PROG_TEST_RUN`.
#[repr(C)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// What a test run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ran {
    /// What the program returned the last time.
    pub(super) verdict: u32,
    /// The kernel's mean over the repetitions, in whole nanoseconds, rounded down.
    pub(super) ns: u32,
}

/// Loads an XDP program that passes everything and does nothing else.
pub(super) fn load_pass() -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let mut attributes = Load {
        prog_type: PROG_TYPE_XDP,
        insn_cnt: PASS.len() as u32,
        insns: PASS.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    let descriptor = bpf(PROG_LOAD, &mut attributes)?;
    // SAFETY: the kernel has just made this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Runs a program on a frame `repeat` times, on the CPU that the thread is on.
pub(super) fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<Ran> {
    let mut attributes = TestRun {
        prog_fd: program.as_raw_fd() as u32,
        retval: 0,
        data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_size_out: 0,
        data_in: frame.as_ptr() as u64,
        data_out: 0,
        repeat,
        duration: 0,
    };
    bpf(PROG_TEST_RUN, &mut attributes)?;
    Ok(Ran { verdict: attributes.retval, ns: attributes.duration })
}

fn bpf<T>(command: c_int, attributes: &mut T) -> io::Result<c_int> {
    // SAFETY: `T` is one of the two structures above, whose fields lie where the kernel's do; the size tells it where
    // they end, and what they point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    c_int::try_from(result).map_err(io::Error::other)
}
