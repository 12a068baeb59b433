//! The sources of `core`, without which it cannot be compiled for the kernel's virtual machine.
//!
//! They come from rustup or, where its server is out of reach, from Debian's package of the very same version, through
//! the mirror that the machine's own apt sources name. apt keeps its lists and its state in a folder of `target/tools`,
//! so that nothing on the machine changes but the toolchain.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// The Debian release whose packages of Rust keep pace with it.
const SUITE: &str = "trixie-backports";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const HOW: &str = "install it with `rustup component add rust-src`";

/// Puts the sources into the toolchain, if they are not there.
pub(crate) fn install(root: &Path, sysroot: &Path) -> Result<()> {
    let library = sysroot.join("lib/rustlib/src/rust/library");
    if library.join("core/src/lib.rs").exists() {
        return Ok(());
    }
    println!("installing rust-src into {}", sysroot.display());
    let rustup = Command::new("rustup").args(["component", "add", "rust-src"]).output();
    if rustup.is_ok_and(|output| output.status.success()) && library.exists() {
        return Ok(());
    }
    let sources = from_debian(root).with_context(|| format!("no rust-src: {HOW}"))?;
    let parent = library.parent().context("the toolchain has no folder")?;
    fs::create_dir_all(parent)?;
    // Into place by one rename: a copy that is cut off must not look like the whole.
    let partial = parent.join("library.partial");
    process::run(Command::new("cp").arg("-r").arg("--").args([&sources, &partial]))?;
    fs::rename(&partial, &library)
        .with_context(|| format!("cannot put rust-src into {}", library.display()))
}

/// The folder of the unpacked package that holds `core`.
fn from_debian(root: &Path) -> Result<PathBuf> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let field = |name: &str| {
        let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim_matches('"'))
    };
    let (Some("debian"), Some(codename)) = (field("ID"), field("VERSION_CODENAME")) else {
        bail!("not a Debian machine");
    };
    let mirror = mirror(&apt_sources()?, codename)
        .with_context(|| format!("the apt sources name no mirror of {codename}"))?;
    let version = version(root)?;
    let folder = root.join("target/tools/apt");
    fs::create_dir_all(folder.join("lists/partial"))?;
    fs::create_dir_all(folder.join("cache/archives/partial"))?;
    fs::write(folder.join("status"), "")?;
    let Mirror { uri, keyring } = mirror;
    let keyring = keyring.unwrap_or_else(|| KEYRING.to_owned());
    let line = format!("deb [signed-by={keyring}] {uri} {SUITE} main\n");
    fs::write(folder.join("sources.list"), line)?;
    process::output(apt(&folder).arg("update"))?;
    process::output(apt(&folder).args(["download", &format!("rust-src={version}*")]))?;
    let package = fs::read_dir(&folder)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt downloaded no package")?;
    let unpacked = folder.join("unpacked");
    process::output(Command::new("dpkg-deb").arg("-x").args([&package, &unpacked]))?;
    Ok(unpacked.join(format!("usr/src/rustc-{version}/library")))
}

fn apt(folder: &Path) -> Command {
    let mut command = Command::new("apt-get");
    let path = folder.display();
    for option in [
        format!("Dir::Etc::sourcelist={path}/sources.list"),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State={path}"),
        format!("Dir::Cache={path}/cache"),
        format!("Dir::State::status={path}/status"),
        // Its unprivileged user may not write below a home folder.
        "APT::Sandbox::User=".to_owned(),
    ] {
        command.args(["-o", &option]);
    }
    command.current_dir(folder);
    command
}

/// The version that the toolchain file pins.
fn version(root: &Path) -> Result<String> {
    let toolchain = fs::read_to_string(root.join("rust-toolchain.toml"))?;
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = "));
    Ok(channel.context("rust-toolchain.toml names no channel")?.trim_matches('"').to_owned())
}

fn apt_sources() -> Result<String> {
    let mut text = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        for entry in folder {
            text.push_str("\n\n");
            text.push_str(&fs::read_to_string(entry?.path()).unwrap_or_default());
        }
    }
    Ok(text)
}

#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    uri: String,
    keyring: Option<String>,
}

/// The mirror of the release `codename` in apt's sources, of either format: one line an entry, or stanzas of fields.
fn mirror(sources: &str, codename: &str) -> Option<Mirror> {
    sources.split("\n\n").find_map(|stanza| {
        stanza.lines().find_map(|line| mirror_of_line(line, codename)).or_else(|| {
            let field = |name: &str| {
                stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            };
            field("Suites")?.split_whitespace().find(|suite| *suite == codename)?;
            Some(Mirror {
                uri: field("URIs")?.split_whitespace().next()?.to_owned(),
                keyring: field("Signed-By").map(str::trim).and_then(keyring),
            })
        })
    })
}

fn mirror_of_line(line: &str, codename: &str) -> Option<Mirror> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let uri = words.next()?.to_owned();
    words.next().filter(|suite| *suite == codename)?;
    let signed_by = options.split_whitespace().find_map(|word| word.strip_prefix("signed-by="));
    Some(Mirror { uri, keyring: signed_by.and_then(keyring) })
}

/// Only a file: a key written into the stanza itself has lines of its own.
fn keyring(value: &str) -> Option<String> {
    value.starts_with('/').then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(uri: &str, keyring: Option<&str>) -> Option<Mirror> {
        Some(Mirror { uri: uri.to_owned(), keyring: keyring.map(str::to_owned) })
    }

    #[test]
    fn a_mirror_is_found_in_either_format_and_in_no_foreign_source() {
        let foreign = "deb https://packages.example.org/apt sdk-bookworm main\n\n";
        let stanza = "Types: deb\nURIs: http://mirror.example.net/debian\n\
                      Suites: bookworm bookworm-updates\nSigned-By: /k.gpg\n";
        let line =
            "# a comment\ndeb [arch=amd64 signed-by=/l.gpg] http://m.example.net/d bookworm main";
        let plain = "deb http://m.example.net/d bookworm main contrib";
        let expected = found("http://mirror.example.net/debian", Some("/k.gpg"));
        assert_eq!(mirror(&format!("{foreign}{stanza}"), "bookworm"), expected);
        assert_eq!(mirror(line, "bookworm"), found("http://m.example.net/d", Some("/l.gpg")));
        assert_eq!(mirror(plain, "bookworm"), found("http://m.example.net/d", None));
        assert_eq!(mirror(foreign, "bookworm"), None);
    }
}
