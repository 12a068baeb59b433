//! `audit`: where changes are written down.

use std::path::{Path, PathBuf};

use super::at::At;
use super::raw::RawAudit;
use super::value::{absolute_path, size};

const AUDIT_FILE: &str = "audit.jsonl";
/// What the file is called in `state.dir`, and the one before it.
pub const AUDIT_FILES: [&str; 2] = [AUDIT_FILE, "audit.jsonl.1"];

/// Where changes are written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// A file that is appended to.
    pub path: PathBuf,
    /// One that is as large is put aside as `PATH.1`.
    pub max_bytes: u64,
}

pub(super) fn audit(raw: &RawAudit, state: &Path, at: At<'_>) -> Audit {
    let path = raw.path.as_ref().and_then(|path| absolute_path(path, at.key("path")));
    let bounds = 64 * 1024..=1 << 40;
    Audit {
        path: path.unwrap_or_else(|| state.join(AUDIT_FILE)),
        max_bytes: size(&raw.max_size, bounds, at.key("max_size")).unwrap_or_default(),
    }
}
