//! What a route makes of requests and answers: other targets, answers of its own, header fields.

pub mod answer;
pub mod fields;
pub mod target;
