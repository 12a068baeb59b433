//! The rule set: who made which rule, which of them wins, and until when.

pub mod classify;
