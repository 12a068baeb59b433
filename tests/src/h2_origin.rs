//! A scripted service that speaks HTTP/2, by prior knowledge, frame by frame. It reads no header field: what it does
//! with a request depends on how many came before.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Result;
use crate::http2::{Frame, Http2, flag, kind};
use crate::site::Site;

const WAIT: Duration = Duration::from_secs(30);

/// What the service does with a request.
#[derive(Clone, Copy, Debug)]
pub enum Reply {
    /// Answers with 200 and this body.
    Answer(&'static str),
    /// Answers with 503.
    Sick,
    /// Says nothing.
    Hang,
    /// Ends the stream for this reason.
    Reset(u32),
    /// Closes the connection.
    Close,
    /// Sends what is no HTTP/2.
    Lie,
}

type Script = dyn Fn(usize) -> Reply + Send + Sync;

struct Shared {
    script: Box<Script>,
    requests: AtomicUsize,
    /// The reasons of streams that the gateway has ended.
    resets: Mutex<Vec<u32>>,
    ending: AtomicBool,
}

/// The running service. Its threads end when it is dropped.
pub struct Http2Origin {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Http2Origin {
    /// Follows `script`, which is given the number of the request, from 0.
    pub fn start(
        site: &Site,
        script: impl Fn(usize) -> Reply + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = site.enter(|| TcpListener::bind("127.0.0.1:0"))??;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            script: Box::new(script),
            requests: AtomicUsize::new(0),
            resets: Mutex::default(),
            ending: AtomicBool::new(false),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// The reasons of the streams that the gateway has ended so far.
    pub fn resets(&self) -> Vec<u32> {
        self.shared.resets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Http2Origin {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            // A panic in the acceptor shows in the test as a service that does not answer.
            drop(acceptor.join());
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut served: Vec<(JoinHandle<()>, TcpStream)> = Vec::new();
    while !shared.ending.load(Ordering::Relaxed) {
        served.retain(|(thread, _)| !thread.is_finished());
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        let Ok(ours) = stream.try_clone() else { continue };
        let shared = Arc::clone(shared);
        // The gateway may go away at any time; a test looks at what arrived, not at this.
        let thread = std::thread::spawn(move || drop(serve(stream, &shared)));
        served.push((thread, ours));
    }
    for (thread, stream) in served {
        drop(stream.shutdown(std::net::Shutdown::Both));
        drop(thread.join());
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> Result {
    let mut connection = Http2::accept(stream, WAIT)?;
    while let Some(frame) = connection.receive()? {
        let is_last = frame.flags & flag::END_STREAM != 0;
        match frame.kind {
            kind::SETTINGS if frame.flags & flag::ACK == 0 => {
                connection.frames(&[Frame::new(kind::SETTINGS, flag::ACK, 0, [])])?;
            }
            kind::PING if frame.flags & flag::ACK == 0 => {
                connection.frames(&[Frame::new(kind::PING, flag::ACK, 0, frame.payload)])?;
            }
            kind::RST_STREAM => {
                let mut resets = shared.resets.lock().unwrap_or_else(PoisonError::into_inner);
                resets.extend(frame.reason());
            }
            kind::HEADERS | kind::DATA if is_last => {
                let number = shared.requests.fetch_add(1, Ordering::Relaxed);
                if !reply(&mut connection, frame.stream, (shared.script)(number))? {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether the connection goes on.
fn reply(connection: &mut Http2, stream: u32, reply: Reply) -> Result<bool> {
    match reply {
        Reply::Answer(body) => {
            let head = Frame::headers(stream, false, &[(":status", "200")]);
            connection.frames(&[head, Frame::new(kind::DATA, flag::END_STREAM, stream, body)])?;
        }
        Reply::Sick => {
            connection.frames(&[Frame::headers(stream, true, &[(":status", "503")])])?;
        }
        Reply::Hang => {}
        Reply::Reset(reason) => connection.frames(&[Frame::reset(stream, reason)])?,
        Reply::Close => return Ok(false),
        Reply::Lie => {
            connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
            return Ok(false);
        }
    }
    Ok(true)
}
