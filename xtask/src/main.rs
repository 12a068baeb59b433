//! Developer verbs: `cargo xtask <verb>`, one file each. They own no part of the product.

mod bench;
mod ebpf;
mod fuzz;
mod lab;
mod process;
mod release;
mod rust_src;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;

/// Developer verbs of the gateway.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Verb {
    /// Measure a door beside its peers.
    Bench(bench::Args),
    /// Build the XDP object and write it, with the hashes of its sources, to gateway-ebpf/prebuilt.
    Ebpf(ebpf::Args),
    /// Build every fuzz target and run each for a few seconds.
    Fuzz(fuzz::Args),
    /// Show both doors at work, second by second, in a lab of four hosts (root).
    Lab(lab::Args),
    /// Build the gateway as it is deployed: by the profile of a load on this machine.
    Release,
    /// Run every test; as root also the kernel tests.
    Test(test::Args),
    /// Check import edges, budgets, links and paths.
    Tidy,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let root = root();
    match Verb::parse() {
        Verb::Bench(args) => bench::run(&root, &args),
        Verb::Ebpf(args) => ebpf::run(&root, &args),
        Verb::Fuzz(args) => fuzz::run(&root, &args),
        Verb::Lab(args) => lab::run(&root, &args),
        Verb::Release => release::run(&root),
        Verb::Test(args) => test::run(&root, &args),
        Verb::Tidy => tidy::run(&root),
    }
}

fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// Where cargo builds.
fn target(root: &Path) -> PathBuf {
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The cargo that runs this.
fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}
