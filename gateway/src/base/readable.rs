//! A descriptor that somebody waits for, such as a ring buffer of the kernel or a descriptor of epoll.
#![expect(unsafe_code, reason = "registering a descriptor that somebody else owns is unsafe")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// A descriptor that is registered with the runtime.
#[derive(Debug)]
pub struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    /// Registers a descriptor, which may be a duplicate of the one that is read. Runs inside of a runtime.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        // SAFETY: the registration owns the descriptor, which stays the same and open for as long.
        Ok(Self(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?))
    }

    /// Waits until there is something to read. Whoever has read all of it clears that, or is called again at once.
    pub async fn ready(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.readable().await
    }
}
