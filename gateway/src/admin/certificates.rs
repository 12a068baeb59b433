//! The certificates of listeners, as `gateway status` shows them.

use serde::{Deserialize, Serialize};

use crate::base::time::UtcMillis;

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    /// Where it was read.
    pub file: String,
    /// Its host names.
    pub names: Vec<String>,
    /// When it ends.
    pub not_after: UtcMillis,
}
