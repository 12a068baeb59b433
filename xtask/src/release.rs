//! `cargo xtask release`: the gateway as it is deployed. It is built once with counters in it, loaded with a bit of
//! everything on loopback, and built again by what was counted, so that what is taken often lies together and what is
//! not is out of the way. [What that is worth](../../docs/decisions/profile-guided-build.md).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{bench, process, test};

/// Debian's package of a tool that reads what the compiler's counters write, if the toolchain has none.
const PROFDATA: (&str, &str) = ("llvm-profdata-19", "llvm-19");

pub(crate) fn run(root: &Path) -> Result<()> {
    let host = rustc(&["--print", "host-tuple"])?;
    let merge = profdata(&host)?;
    let folder = crate::target(root).join("dist");
    fs::create_dir_all(&folder)?;
    let [profile, gateway] = ["gateway.profdata", "gateway"].map(|name| folder.join(name));

    println!("1 of 3: a build that counts what it does");
    // Where it writes is said to it when it is started.
    let counting = build(root, &folder.join("counting"), &host, "-Cprofile-generate".to_owned())?;
    println!("2 of 3: a minute of load on loopback");
    let mut merging = Command::new(merge);
    merging.args(["merge", "-o"]).arg(&profile);
    for (number, counted) in bench::train(&counting)?.into_iter().enumerate() {
        let raw = folder.join(format!("gateway-{number}.profraw"));
        fs::write(&raw, counted)?;
        merging.arg(raw);
    }
    process::output(&mut merging)?;
    println!("3 of 3: a build by what was counted");
    let by_profile = format!("-Cprofile-use={}", profile.display());
    let built = build(root, &folder.join("build"), &host, by_profile)?;
    // By one rename, for somebody may run the old one.
    let partial = folder.join("gateway.partial");
    fs::copy(&built, &partial)?;
    fs::rename(&partial, &gateway)?;
    println!("{}", gateway.display());
    Ok(())
}

/// Builds the gateway with one flag more. The target is named, so that the scripts of its build are built without.
fn build(root: &Path, folder: &Path, host: &str, flag: String) -> Result<PathBuf> {
    let mut cargo = crate::cargo(root);
    cargo.args(["build", "--release", "--locked", "--package", "gateway", "--target", host]);
    cargo.arg("--target-dir").arg(folder);
    // A function that was never called has no counts, which is no trouble.
    let flags = [flag, "-Cllvm-args=-pgo-warn-missing-function=false".to_owned()];
    process::run(cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")))?;
    Ok(folder.join(host).join("release/gateway"))
}

/// The toolchain's own, if `rustup component add llvm-tools` was called, else Debian's.
fn profdata(host: &str) -> Result<PathBuf> {
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?);
    let own = sysroot.join("lib/rustlib").join(host).join("bin/llvm-profdata");
    if own.exists() {
        return Ok(own);
    }
    let (program, package) = PROFDATA;
    test::provide(program, package, nix::unistd::geteuid().is_root())
        .context("or `rustup component add llvm-tools`")?;
    Ok(program.into())
}

fn rustc(arguments: &[&str]) -> Result<String> {
    process::output(Command::new("rustc").args(arguments))
}
