//! `cargo xtask bench proxy`.

use std::path::Path;

use super::Args;

pub(super) fn run(_root: &Path, _args: &Args) -> anyhow::Result<()> {
    anyhow::bail!("the proxy bench is being written beside this one")
}
