//! Builds the XDP object, the same to the byte from any folder, and keeps the committed one honest.
//!
//! It installs what that takes: bpf-linker into `target/tools`, the sources of `core` into the toolchain.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::process;
use crate::rust_src;

const BPF_LINKER: &str = "0.13.0";
const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "gateway-ebpf/prebuilt/gateway.bpf.o";
const SOURCES: &str = "gateway-ebpf/prebuilt/sources.sha256";
const HOW: &str = "run `cargo xtask ebpf` and commit gateway-ebpf/prebuilt";

/// Arguments of `cargo xtask ebpf`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing: fail unless a build gives the committed object, byte for byte.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let sysroot = PathBuf::from(process::output(
        Command::new("rustc").args(["--print", "sysroot"]).current_dir(root),
    )?);
    rust_src::install(root, &sysroot)?;
    let linker = install_linker(root, &sysroot)?;
    let object = build(root, &sysroot, &linker)?;
    let sources = source_hashes(root)?;
    if args.check { check(root, &object, &sources) } else { write(root, &object, &sources) }
}

fn write(root: &Path, object: &[u8], sources: &str) -> Result<()> {
    for (path, content) in [(OBJECT, object), (SOURCES, sources.as_bytes())] {
        let path = root.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{OBJECT}: {} bytes", object.len());
    Ok(())
}

fn check(root: &Path, object: &[u8], sources: &str) -> Result<()> {
    let committed = fs::read(root.join(OBJECT)).with_context(|| format!("no {OBJECT}: {HOW}"))?;
    check_sources(root, sources)?;
    if committed != object {
        let at = committed.iter().zip(object).position(|(old, new)| old != new);
        bail!(
            "{OBJECT} is not what its sources build: {} bytes committed, {} built, first difference at {}: {HOW}",
            committed.len(),
            object.len(),
            at.unwrap_or(committed.len().min(object.len())),
        );
    }
    println!("{OBJECT} is what its sources build, all {} bytes", object.len());
    Ok(())
}

fn check_sources(root: &Path, sources: &str) -> Result<()> {
    let committed =
        fs::read_to_string(root.join(SOURCES)).with_context(|| format!("no {SOURCES}: {HOW}"))?;
    let changed = sources.lines().find(|line| !committed.lines().any(|old| old == *line));
    match changed.and_then(|line| line.split("  ").nth(1)) {
        Some(path) => bail!("{path} changed after {OBJECT} was built: {HOW}"),
        None if committed != sources => bail!("a source of {OBJECT} was removed: {HOW}"),
        None => Ok(()),
    }
}

/// One line a source, as `sha256sum` prints and checks them.
fn source_hashes(root: &Path) -> Result<String> {
    let mut paths: Vec<PathBuf> = [
        "gateway-common/Cargo.toml",
        "gateway-ebpf/Cargo.lock",
        "gateway-ebpf/Cargo.toml",
        "rust-toolchain.toml",
    ]
    .map(PathBuf::from)
    .into();
    for folder in ["gateway-common/src", "gateway-ebpf/src"] {
        collect_sources(root, Path::new(folder), &mut paths)?;
    }
    paths.sort();
    let mut lines = String::new();
    for path in paths {
        let content = fs::read(root.join(&path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        for byte in Sha256::digest(&content) {
            lines.push_str(&format!("{byte:02x}"));
        }
        lines.push_str(&format!("  {}\n", path.display()));
    }
    Ok(lines)
}

fn collect_sources(root: &Path, folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect_sources(root, &path, paths)?;
        } else if entry.file_name() != "tests.rs" {
            paths.push(path);
        }
    }
    Ok(())
}

/// bpf-linker needs the LLVM that the compiler has, and the compiler brings it along.
fn install_linker(root: &Path, sysroot: &Path) -> Result<PathBuf> {
    let tools = root.join("target/tools");
    let linker = tools.join("bin/bpf-linker");
    let installed = process::output(Command::new(&linker).arg("--version")).unwrap_or_default();
    if installed.split(' ').nth(1) == Some(BPF_LINKER) {
        return Ok(linker);
    }
    let llvm = fs::read_dir(sysroot.join("lib"))?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with("libLLVM.so."))
        .with_context(|| format!("no libLLVM.so in {}/lib", sysroot.display()))?;
    let prefix = tools.join("llvm");
    fs::create_dir_all(prefix.join("lib"))?;
    for name in ["libLLVM.so".into(), llvm.file_name()] {
        let link = prefix.join("lib").join(name);
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link)?;
        }
        std::os::unix::fs::symlink(llvm.path(), link)?;
    }
    println!("installing bpf-linker {BPF_LINKER} into target/tools");
    process::run(
        Command::new("cargo")
            .args(["install", "--quiet", "--locked", "--force", "bpf-linker"])
            .args(["--version", BPF_LINKER, "--no-default-features", "--features", "llvm-22"])
            .arg("--root")
            .arg(&tools)
            .env("LLVM_PREFIX", prefix)
            .current_dir(root),
    )?;
    Ok(linker)
}

fn build(root: &Path, sysroot: &Path, linker: &Path) -> Result<Vec<u8>> {
    let folder = root.join("gateway-ebpf");
    let target = folder.join("target");
    process::run(
        Command::new("cargo")
            .args(["build", "--quiet", "--locked", "--release"])
            .args(["--target", TARGET, "-Z", "build-std=core"])
            .arg("--target-dir")
            .arg(&target)
            .current_dir(&folder)
            // The stable compiler has `build-std` and the atomics of the target, behind its own door.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags(root, sysroot, linker)?)
            .env_remove("RUSTFLAGS"),
    )?;
    let linked = target.join(TARGET).join("release/gateway");
    let object = target.join("gateway.bpf.o");
    let rust_objcopy = fs::read_dir(sysroot.join("lib/rustlib"))?
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("bin/rust-objcopy"))
        .find(|path| path.exists())
        .context("the toolchain has no rust-objcopy")?;
    // Type information for the kernel is made by now; the debug information that it was made from is four fifths.
    process::run(
        Command::new(rust_objcopy)
            .arg("--strip-debug")
            .args([&linked, &object])
            .env("LD_LIBRARY_PATH", sysroot.join("lib")),
    )?;
    fs::read(&object).with_context(|| format!("cannot read {}", object.display()))
}

/// Flags separated as cargo wants them. No path of this machine gets into the object.
fn rustflags(root: &Path, sysroot: &Path, linker: &Path) -> Result<String> {
    let cargo_home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => std::env::home_dir().context("no home folder")?.join(".cargo"),
    };
    Ok([
        "-Ctarget-cpu=v3".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Packet headers lie at odd addresses; the kernel's own programs read them whole all the same.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        format!("-Clinker={}", linker.display()),
        format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
        format!("--remap-path-prefix={}=/rust", sysroot.display()),
        format!("--remap-path-prefix={}=/gateway", root.display()),
    ]
    .join("\x1f"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_object_was_built_from_these_sources() {
        let root = crate::root();
        assert!(root.join(OBJECT).exists(), "no {OBJECT}: {HOW}");
        check_sources(&root, &source_hashes(&root).unwrap()).unwrap();
    }
}
