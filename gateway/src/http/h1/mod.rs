//! HTTP/1 (RFC 9112) towards clients and services: strict readers, and connections that are driven by the one task of
//! the client's connection. What could be read in two ways is refused, never repaired; docs/decisions/http1-codec.md
//! says why it is our own.
//!
//! ```text
//!            Input ─▶ head, Decoder ─▶ request ─▶ Client: encode, Pump ─▶ Output ─▶ endpoint
//!   client ─┤ Server                                                                    │
//!            Output ◀─ encode, Pump ◀─ answer ◀─ Client: head, Decoder ◀─ Input ◀─────────┘
//! ```

pub mod chunked;
pub mod client;
pub mod decoder;
mod encode;
pub mod head;
mod input;
mod output;
mod pump;
pub mod request_stream;
pub mod server;
pub mod upgrade;

pub use self::encode::date_value;
