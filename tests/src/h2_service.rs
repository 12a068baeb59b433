//! A service that speaks HTTP/2 frame by frame, right or wrong, as the test scripts it.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Result;
use crate::http2::{Frame, Http2, flag, kind};
use crate::site::Site;

const WAIT: Duration = Duration::from_secs(60);

type Script = dyn Fn(&mut Http2, usize) -> Result + Send + Sync;

/// The running service. Its threads end when it is dropped.
pub struct H2Service {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    script: Box<Script>,
    ending: AtomicBool,
    connections: AtomicUsize,
    sockets: Mutex<Vec<TcpStream>>,
}

impl H2Service {
    /// Listens at the site. `script` has each connection from its first frame on, with its number from 0; the
    /// connection ends with it.
    pub fn start(
        site: &Site,
        script: impl Fn(&mut Http2, usize) -> Result + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = site.enter(|| TcpListener::bind("127.0.0.1:0"))??;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            script: Box::new(script),
            ending: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            sockets: Mutex::default(),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// The connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for H2Service {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        for socket in self.shared.sockets().iter() {
            drop(socket.shutdown(Shutdown::Both));
        }
        if let Some(acceptor) = self.acceptor.take() {
            // A panic in it shows in the test as a service that does not answer.
            drop(acceptor.join());
        }
    }
}

impl Shared {
    fn sockets(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.ending.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        if let Ok(socket) = stream.try_clone() {
            shared.sockets().push(socket);
        }
        let number = shared.connections.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(shared);
        std::thread::spawn(move || -> Result {
            stream.set_nonblocking(false)?;
            let mut connection = Http2::accept(stream, WAIT)?;
            // What a test looks at is what the gateway makes of it.
            let done = (shared.script)(&mut connection, number);
            drop(connection.close());
            done
        });
    }
}

/// Answers every request with 200 and `body`, for as long as the connection lives.
pub fn serve(connection: &mut Http2, body: &str) -> Result {
    while let Some(frame) = connection.receive_polite()? {
        if frame.ends_stream() {
            connection.frames(&answer(frame.stream, body))?;
        }
    }
    Ok(())
}

/// The frames of an answer with 200 and `body`.
pub fn answer(stream: u32, body: &str) -> [Frame; 2] {
    [
        Frame::headers(stream, false, &[(":status", "200")]),
        Frame::new(kind::DATA, flag::END_STREAM, stream, body.as_bytes()),
    ]
}
