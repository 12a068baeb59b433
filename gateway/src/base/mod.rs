//! What everything else is said in: addresses, prefixes, time, ids.
//!
//! Rank 0: imports nothing of this crate.

pub mod address;
pub mod api_key;
pub mod error;
pub mod folder;
pub mod id;
pub mod netlink;
pub mod path;
pub mod prefix;
pub mod random;
pub mod readable;
pub mod secret;
pub mod signal;
pub mod stamp;
pub mod text;
pub mod time;
