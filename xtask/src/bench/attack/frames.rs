//! Floods of raw frames from addresses that are made up, at a bounded rate, from the attacker's CPU.
#![expect(clippy::disallowed_methods, reason = "a rate is one of real time")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use harness::frames::{Path, Sender};
use harness::topology::{Host, PORT};

use super::{CPU_ATTACKER, stay_on};

/// Packets a second: what one CPU can send one by one, or less.
const PER_SECOND: u32 = 150_000;
/// Addresses that are made up.
const SOURCES: u32 = 16_384;
/// Where nobody listens.
const OTHER_PORT: u16 = 9;
const TICK: Duration = Duration::from_millis(1);

/// A flood under way.
pub(super) struct Frames {
    sent: Arc<AtomicU64>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Frames {
    pub(super) fn syn(host: &Host) -> Result<Self> {
        let frames = sources().map(|(number, source)| {
            let port = 1024 + u16::try_from(number % 60_000).unwrap_or_default();
            Path::new(host, source).syn(port, PORT)
        });
        Self::start(host, frames.collect::<Result<_>>()?)
    }

    /// A third each: datagrams to the port that is served, to another, and pairs of fragments.
    pub(super) fn udp_and_fragments(host: &Host) -> Result<Self> {
        let mut frames = Vec::new();
        for (number, source) in sources() {
            let path = Path::new(host, source);
            match number % 3 {
                0 => frames.push(path.udp(PORT, &[0; 512])?),
                1 => frames.push(path.udp(OTHER_PORT, &[0; 512])?),
                _ => frames.extend(path.udp_fragments(OTHER_PORT, &[0; 512])?),
            }
        }
        Self::start(host, frames)
    }

    fn start(host: &Host, frames: Vec<Vec<u8>>) -> Result<Self> {
        let sender = Sender::new(host)?;
        let (sent, ending) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, end) = (Arc::clone(&sent), Arc::clone(&ending));
        let thread = std::thread::spawn(move || {
            // Elsewhere the flood would take its time from those whom it is measured by.
            if stay_on(CPU_ATTACKER).is_ok() {
                send(&sender, &frames, &counter, &end);
            }
        });
        Ok(Self { sent, ending, thread: Some(thread) })
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn sources() -> impl Iterator<Item = (u32, IpAddr)> {
    // An odd step visits each once, and neighbours are far apart.
    let address =
        |number: u32| Ipv4Addr::from(0xc612_0000 | number.wrapping_mul(40_503) & 0x1_ffff);
    (0..SOURCES).map(move |number| (number, IpAddr::V4(address(number))))
}

fn send(sender: &Sender, frames: &[Vec<u8>], counter: &AtomicU64, ending: &AtomicBool) {
    let mut frames = frames.iter().cycle();
    let (begun, mut sent) = (Instant::now(), 0_u64);
    while !ending.load(Ordering::Relaxed) {
        let due = (begun.elapsed().as_secs_f64() * f64::from(PER_SECOND)) as u64;
        // What could not be sent in time is not made up for: the rate is a bound.
        sent = sent.max(due.saturating_sub(u64::from(PER_SECOND) / 100));
        while sent < due {
            let Some(frame) = frames.next() else { return };
            if sender.send(frame).is_ok() {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            sent += 1;
        }
        std::thread::sleep(TICK);
    }
}
