//! The lab's load: requests over a few connections, at a fixed rate or each as soon as the one before is answered, and
//! a flood of raw frames at a bounded rate. Both end when they are dropped.
#![expect(clippy::disallowed_methods, reason = "the lab measures real time from outside")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::ensure;
use harness::client::Client;
use harness::frames::{Path, Sender};
use harness::namespace::Namespace;
use harness::topology::Host;

const CONNECTIONS: usize = 8;
const REQUEST_INTERVAL: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(2);
const FLOOD_SOURCES: u8 = 200;

/// What happened since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    /// Requests answered with 200.
    pub(super) served: usize,
    /// Requests with any other end.
    pub(super) failed: usize,
    /// 99th percentile of the time to the end of the answer; `None` without one.
    pub(super) p99_ms: Option<f64>,
}

#[derive(Default)]
struct Record {
    latencies_us: Vec<u64>,
    failed: usize,
}

/// When a client asks again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// A hundred times a second, whatever becomes of it.
    Fixed,
    /// As soon as it is answered.
    Answered,
}

impl Pace {
    /// A connection is given up after this many, so that new ones are measured too; few enough a second that the client
    /// does not run out of ports, half of which (14,000) are found at once and the others by a search.
    fn requests_per_connection(self) -> usize {
        match self {
            Self::Fixed => 50,
            Self::Answered => 1000,
        }
    }
}

/// Requests from a host.
pub(super) struct Requests {
    record: Arc<Mutex<Record>>,
    /// Kept for its end.
    _workers: Workers,
}

impl Requests {
    pub(super) fn start(
        namespace: &Namespace,
        target: SocketAddr,
        key: Option<&str>,
        pace: Pace,
    ) -> anyhow::Result<Self> {
        let field = key.map(|key| format!("X-API-Key: {key}\r\n")).unwrap_or_default();
        let head = format!("GET /hello HTTP/1.1\r\nHost: test\r\n{field}\r\n");
        let record = Arc::new(Mutex::new(Record::default()));
        let mut workers = Workers::default();
        // Threads that are started inside stay inside, and so do the sockets that they open.
        namespace.enter(|| {
            for _ in 0..CONNECTIONS {
                let (record, head) = (Arc::clone(&record), head.clone());
                workers.start(move |ending| requests((target, &head), pace, &record, ending));
            }
        })?;
        Ok(Self { record, _workers: workers })
    }

    /// What happened since the last call.
    pub(super) fn window(&self) -> Window {
        let record = std::mem::take(&mut *lock(&self.record));
        let mut latencies_us = record.latencies_us;
        latencies_us.sort_unstable();
        let p99 = latencies_us.get(latencies_us.len().saturating_sub(1) * 99 / 100);
        Window {
            served: latencies_us.len(),
            failed: record.failed,
            p99_ms: p99.map(|us| *us as f64 / 1000.0),
        }
    }
}

fn requests(asked: (SocketAddr, &str), pace: Pace, record: &Mutex<Record>, ending: &AtomicBool) {
    let mut due = Instant::now();
    while !ending.load(Ordering::Relaxed) {
        let mut client = None;
        for _ in 0..pace.requests_per_connection() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if ending.load(Ordering::Relaxed) {
                return;
            }
            // Time runs from when the request was due: a wait before it is the client's wait too.
            let answer = request(&mut client, asked);
            let mut record = lock(record);
            match answer {
                Ok(()) => record.latencies_us.push(due.elapsed().as_micros() as u64),
                Err(_) => {
                    record.failed += 1;
                    client = None;
                }
            }
            drop(record);
            due = match pace {
                Pace::Fixed => (due + REQUEST_INTERVAL).max(Instant::now() - REQUEST_INTERVAL),
                Pace::Answered => Instant::now(),
            };
        }
    }
}

fn request(client: &mut Option<Client>, (target, head): (SocketAddr, &str)) -> anyhow::Result<()> {
    let connected = match client {
        Some(client) => client,
        None => client.insert(Client::connect_here(None, target, PATIENCE)?),
    };
    connected.send(head.as_bytes())?;
    let answer = connected.receive()?;
    ensure!(answer.status == 200, "status {}", answer.status);
    Ok(())
}

/// SYN and UDP frames from many sources to one port.
pub(super) struct Flood {
    sent: Arc<AtomicU64>,
    /// Kept for its end.
    _workers: Workers,
}

impl Flood {
    pub(super) fn start(host: &Host, port: u16, packets_per_s: u32) -> anyhow::Result<Self> {
        let sender = Sender::new(host)?;
        let mut frames = Vec::new();
        for last in 0..FLOOD_SOURCES {
            let path = Path::new(host, IpAddr::V4(Ipv4Addr::new(198, 18, 0, last)));
            frames.push(path.syn(10_000 + u16::from(last), port)?);
            frames.push(path.udp(port, &[0; 64])?);
        }
        let sent = Arc::new(AtomicU64::new(0));
        let mut workers = Workers::default();
        let counter = Arc::clone(&sent);
        workers.start(move |ending| flood(&sender, &frames, packets_per_s, &counter, ending));
        Ok(Self { sent, _workers: workers })
    }

    /// Packets sent since the last call.
    pub(super) fn sent(&self) -> u64 {
        self.sent.swap(0, Ordering::Relaxed)
    }
}

fn flood(
    sender: &Sender,
    frames: &[Vec<u8>],
    packets_per_s: u32,
    counter: &AtomicU64,
    ending: &AtomicBool,
) {
    const TICK: Duration = Duration::from_millis(2);
    let mut due = Instant::now();
    let mut frames = frames.iter().cycle();
    // What a tick cannot hold as a whole is carried to the next.
    let mut owed = 0.0;
    while !ending.load(Ordering::Relaxed) {
        owed += f64::from(packets_per_s) * TICK.as_secs_f64();
        while owed >= 1.0 {
            owed -= 1.0;
            let Some(frame) = frames.next() else { return };
            // A full queue loses a packet of the flood, which is no loss.
            if sender.send(frame).is_ok() {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
        // A late flood does not catch up: its rate is a bound.
        due = (due + TICK).max(Instant::now());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Threads that are told to end and waited for.
#[derive(Default)]
struct Workers {
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn start(&mut self, work: impl FnOnce(&AtomicBool) + Send + 'static) {
        let ending = Arc::clone(&self.ending);
        self.threads.push(std::thread::spawn(move || work(&ending)));
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in the load shows as a second without requests.
            drop(thread.join());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
