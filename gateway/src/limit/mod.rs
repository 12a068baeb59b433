//! How much callers may: algorithms, keys, and what is counted of each in process.

pub mod algorithm;
pub mod calendar;
pub mod counter;
pub mod held;
pub mod key;
pub mod table;
