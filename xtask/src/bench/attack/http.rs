//! Requests over real connections, from as many addresses as there are sources; and a server that has nothing to
//! defend, for the attacker to be busy with while it is quiet elsewhere. Both are on its CPU.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::namespace::Namespace;
use harness::topology::{Host, PORT};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::cases::{Case, Counts, What};
use super::{CPU_ATTACKER, stay_on};

/// An attacker does not wait for the system to try again.
const CONNECT: Duration = Duration::from_millis(300);
const ANSWER: Duration = Duration::from_secs(1);
/// What nobody is known by.
const WRONG: &str = "gw_000000000000000000000000000000000000";
const REFUSAL: &[u8] = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
/// The first of the addresses: neighbours share a /24.
const FIRST: u32 = 0xc612_0101;

/// Where connections come from.
#[derive(Clone, Copy)]
pub(crate) enum Sources {
    /// So many addresses, in turn.
    Many(u32),
    /// So many networks, one address of each, until it has made so many connections, then the next.
    Apart(u32, u32),
    /// The host's own address, which others use too, as behind NAT.
    Own,
}

/// Who sends what, and how fast.
#[derive(Clone)]
pub(crate) struct Plan {
    /// From where.
    pub(crate) sources: Sources,
    /// Connections that are begun in a second, by all of them together; `None`: as fast as can be.
    pub(crate) per_second: Option<u32>,
    /// Connections at once.
    pub(crate) at_once: usize,
    /// Requests over one connection, if it lives so long.
    pub(crate) requests: u32,
    /// The credential, a good one or not.
    pub(crate) key: String,
}

impl Plan {
    /// Somebody who tries credentials.
    pub(crate) fn attack(sources: Sources, per_second: Option<u32>) -> Self {
        let requests = if per_second.is_some() { 1 } else { 10 };
        Self { sources, per_second, at_once: 256, requests, key: WRONG.to_owned() }
    }
}

/// Connections under way.
pub(crate) struct Connections {
    counters: Arc<Counters>,
    _thread: Thread,
}

#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    answered: AtomicU64,
    next: AtomicU64,
}

impl Connections {
    pub(crate) fn start(host: &Host, plan: Plan) -> Result<Self> {
        let counters = Arc::new(Counters::default());
        let (shared, target) = (Arc::clone(&counters), host.target());
        let thread = Thread::start(&host.namespace, move || {
            let request = format!("GET / HTTP/1.1\r\nHost: api\r\nX-API-Key: {}\r\n\r\n", plan.key);
            let (request, begun) = (Arc::from(request.into_bytes()), Instant::now());
            let agent = Agent { counters: shared, target, plan: Arc::new(plan), request, begun };
            for _ in 0..agent.plan.at_once {
                tokio::spawn(agent.clone().run());
            }
        })?;
        Ok(Self { counters, _thread: thread })
    }

    pub(crate) fn counts(&self) -> Counts {
        let Counters { sent, answered, .. } = &*self.counters;
        Counts { sent: sent.load(Ordering::Relaxed), answered: answered.load(Ordering::Relaxed) }
    }
}

/// One that has a connection at a time.
#[derive(Clone)]
struct Agent {
    counters: Arc<Counters>,
    target: SocketAddr,
    plan: Arc<Plan>,
    request: Arc<[u8]>,
    begun: Instant,
}

impl Agent {
    async fn run(self) {
        loop {
            let number = self.counters.next.fetch_add(1, Ordering::Relaxed);
            if let Some(per_second) = self.plan.per_second {
                let due = Duration::from_secs_f64(number as f64 / f64::from(per_second));
                sleep_until(self.begun + due).await;
            }
            let source = self.plan.sources.pick(number);
            self.counters.sent.fetch_add(1, Ordering::Relaxed);
            // Whatever went wrong, the next one is tried.
            drop(self.connection(source).await);
            tokio::task::yield_now().await;
        }
    }

    async fn connection(&self, source: IpAddr) -> Result<()> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(source, 0))?;
        let mut stream = timeout(CONNECT, socket.connect(self.target)).await??;
        for _ in 0..self.plan.requests {
            stream.write_all(&self.request).await?;
            timeout(ANSWER, answer(&mut stream)).await??;
            self.counters.answered.fetch_add(1, Ordering::Relaxed);
        }
        // A reset instead of an end: ports come back at once.
        stream.set_zero_linger()?;
        Ok(())
    }
}

impl Sources {
    fn pick(self, number: u64) -> IpAddr {
        match self {
            Self::Many(most) => {
                let turn = number % u64::from(most.max(1));
                IpAddr::V4(spread(u32::try_from(turn).unwrap_or_default()))
            }
            Self::Apart(networks, each) => {
                let turn = number / u64::from(each.max(1)) % u64::from(networks.max(1));
                let network = u32::try_from(turn).unwrap_or_default();
                IpAddr::V4(Ipv4Addr::from(FIRST + network * 256))
            }
            Self::Own => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        }
    }
}

/// Addresses of 250 hosts a /24.
fn spread(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(FIRST + number / 250 * 256 + number % 250)
}

/// Reads one answer, whose length a field says.
async fn answer(stream: &mut TcpStream) -> Result<()> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        let read = stream.read_buf(&mut bytes).await?;
        anyhow::ensure!(read > 0, "closed");
        if is_whole(&bytes) {
            return Ok(());
        }
        anyhow::ensure!(bytes.len() < 64 * 1024, "too much");
    }
}

fn is_whole(bytes: &[u8]) -> bool {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
    bytes.len() - end - 4 >= length
}

/// A server that refuses everybody.
pub(super) struct Sink(#[expect(dead_code, reason = "kept for its end")] Option<Thread>);

impl Sink {
    pub(super) fn start(namespace: &Namespace, case: &Case) -> Result<Self> {
        if !matches!(case.what, What::Requests { .. }) {
            return Ok(Self(None));
        }
        let thread = Thread::start(namespace, || {
            tokio::spawn(async {
                let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT);
                let Ok(listener) = TcpListener::bind(any).await else { return };
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(refuse(stream));
                }
            });
        })?;
        Ok(Self(Some(thread)))
    }
}

async fn refuse(mut stream: TcpStream) {
    let mut bytes = [0; 1024];
    while matches!(stream.read(&mut bytes).await, Ok(1..)) {
        if stream.write_all(REFUSAL).await.is_err() {
            return;
        }
    }
}

/// A thread in a namespace, on the attacker's CPU, that runs tasks until it is dropped.
struct Thread {
    end: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    fn start(namespace: &Namespace, begin: impl FnOnce() + Send + 'static) -> Result<Self> {
        let (end, mut ended) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = namespace.enter(|| {
            std::thread::spawn(move || {
                // Elsewhere it would take its time from those whom it is measured by.
                if stay_on(CPU_ATTACKER).is_err() {
                    return;
                }
                runtime.block_on(async {
                    begin();
                    // Its end, or that of whoever would have told it.
                    drop(ended.changed().await);
                });
            })
        });
        Ok(Self { end, thread: Some(thread.context("the attacker's namespace")?) })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.end.send(true).ok();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let answer = b"HTTP/1.1 401 X\r\nContent-Length: 2\r\n\r\nab";
        assert!(is_whole(answer));
        assert!(!is_whole(&answer[..answer.len() - 1]));
        assert!(is_whole(REFUSAL));
    }

    #[test]
    fn sources_fill_one_network_after_the_other() {
        assert_eq!(spread(0), Ipv4Addr::new(198, 18, 1, 1));
        assert_eq!(spread(250), Ipv4Addr::new(198, 18, 2, 1));
        assert_eq!(spread(9_999), Ipv4Addr::new(198, 18, 40, 250));
        let apart = [0, 24, 25, 499, 500].map(|number| Sources::Apart(20, 25).pick(number));
        let expected = [1, 1, 2, 20, 1].map(|network| IpAddr::from([198, 18, network, 1]));
        assert_eq!(apart, expected);
    }
}
