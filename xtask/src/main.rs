//! Developer verbs: `cargo xtask <verb>`, one file each.

mod ebpf;
mod fuzz;
mod process;
mod rust_src;

use std::path::{Path, PathBuf};

use clap::Parser;

/// Developer verbs of the gateway.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Verb {
    /// Build the XDP object and write it, with the hashes of its sources, to gateway-ebpf/prebuilt.
    Ebpf(ebpf::Args),
    /// Build every fuzz target and run each for a few seconds.
    Fuzz(fuzz::Args),
}

fn main() -> anyhow::Result<()> {
    let root = root();
    match Verb::parse() {
        Verb::Ebpf(args) => ebpf::run(&root, &args),
        Verb::Fuzz(args) => fuzz::run(&root, &args),
    }
}

fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}
