//! `cargo xtask bench kernel`.

use std::path::Path;

use super::Args;

pub(super) fn run(_root: &Path, _args: &Args) -> anyhow::Result<()> {
    anyhow::bail!("the kernel bench is being written")
}
