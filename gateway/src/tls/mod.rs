//! TLS: certificates as they are read and kept fresh, and what is agreed on with the other side of a connection. Opens
//! no connection and changes no file.

pub mod authorities;
pub mod client;
mod names;
pub mod pair;
pub mod server;
pub mod session;
pub mod store;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// The one provider of cryptography, with its post-quantum key exchange first.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
