//! The contract between the kernel door and user space: what a packet is, whose it is, what a rule says, what it
//! answers, how a bucket counts, and how all of it lies in the maps.
//!
//! `no_std` and free of `unsafe`, apart from the marker that lets user space hand the layouts to aya. The same code
//! runs in the XDP program, in the tests on the host and in the fuzzer. No constant of the boundary is written twice.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod bucket;
pub mod event;
pub mod flow;
pub mod hygiene;
pub mod layout;
pub mod packet;
pub mod reader;
pub mod reset;
pub mod rule;
pub mod source;
pub mod table;
pub mod verdict;
