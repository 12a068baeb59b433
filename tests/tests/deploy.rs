//! What is deployed fits the binary that it starts, and the service manager that reads it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use harness::Result;
use harness::gateway::built;

const INSTALLED: &str = "/usr/bin/gateway";

fn deployed(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path);
    fs::read_to_string(&path).with_context(|| format!("{path:?}"))
}

/// A folder that ends with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let path =
            std::env::temp_dir().join(format!("gateway-deploy-{}-{name}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{:?} stays behind: {error}", self.0);
        }
    }
}

/// systemd's own word on a unit, after `change`.
fn verify(name: &str, change: impl Fn(&str) -> String) -> Result<(bool, String)> {
    let folder = Folder::new(name)?;
    let unit = folder.0.join("gateway.service");
    let text = deployed("systemd/gateway.service")?;
    let binary = built()?;
    let text = text.replace(INSTALLED, binary.to_str().context("a path is not text")?);
    fs::write(&unit, change(&text))?;
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&unit)
        .output()
        .context("systemd-analyze is missing; `cargo xtask test` installs it")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.success() && said.trim().is_empty(), said))
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() -> Result {
    let (fine, said) = verify("as-it-is", str::to_owned)?;
    assert!(fine, "{said}");
    let socket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/gateway.socket");
    let folder = Folder::new("socket")?;
    fs::copy(socket, folder.0.join("gateway.socket"))?;
    fs::write(folder.0.join("gateway.service"), "[Service]\nExecStart=/bin/true\n")?;
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(folder.0.join("gateway.socket"))
        .output()?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let (fine, said) = verify("upgrade", |unit| {
        let dropped_in = deployed("systemd/upgrade.conf").unwrap_or_default();
        [unit, &dropped_in.replace(INSTALLED, "/bin/true")].concat()
    })?;
    assert!(fine, "{said}");
    let (fine, said) = verify("mistaken", |unit| unit.replace("ReadWritePaths=", "WritePaths="))?;
    assert!(!fine, "it would say so: {said}");
    Ok(())
}

/// The commands of the unit are asked for help with the arguments that they have: one that is unknown is an error.
#[test]
fn the_binary_takes_the_arguments_of_the_unit() -> Result {
    let units = [deployed("systemd/gateway.service")?, deployed("systemd/upgrade.conf")?].concat();
    let commands: Vec<&str> = units
        .lines()
        .filter_map(|line| line.strip_prefix("Exec")?.split_once('='))
        .map(|(_, command)| command.trim_start_matches(['!', '+']))
        .filter(|command| !command.is_empty())
        .collect();
    assert_eq!(commands.len(), 3, "{commands:?}");
    for command in commands {
        let arguments = command.strip_prefix(INSTALLED).with_context(|| command.to_owned())?;
        let asked =
            Command::new(built()?).args(arguments.split_whitespace()).arg("--help").output()?;
        ensure!(asked.status.success(), "{command}: {}", String::from_utf8_lossy(&asked.stderr));
    }
    Ok(())
}

/// Rules before the network: what the order stands on.
#[test]
fn the_network_waits_for_the_rules() -> Result {
    let unit = deployed("systemd/gateway.service")?;
    for line in ["Type=notify", "Wants=network-pre.target", "DefaultDependencies=no"] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    let before = unit.lines().find_map(|line| line.strip_prefix("Before=")).unwrap_or_default();
    assert!(before.split(' ').any(|target| target == "network-pre.target"), "{before}");
    Ok(())
}
