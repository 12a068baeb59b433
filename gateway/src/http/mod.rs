//! What HTTP asks of anything that stands in the middle: header fields that are for one hop only, who the client is,
//! which trace a request belongs to, how long anybody may be waited for, and the one mapping from errors to answers.

pub mod body;
pub mod deadline;
pub mod forwarded;
pub mod grpc;
pub mod h1;
pub mod headers;
pub mod lifetime;
mod pace;
pub mod problem;
pub mod proxy_protocol;
pub mod replay;
pub mod socket;
pub mod trace_context;
pub mod unread;
