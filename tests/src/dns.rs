//! A small DNS server that says what a test wants it to: over UDP, and over TCP what is too long for that. It listens
//! on loopback and knows only the questions that it was told answers to; every other name does not exist.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::Result;
use crate::site::Site;

/// How often the threads look whether they are to end.
const LOOK: Duration = Duration::from_millis(20);
const WAIT: Duration = Duration::from_secs(5);
/// What a server sends over UDP without asking whether more is wanted (RFC 1035, section 4.2.1).
const UDP_BYTES_MAX: usize = 512;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
    /// A service.
    Srv,
}

impl Kind {
    fn code(self) -> u16 {
        match self {
            Self::A => 1,
            Self::Aaaa => 28,
            Self::Srv => 33,
        }
    }

    fn of(code: u16) -> Option<Self> {
        [Self::A, Self::Aaaa, Self::Srv].into_iter().find(|kind| kind.code() == code)
    }
}

/// What a question is answered with.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Records that live for so many seconds.
    Records(u32, Vec<Record>),
    /// The name exists and has no such records.
    Empty,
    /// NXDOMAIN.
    NoName,
    /// SERVFAIL.
    Failure,
    /// Bytes that are no DNS.
    Garbage,
    /// Nothing at all.
    Silence,
}

/// What a record says.
#[derive(Clone, Debug)]
pub enum Record {
    /// Of a kind that fits the family.
    Address(IpAddr),
    /// Priority, weight, port and host.
    Service(u16, u16, u16, String),
}

#[derive(Debug, Default)]
struct Told {
    replies: HashMap<(String, Kind), Reply>,
    asked: HashMap<(String, Kind), u64>,
    over_tcp: u64,
}

/// The server. Its threads end when it is dropped.
#[derive(Debug)]
pub struct Dns {
    /// Where it listens.
    pub address: SocketAddr,
    told: Arc<Mutex<Told>>,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Dns {
    /// Listens on a free port of loopback.
    pub fn start(site: &Site) -> Result<Self> {
        let (udp, tcp) = site.enter(|| -> Result<_> {
            // Both need the same port, and the first one may be taken over TCP.
            for _ in 0..20 {
                let udp = UdpSocket::bind("127.0.0.1:0")?;
                if let Ok(tcp) = TcpListener::bind(udp.local_addr()?) {
                    return Ok((udp, tcp));
                }
            }
            anyhow::bail!("no port is free over UDP and TCP")
        })??;
        let address = udp.local_addr()?;
        udp.set_read_timeout(Some(LOOK))?;
        tcp.set_nonblocking(true)?;
        let (told, ending) = (Arc::<Mutex<Told>>::default(), Arc::<AtomicBool>::default());
        let over_udp = {
            let (told, ending) = (Arc::clone(&told), Arc::clone(&ending));
            std::thread::spawn(move || serve_udp(&udp, &told, &ending))
        };
        let over_tcp = {
            let (told, ending) = (Arc::clone(&told), Arc::clone(&ending));
            std::thread::spawn(move || serve_tcp(&tcp, &told, &ending))
        };
        Ok(Self { address, told, ending, threads: vec![over_udp, over_tcp] })
    }

    /// From now on, this is what the question is answered with.
    pub fn tell(&self, name: &str, kind: Kind, reply: Reply) {
        lock(&self.told).replies.insert((name.to_owned(), kind), reply);
    }

    /// The same for addresses with a TTL; the name has none of the other family.
    pub fn tell_addresses(&self, name: &str, ttl: u32, addresses: &[IpAddr]) {
        for (kind, is_v4) in [(Kind::A, true), (Kind::Aaaa, false)] {
            let of_kind = addresses.iter().filter(|address| address.is_ipv4() == is_v4);
            let records: Vec<Record> = of_kind.map(|address| Record::Address(*address)).collect();
            let reply = match records.is_empty() {
                true => Reply::Empty,
                false => Reply::Records(ttl, records),
            };
            self.tell(name, kind, reply);
        }
    }

    /// The same for addresses of both families.
    pub fn tell_all(&self, name: &str, reply: &Reply) {
        self.tell(name, Kind::A, reply.clone());
        self.tell(name, Kind::Aaaa, reply.clone());
    }

    /// How often a question was asked.
    pub fn asked(&self, name: &str, kind: Kind) -> u64 {
        lock(&self.told).asked.get(&(name.to_owned(), kind)).copied().unwrap_or(0)
    }

    /// Questions that came over TCP.
    pub fn asked_over_tcp(&self) -> u64 {
        lock(&self.told).over_tcp
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there shows in the test as a server that says nothing.
            drop(thread.join());
        }
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve_udp(socket: &UdpSocket, told: &Mutex<Told>, ending: &AtomicBool) {
    let mut buffer = [0; 4096];
    while !ending.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let question = buffer.get(..length).unwrap_or_default();
        if let Ok(Some(answer)) = answer(question, told, UDP_BYTES_MAX) {
            // Whoever asked may have gone.
            drop(socket.send_to(&answer, client));
        }
    }
}

fn serve_tcp(listener: &TcpListener, told: &Mutex<Told>, ending: &AtomicBool) {
    let mut open: Vec<TcpStream> = Vec::new();
    while !ending.load(Ordering::Relaxed) {
        if let Ok((stream, _)) = listener.accept() {
            open.push(stream);
        }
        // A connection carries several questions; one that breaks is closed.
        open.retain(|stream| serve_stream(stream, told).is_ok());
        std::thread::sleep(LOOK);
    }
}

fn serve_stream(mut stream: &TcpStream, told: &Mutex<Told>) -> Result {
    stream.set_nonblocking(true)?;
    let mut length = [0; 2];
    match stream.peek(&mut length) {
        Ok(2) => {}
        Ok(_) => anyhow::bail!("closed"),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.set_write_timeout(Some(WAIT))?;
    stream.read_exact(&mut length)?;
    let mut question = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut question)?;
    lock(told).over_tcp += 1;
    if let Some(answer) = answer(&question, told, usize::from(u16::MAX))? {
        stream.write_all(&u16::try_from(answer.len())?.to_be_bytes())?;
        stream.write_all(&answer)?;
    }
    Ok(())
}

/// The answer to a question, truncated if it would be longer than `most` (RFC 1035, section 4).
fn answer(question: &[u8], told: &Mutex<Told>, most: usize) -> Result<Option<Vec<u8>>> {
    let (name, end) = name_at(question, 12)?;
    let kind = question.get(end..end + 2).context("the question has no type")?;
    let kind = u16::from_be_bytes(kind.try_into()?);
    let reply = {
        let mut told = lock(told);
        match Kind::of(kind) {
            Some(kind) => {
                *told.asked.entry((name.clone(), kind)).or_default() += 1;
                told.replies.get(&(name, kind)).cloned().unwrap_or(Reply::NoName)
            }
            None => Reply::NoName,
        }
    };
    let (code, ttl, records) = match reply {
        Reply::Records(ttl, records) => (0, ttl, records),
        Reply::Empty => (0, 0, Vec::new()),
        Reply::NoName => (3, 0, Vec::new()),
        Reply::Failure => (2, 0, Vec::new()),
        Reply::Garbage => return Ok(Some(vec![0xff; 40])),
        Reply::Silence => return Ok(None),
    };
    let mut body = Vec::new();
    for record in &records {
        // The name of the question, by a pointer to it.
        body.extend([0xc0, 12]);
        let data = data(record);
        let kind = match record {
            Record::Address(IpAddr::V4(_)) => Kind::A,
            Record::Address(IpAddr::V6(_)) => Kind::Aaaa,
            Record::Service(..) => Kind::Srv,
        };
        body.extend(kind.code().to_be_bytes());
        body.extend(1u16.to_be_bytes());
        body.extend(ttl.to_be_bytes());
        body.extend(u16::try_from(data.len())?.to_be_bytes());
        body.extend(data);
    }
    let asked = question.get(12..end + 4).context("the question has no class")?;
    let is_whole = 12 + asked.len() + body.len() <= most;
    let count = if is_whole { u16::try_from(records.len())? } else { 0 };
    let mut answer = question.get(..2).context("no id")?.to_vec();
    // A response to a query with recursion, which is available.
    answer.extend([0x81 | u8::from(!is_whole) << 1, 0x80 | code, 0, 1]);
    answer.extend(count.to_be_bytes());
    answer.extend([0; 4]);
    answer.extend(asked);
    if is_whole {
        answer.extend(body);
    }
    Ok(Some(answer))
}

fn data(record: &Record) -> Vec<u8> {
    match record {
        Record::Address(IpAddr::V4(v4)) => v4.octets().to_vec(),
        Record::Address(IpAddr::V6(v6)) => v6.octets().to_vec(),
        Record::Service(priority, weight, port, host) => {
            let mut data: Vec<u8> = [priority, weight, port]
                .into_iter()
                .flat_map(|number| number.to_be_bytes())
                .collect();
            for label in host.split('.').filter(|label| !label.is_empty()) {
                data.push(u8::try_from(label.len()).unwrap_or(0));
                data.extend(label.as_bytes());
            }
            data.push(0);
            data
        }
    }
}

/// The name at `start` in lower case, without a dot at its end, and where it ends.
fn name_at(message: &[u8], start: usize) -> Result<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), start);
    loop {
        let length = usize::from(*message.get(at).context("the name has no end")?);
        at += 1;
        if length == 0 {
            return Ok((labels.join("."), at));
        }
        ensure!(length < 64, "a question has no pointers");
        let label = message.get(at..at + length).context("a label has no end")?;
        labels.push(String::from_utf8(label.to_ascii_lowercase())?);
        at += length;
    }
}
