//! A scripted service behind the gateway: it does what the test says with each request and remembers what it saw.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;

use crate::Result;
use crate::client::{chunked, fields, line};
use crate::namespace::Namespace;

const WAIT: Duration = Duration::from_secs(30);
const CONNECTIONS_MAX: usize = 1024;

/// A request as the origin saw it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The request line.
    pub line: String,
    /// Header fields in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// The first field with this name, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What the origin does with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Answers with this status and body and keeps the connection.
    Answer(u16, &'static str),
    /// Sends these bytes and closes.
    Raw(&'static [u8]),
    /// Sends these bytes, made for the occasion, and closes.
    Bytes(Vec<u8>),
    /// Sends these bytes and then nothing for as long as the gateway waits.
    Stall(&'static [u8]),
    /// Says nothing for as long as the gateway waits.
    Hang,
    /// Closes the connection without a word.
    Close,
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

struct Shared {
    script: Box<Script>,
    requests: Mutex<Vec<Request>>,
    ending: AtomicBool,
    open: AtomicUsize,
    keeps: bool,
}

/// The running origin. Its threads end when it is dropped.
pub struct Origin {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Origin {
    /// Listens at `address` inside `namespace`, or where the caller is, and follows `script`.
    pub fn start(
        namespace: Option<&Namespace>,
        address: SocketAddr,
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::with(namespace, address, true, Box::new(script))
    }

    /// Answers every request with 200 and `body`, and remembers none: for load.
    pub fn constant(
        namespace: &Namespace,
        address: SocketAddr,
        body: &'static str,
    ) -> Result<Self> {
        let script = move |_: &Request| Reply::Answer(200, body);
        Self::with(Some(namespace), address, false, Box::new(script))
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections that it serves.
    pub fn open_connections(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    fn with(
        namespace: Option<&Namespace>,
        address: SocketAddr,
        keeps: bool,
        script: Box<Script>,
    ) -> Result<Self> {
        let bound = match namespace {
            Some(namespace) => namespace.enter(|| TcpListener::bind(address))?,
            None => TcpListener::bind(address),
        };
        let listener = bound.with_context(|| format!("the origin cannot listen at {address}"))?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (ending, open) = (AtomicBool::new(false), AtomicUsize::new(0));
        let shared = Arc::new(Shared { script, requests: Mutex::default(), ending, open, keeps });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            // A panic in the acceptor shows in the test as an origin that does not answer.
            drop(acceptor.join());
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut served: Vec<(JoinHandle<()>, Arc<TcpStream>)> = Vec::new();
    while !shared.ending.load(Ordering::Relaxed) {
        served.retain(|(thread, _)| !thread.is_finished());
        match listener.accept() {
            Ok((stream, _)) if served.len() < CONNECTIONS_MAX => {
                let (stream, shared) = (Arc::new(stream), Arc::clone(shared));
                let thread = std::thread::spawn({
                    let stream = Arc::clone(&stream);
                    // The gateway may go away at any time; a test looks at what arrived, not at this.
                    move || {
                        shared.open.fetch_add(1, Ordering::Relaxed);
                        drop(serve(&stream, &shared));
                        shared.open.fetch_sub(1, Ordering::Relaxed);
                    }
                });
                served.push((thread, stream));
            }
            Ok(_) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    for (thread, stream) in served {
        drop(stream.shutdown(Shutdown::Both));
        drop(thread.join());
    }
}

fn serve(stream: &TcpStream, shared: &Shared) -> Result {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.set_write_timeout(Some(WAIT))?;
    let mut reader = BufReader::new(stream);
    while !shared.ending.load(Ordering::Relaxed) {
        let request = read(&mut reader)?;
        let reply = (shared.script)(&request);
        if shared.keeps {
            shared.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        }
        let mut writer = stream;
        match reply {
            Reply::Answer(status, body) => {
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status} -\r\ncontent-length: {length}\r\n\r\n{body}");
                writer.write_all(answer.as_bytes())?;
            }
            Reply::Raw(bytes) => return Ok(writer.write_all(bytes)?),
            Reply::Bytes(bytes) => return Ok(writer.write_all(&bytes)?),
            Reply::Hang | Reply::Stall(_) => {
                if let Reply::Stall(bytes) = reply {
                    writer.write_all(bytes)?;
                }
                let mut rest = [0; 64];
                while reader.read(&mut rest)? > 0 {}
                return Ok(());
            }
            Reply::Close => return Ok(()),
        }
    }
    Ok(())
}

fn read(stream: &mut BufReader<&TcpStream>) -> Result<Request> {
    let line = line(stream)?;
    let headers = fields(stream)?;
    let mut request = Request { line, headers, body: Vec::new() };
    if let Some(length) = request.header("content-length") {
        let length = length.parse().context("not a length")?;
        stream.take(length).read_to_end(&mut request.body)?;
    } else if request.header("transfer-encoding").is_some() {
        request.body = chunked(stream)?;
    }
    Ok(request)
}
