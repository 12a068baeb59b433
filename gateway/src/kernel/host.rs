//! What the program knows about the host as a whole: until when its own addresses are sure to be its own.

use std::time::Duration;

use aya::maps::{Array, MapData, MapError};
use gateway_common::layout::{self, HOST_OWN, Line};

use super::tables::{TablesError, failed, open_as};
use crate::base::time::BootTime;

/// How long the addresses are believed in when nobody looks after them any more. Without an end, one that moved to
/// another host while no gateway ran would be refused from there.
const OWN_FOR: Duration = Duration::from_secs(30);

/// The map of the host.
pub struct Host(Array<MapData, Line>);

impl Host {
    /// Opens it.
    pub fn open(find: impl Fn(&str) -> Result<MapData, MapError>) -> Result<Self, TablesError> {
        let data = find(layout::HOST).map_err(failed(layout::HOST))?;
        open_as(layout::HOST, data).map(Self)
    }

    /// Says that the rules for the host's own addresses are right at `now`.
    pub fn vouch(&mut self, now: BootTime) -> Result<(), TablesError> {
        let until_ns = now.0.saturating_add(OWN_FOR.as_nanos() as u64);
        let line = Line { word: until_ns, ..Line::default() };
        self.0.set(HOST_OWN, line, 0).map_err(failed(layout::HOST))
    }
}
