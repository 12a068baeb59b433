//! Bans and lifts of several gateways: each tells the others what it did, and all come to know the same.

pub mod ledger;
pub mod message;
