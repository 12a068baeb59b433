//! By what it is noticed that a file has changed, without reading it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// By what a change is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// Nothing was looked at.
    Unknown,
    /// Why there is nothing to see.
    Error(Option<i32>),
    /// Its device, inode, size and time of change, to which rights belong.
    File([u64; 3], i64, i64),
}

impl Stamp {
    /// The stamp of a file that is open.
    pub fn of(metadata: &Metadata) -> Self {
        let place = [metadata.dev(), metadata.ino(), metadata.size()];
        Self::File(place, metadata.ctime(), metadata.ctime_nsec())
    }

    /// The stamp of the file at `path`, or of its absence.
    pub fn at(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(metadata) => Self::of(&metadata),
            Err(error) => Self::Error(error.raw_os_error()),
        }
    }
}
