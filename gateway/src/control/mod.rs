//! The only place where objects are wired: start, reload, signals, shutdown.

pub mod policy;
pub mod privileges;
pub mod protect;
pub mod views;
