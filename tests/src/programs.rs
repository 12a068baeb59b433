//! The small XDP programs that the bench holds the gateway's against, as instructions: nothing needs to be compiled,
//! and nothing is in them that is not seen here. They know frames of Ethernet and IPv4 without tags or options alone.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::bpf::{self, TrieKey};

const ABORTED: i32 = 0;
const DROP: i32 = 1;
const PASS: i32 = 2;

/// Of the first byte behind the IPv4 header, and of the source in it.
const IPV4_END: i32 = 14 + 20;
const SOURCE: i16 = 14 + 12;
/// Of the IPv4 header's checksum.
const CHECKSUM: i16 = 14 + 10;

const ETHERNET_BYTES: i32 = 14;
const TCP_BYTES: i32 = 20;

const LOOKUP: i32 = 1;
const PRANDOM: i32 = 7;
const TAIL_CALL: i32 = 12;
const REDIRECT: i32 = 23;
const SYN_COOKIE_V4: i32 = 204;

/// A prefix and its length.
pub type Prefix = (IpAddr, u32);

/// A program with the map that it uses.
pub struct WithMap {
    program: OwnedFd,
    map: OwnedFd,
}

impl WithMap {
    /// The program.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// Its map.
    pub fn map(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// Passes everything and does nothing else.
pub fn pass() -> io::Result<OwnedFd> {
    bpf::load(&[mov(0, PASS), EXIT])
}

/// Writes a random source into the frame and lets `next` decide. Aborts where it cannot.
pub fn randomiser(next: BorrowedFd<'_>) -> io::Result<WithMap> {
    let map = bpf::program_array(next)?;
    let [array, second] = map_address(2, &map);
    let program = bpf::load(&[
        copy(6, 1),
        call(PRANDOM),
        load32(2, 6, 0),
        load32(3, 6, 4),
        copy(4, 2),
        add(4, IPV4_END),
        jump_if_greater(4, 3, 6),
        store32(2, SOURCE, 0),
        copy(1, 6),
        array,
        second,
        mov(3, 0),
        call(TAIL_CALL),
        mov(0, ABORTED),
        EXIT,
    ])?;
    Ok(WithMap { program, map })
}

/// Drops everything and does nothing else.
pub fn drop_all() -> io::Result<OwnedFd> {
    bpf::load(&[mov(0, DROP), EXIT])
}

/// A source and the header checksum that belongs to it, as [`sender`] writes them.
pub fn sender_word(source: [u8; 4], checksum: [u8; 2]) -> u64 {
    let ([a, b, c, d], [e, f]) = (source, checksum);
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}

/// Writes a source of `words` and its checksum into the frame, at random, and sends the frame out of `interface`.
pub fn sender(words: &[u64], interface: u32) -> io::Result<WithMap> {
    let map = bpf::array(words)?;
    let count = i32::try_from(words.len()).map_err(io::Error::other)?;
    let interface = i32::try_from(interface).map_err(io::Error::other)?;
    let [array, second] = map_address(1, &map);
    let program = bpf::load(&[
        copy(6, 1),
        call(PRANDOM),
        modulo(0, count),
        store32(10, -4, 0),
        array,
        second,
        copy(2, 10),
        add(2, -4),
        call(LOOKUP),
        jump_if_zero(0, 13),
        load32(2, 6, 0),
        load32(3, 6, 4),
        copy(4, 2),
        add(4, IPV4_END),
        jump_if_greater(4, 3, 8),
        load32(5, 0, 0),
        store32(2, SOURCE, 5),
        load16(5, 0, 4),
        store16(2, CHECKSUM, 5),
        mov(1, interface),
        mov(2, 0),
        call(REDIRECT),
        EXIT,
        mov(0, ABORTED),
        EXIT,
    ])?;
    Ok(WithMap { program, map })
}

/// Makes the SYN cookie of an IPv4 segment without options and passes it: of an answer to a SYN only the first step.
pub fn syn_cookie() -> io::Result<OwnedFd> {
    bpf::load(&[
        load32(2, 1, 0),
        load32(3, 1, 4),
        copy(4, 2),
        add(4, IPV4_END + TCP_BYTES),
        jump_if_greater(4, 3, 7),
        copy(1, 2),
        add(1, ETHERNET_BYTES),
        add(2, IPV4_END),
        mov(3, TCP_BYTES),
        call(SYN_COOKIE_V4),
        mov(0, PASS),
        EXIT,
        mov(0, ABORTED),
        EXIT,
    ])
}

/// Drops what a trie has a prefix for, by the source at its fixed place. It parses and counts nothing.
pub fn trie(denied: &[Prefix]) -> io::Result<WithMap> {
    let key = |(address, length): &Prefix| -> Option<TrieKey> {
        let IpAddr::V4(address) = address else { return None };
        let ([a, b, c, d], [e, f, g, h]) = (length.to_ne_bytes(), address.octets());
        Some([a, b, c, d, e, f, g, h])
    };
    let keys: Vec<TrieKey> = denied.iter().filter_map(key).collect();
    let map = bpf::trie(&keys)?;
    let [trie, second] = map_address(1, &map);
    let program = bpf::load(&[
        load32(2, 1, 0),
        load32(3, 1, 4),
        copy(4, 2),
        add(4, IPV4_END),
        jump_if_greater(4, 3, 12),
        load32(4, 2, SOURCE),
        mov(5, 32),
        store32(10, -8, 5),
        store32(10, -4, 4),
        trie,
        second,
        copy(2, 10),
        add(2, -8),
        call(LOOKUP),
        jump_if_zero(0, 2),
        mov(0, DROP),
        EXIT,
        mov(0, PASS),
        EXIT,
    ])?;
    Ok(WithMap { program, map })
}

const EXIT: u64 = 0x95;

/// Operation, registers, offset and constant, as the kernel's `bpf_insn` has them in a little-endian word.
const fn instruction(operation: u8, to: u8, from: u8, offset: i16, constant: i32) -> u64 {
    operation as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u16 as u64) << 16
        | (constant as u32 as u64) << 32
}

const fn mov(to: u8, constant: i32) -> u64 {
    instruction(0xb7, to, 0, 0, constant)
}

const fn copy(to: u8, from: u8) -> u64 {
    instruction(0xbf, to, from, 0, 0)
}

const fn add(to: u8, constant: i32) -> u64 {
    instruction(0x07, to, 0, 0, constant)
}

const fn load32(to: u8, from: u8, offset: i16) -> u64 {
    instruction(0x61, to, from, offset, 0)
}

const fn store32(to: u8, offset: i16, from: u8) -> u64 {
    instruction(0x63, to, from, offset, 0)
}

const fn load16(to: u8, from: u8, offset: i16) -> u64 {
    instruction(0x69, to, from, offset, 0)
}

const fn store16(to: u8, offset: i16, from: u8) -> u64 {
    instruction(0x6b, to, from, offset, 0)
}

const fn modulo(to: u8, constant: i32) -> u64 {
    instruction(0x97, to, 0, 0, constant)
}

const fn call(helper: i32) -> u64 {
    instruction(0x85, 0, 0, 0, helper)
}

/// Skips `offset` instructions.
const fn jump_if_greater(left: u8, right: u8, offset: i16) -> u64 {
    instruction(0x2d, left, right, offset, 0)
}

const fn jump_if_zero(register: u8, offset: i16) -> u64 {
    instruction(0x15, register, 0, offset, 0)
}

/// Two words; the kernel puts the map's address where its descriptor is.
fn map_address(to: u8, map: &OwnedFd) -> [u64; 2] {
    const DESCRIPTOR: u8 = 1;
    [instruction(0x18, to, DESCRIPTOR, 0, map.as_raw_fd()), 0]
}
