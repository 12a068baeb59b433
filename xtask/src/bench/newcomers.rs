//! Packets from random sources that a bucket applies to: what each of the ways costs to deal with a source that is not
//! known. Sources are drawn as in `random`.

use anyhow::{Context, Result};
use gateway_common::bucket::Bucket;

use super::Args;
use super::kernel::{ENDLESS, EXHAUSTED, PACKETS, SOURCE, Subjects, TURNS, measure, tcp};
use super::report::Report;
use super::subject::Subject;

const ACKS: &str = "flood_ack";
const SYNS: &str = "flood_syn";
/// Their names.
pub(super) const CASES: [&str; 2] = [ACKS, SYNS];
/// As in `random`: enough that the caches have forgotten the subject before.
const REPEAT: u32 = PACKETS / TURNS;
/// The flags byte of a frame of Ethernet, IPv4 and TCP without tags and options, and what continues a connection.
const FLAGS: usize = 14 + 20 + 13;
const ACK: u8 = 0x10;

/// Measures a SYN and, as one that may have a socket, an ACK.
pub(super) fn run(args: &Args, report: &mut Report) -> Result<()> {
    if !CASES.into_iter().any(|name| args.is_chosen(name)) {
        return Ok(());
    }
    let rounds = args.rounds;
    let syn = tcp(SOURCE.into())?;
    let mut ack = syn.clone();
    *ack.get_mut(FLAGS).context("no flags in the frame")? = ACK;

    let empty = Subject::empty()?.randomised()?;
    let limited = |of_host| Subject::limited(ENDLESS, of_host)?.randomised();
    let mut subjects: Subjects = vec![
        ("remembered", limited([Bucket::UNLIMITED; 2])?),
        ("shared", limited([EXHAUSTED, Bucket::UNLIMITED])?),
        ("refused", limited([EXHAUSTED, EXHAUSTED])?),
    ];
    if args.is_chosen(ACKS) {
        measure((&empty, &subjects), (ACKS, &ack), rounds, REPEAT, report)?;
    }
    if !args.is_chosen(SYNS) {
        return Ok(());
    }
    match Subject::syn_cookie() {
        Ok(cookie) => subjects.push(("syn-cookie-alone", cookie.randomised()?)),
        Err(error) => report.skip(SYNS, &format!("{error:#}")),
    }
    measure((&empty, &subjects), (SYNS, &syn), rounds, REPEAT, report)
}
