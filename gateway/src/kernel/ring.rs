//! The ring buffer of dropped packets, read when the kernel says that there is something in it.
#![expect(unsafe_code, reason = "registering a descriptor that somebody else owns is unsafe")]

use std::io;

use aya::maps::{Map, MapData, MapError, RingBuf};
use gateway_common::event::Event;
use gateway_common::layout;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::tables::TablesError;

/// Events that are taken before others on the thread get their turn.
const BATCH_EVENTS: usize = 256;

/// The reading end. A ring buffer has one reader.
pub struct Ring(AsyncFd<RingBuf<MapData>>);

impl Ring {
    /// Opens the ring buffer behind `data`, at the place up to which it was read before. Runs inside of a runtime.
    pub fn open(data: MapData) -> Result<Self, TablesError> {
        let map = layout::EVENTS;
        let failed = |source: MapError| TablesError::Map { map, source };
        let ring = Map::from_map_data(data).and_then(RingBuf::try_from).map_err(failed)?;
        // SAFETY: the descriptor is the ring's own: the same, open and left alone for as long as the ring lives, which
        // the registration owns.
        let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let registered =
            registered.map_err(|error| TablesError::Memory { map, source: error.into() })?;
        Ok(Self(registered))
    }

    /// Waits until there are events, and hands over those that there are.
    pub async fn read(&mut self, mut take: impl FnMut(Event)) -> io::Result<()> {
        let mut ready = self.0.readable_mut().await?;
        for _ in 0..BATCH_EVENTS {
            let Some(item) = ready.get_inner_mut().next() else {
                ready.clear_ready();
                return Ok(());
            };
            if let Some(event) = Event::from_bytes(&item) {
                take(event);
            }
        }
        Ok(())
    }
}
