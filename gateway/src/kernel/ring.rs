//! The ring buffer of dropped packets, read when the kernel says that there is something in it.

use std::io;
use std::os::fd::AsFd as _;

use aya::maps::{Map, MapData, MapError, RingBuf};
use gateway_common::event::Event;
use gateway_common::layout;

use super::tables::TablesError;
use crate::base::readable::Readable;

/// Events that are taken before others on the thread get their turn.
const BATCH_EVENTS: usize = 256;

/// The reading end. A ring buffer has one reader.
pub struct Ring {
    ring: RingBuf<MapData>,
    readable: Readable,
}

impl Ring {
    /// Opens the ring buffer behind `data`, at the place up to which it was read before. Runs inside of a runtime.
    pub fn open(data: MapData) -> Result<Self, TablesError> {
        let map = layout::EVENTS;
        let readable = data.fd().as_fd().try_clone_to_owned().and_then(Readable::new);
        let readable = readable.map_err(|source| TablesError::Memory { map, source })?;
        let failed = |source: MapError| TablesError::Map { map, source };
        let ring = Map::from_map_data(data).and_then(RingBuf::try_from).map_err(failed)?;
        Ok(Self { ring, readable })
    }

    /// Waits until there are events, and hands over those that there are.
    pub async fn read(&mut self, mut take: impl FnMut(Event)) -> io::Result<()> {
        let mut ready = self.readable.ready().await?;
        for _ in 0..BATCH_EVENTS {
            let Some(item) = self.ring.next() else {
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
