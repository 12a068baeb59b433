//! Builds every target in `fuzz/fuzz_targets` with coverage on the stable compiler and runs each for a few seconds.
//!
//! What it finds stays in `fuzz/artifacts`; what it learned, in `fuzz/corpus` for the next time.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds for each target.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
}

/// What cargo-fuzz would pass, without the sanitizers that only the nightly compiler has.
const RUSTFLAGS: [&str; 9] = [
    "--cfg=fuzzing",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "-Ccodegen-units=1",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let fuzz = root.join("fuzz");
    let names = targets(&fuzz)?;
    let host = process::output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    process::run(
        Command::new("cargo")
            .args(["build", "--quiet", "--locked", "--release", "--bins"])
            // Named, so that the flags do not reach build scripts, which have no fuzzer to link to.
            .args(["--target", &host])
            .arg("--target-dir")
            .arg(fuzz.join("target"))
            .current_dir(&fuzz)
            .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"))
            .env_remove("RUSTFLAGS"),
    )?;
    let binaries = fuzz.join("target").join(host).join("release");
    let mut crashed = Vec::new();
    for name in names {
        if !run_target(&fuzz, &binaries, &name, args.seconds)? {
            crashed.push(name);
        }
    }
    if !crashed.is_empty() {
        bail!("crashed: {}; the inputs are in fuzz/artifacts", crashed.join(", "));
    }
    Ok(())
}

fn targets(fuzz: &Path) -> Result<Vec<String>> {
    let folder = fuzz.join("fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))? {
        let path = entry?.path();
        if let Some(name) = path.file_stem().filter(|_| path.extension() == Some("rs".as_ref())) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn run_target(fuzz: &Path, binaries: &Path, name: &str, seconds: u32) -> Result<bool> {
    let corpus = fuzz.join("corpus").join(name);
    let artifacts = fuzz.join("artifacts").join(name);
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let output = Command::new(binaries.join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"])
        .arg(&corpus)
        .output()
        .with_context(|| format!("cannot start the fuzz target {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let figure = |after: &str| {
        let line = said.lines().rev().find_map(|line| line.split_once(after))?.1;
        line.split_whitespace().next().map(str::to_owned)
    };
    let runs = figure("stat::number_of_executed_units:").unwrap_or_default();
    let covered = figure(" cov:").unwrap_or_default();
    if output.status.success() {
        println!("{name}: {runs} runs in {seconds} s, {covered} edges, no crash");
    } else {
        println!("{name}: crashed after {runs} runs\n{said}");
    }
    Ok(output.status.success())
}
