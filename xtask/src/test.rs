//! `cargo xtask test`: every test, counted. Kernel tests (test binaries named `kernel_*`) run as root; elsewhere they
//! are skipped loudly, and with CI=true a skip is a failure. It never passes what has not run.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::process;

const KERNEL: &str = "kernel_";

/// What the tests call, and the Debian package that has it.
const TOOLS: [(&str, &str); 11] = [
    ("ip", "iproute2"),
    ("strace", "strace"),
    ("curl", "curl"),
    ("h2load", "nghttp2-client"),
    ("nghttpd", "nghttp2-server"),
    ("wrk", "wrk"),
    ("/usr/lib/python3/dist-packages/grpc/__init__.py", "python3-grpcio"),
    ("systemd-analyze", "systemd"),
    ("chromium", "chromium"),
    ("redis-server", "redis-server"),
    ("fail2ban-server", "fail2ban"),
];

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose names contain this
    filter: Option<String>,
}

/// Tests by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

pub(crate) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let is_root = nix::unistd::geteuid().is_root();
    for (program, package) in TOOLS {
        provide(program, package, is_root)?;
    }
    process::run(crate::cargo(root).args(["build", "--locked", "-p", "gateway"]))?;

    let tests = integration_tests(root)?;
    let (kernel, plain): (Vec<_>, Vec<_>) =
        tests.into_iter().partition(|name| name.starts_with(KERNEL));
    let mut runs: Vec<Vec<String>> = vec![
        ["--lib", "--bins"].map(str::to_owned).into_iter().chain(selected(&plain)).collect(),
        vec!["--doc".to_owned()],
    ];
    if is_root && !kernel.is_empty() {
        runs.push(selected(&kernel).collect());
    }
    let mut total = Tally::default();
    for run in runs {
        let tally = cargo_test(root, &run, args.filter.as_deref())?;
        total.passed += tally.passed;
        total.failed += tally.failed;
        total.skipped += tally.skipped;
    }
    if !is_root && !kernel.is_empty() {
        let count = count(root, &kernel, args.filter.as_deref())?;
        eprintln!(
            "\nSKIPPED: {count} kernel tests ({}) did not run. They need root for namespaces and \
             XDP: run `cargo xtask test` as root.\n",
            kernel.join(", ")
        );
        total.skipped += count;
    }
    println!("{}", summary(total));
    ensure!(total.failed == 0, "{} failed", total.failed);
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    ensure!(total.skipped == 0 || !in_ci, "with CI=true a skipped test is a failure");
    Ok(())
}

fn summary(total: Tally) -> String {
    let Tally { passed, failed, skipped } = total;
    format!("{passed} passed, {failed} failed, {skipped} skipped")
}

/// Finds a program or, as root, installs it.
pub(crate) fn provide(program: &str, package: &str, is_root: bool) -> anyhow::Result<()> {
    if found(program) {
        return Ok(());
    }
    if !is_root {
        bail!("the tests need {program}; install it: apt-get install {package}");
    }
    eprintln!("installing {package} for {program}");
    for arguments in
        [&["update", "-q"][..], &["install", "-q", "-y", "--no-install-recommends", package]]
    {
        let mut apt = Command::new("apt-get");
        // In the first runlevel no package starts what it installs (invoke-rc.d(8)).
        apt.env("RUNLEVEL", "1");
        process::run(apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
            .with_context(|| format!("install {package} for {program}"))?;
    }
    ensure!(found(program), "{program} is still missing after installing {package}");
    Ok(())
}

/// Whether a program is installed.
pub(crate) fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Servers are where only root looks.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders.into_iter().any(|folder| folder.join(program).is_file())
}

/// The names of all integration tests of the workspace.
fn integration_tests(root: &Path) -> anyhow::Result<Vec<String>> {
    let metadata = process::output(crate::cargo(root).args([
        "metadata",
        "--locked",
        "--no-deps",
        "--format-version",
        "1",
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let list = |value: &Value, key: &str| -> Vec<Value> {
        value.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let targets = list(&metadata, "packages").into_iter().flat_map(|p| list(&p, "targets"));
    let tests = targets.filter(|target| list(target, "kind").iter().any(|kind| kind == "test"));
    let mut names: Vec<String> = tests
        .filter_map(|target| target.get("name").and_then(Value::as_str).map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

fn selected(names: &[String]) -> impl Iterator<Item = String> {
    names.iter().flat_map(|name| ["--test".to_owned(), name.clone()])
}

fn test_command(root: &Path, selection: &[String]) -> Command {
    let mut command = crate::cargo(root);
    // The whole workspace in every run, so that features unify alike and nothing is compiled twice.
    command
        .args(["test", "--workspace", "--locked", "--no-fail-fast"])
        .args(selection)
        .env("GATEWAY_BIN", crate::target(root).join("debug/gateway"));
    command
}

/// Runs `cargo test`, shows what it says and adds up what it counted.
fn cargo_test(root: &Path, selection: &[String], filter: Option<&str>) -> anyhow::Result<Tally> {
    let mut command = test_command(root, selection);
    command.arg("--").args(filter).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut tally = Tally::default();
    let stdout = child.stdout.take().context("cargo has no standard output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        if let Some(one) = parse_result(&line) {
            tally.passed += one.passed;
            tally.failed += one.failed;
            tally.skipped += one.skipped;
        }
    }
    if !child.wait()?.success() && tally.failed == 0 {
        // A test that does not compile or that a signal ended has no line of its own.
        tally.failed = 1;
    }
    Ok(tally)
}

/// How many tests a run would have.
fn count(root: &Path, names: &[String], filter: Option<&str>) -> anyhow::Result<usize> {
    let selection: Vec<String> = selected(names).collect();
    let listing = process::output(
        test_command(root, &selection).args(["--", "--list", "--format", "terse"]).args(filter),
    )?;
    Ok(listing.lines().filter(|line| line.ends_with(": test")).count())
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn parse_result(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut tally = Tally::default();
    for part in counts.split(';') {
        let Some((number, word)) = part.trim().split_once(' ') else { continue };
        let field = match word {
            "passed" => &mut tally.passed,
            "failed" => &mut tally.failed,
            "ignored" => &mut tally.skipped,
            _ => continue,
        };
        *field = number.parse().ok()?;
    }
    Some(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_read_and_others_are_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; \
                    4 filtered out; finished in 0.10s";
        assert_eq!(parse_result(line), Some(Tally { passed: 12, failed: 3, skipped: 1 }));
        assert_eq!(parse_result("test tests::result ... ok"), None);
        assert_eq!(parse_result("test result: nonsense"), None);
    }

    #[test]
    fn the_summary_is_one_line() {
        let total = Tally { passed: 5, failed: 0, skipped: 2 };
        assert_eq!(summary(total), "5 passed, 0 failed, 2 skipped");
    }
}
