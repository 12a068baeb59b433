//! fail2ban itself with the action of `deploy/`: what it finds in a log the gateway bans, and what it takes back is
//! free again. It has a folder of its own, with its socket and its database.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::bans;
use harness::gateway::{Gateway, built};
use harness::idp::now;
use harness::site::Site;
use harness::{Result, wait_for};
use serde_json::{Value, json};
use tempfile::TempDir;

const ACTION: &str = include_str!("../../deploy/fail2ban/gateway.conf");
/// It looks at logs about once a second, and Python takes its time to start.
const PATIENCE: Duration = Duration::from_secs(60);
const TRIES: usize = 3;

/// As root the gateway is started by root, as fail2ban is.
fn gateway(site: &Site) -> Result<Gateway<'_>> {
    let listen = site.free_address()?;
    let config = json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 1,
        "kernel": {"attach": "off", "never_block": ["198.51.100.17"]},
        "routes": [{"match": {"path": "/{rest*}"}, "respond": {"status": 204}}],
    });
    let mut gateway = match &site.namespace {
        Some(namespace) => Gateway::new(namespace, config)?,
        None => Gateway::unprivileged(None, config)?,
    };
    gateway.start()?;
    Ok(gateway)
}

/// The server of fail2ban with one jail.
struct Fail2ban {
    folder: TempDir,
    server: Child,
}

impl Fail2ban {
    fn start(gateway: &Gateway<'_>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for name in ["action.d", "filter.d", "jail.d"] {
            fs::create_dir(folder.path().join(name))?;
        }
        let at = |name: &str| folder.path().join(name).display().to_string();
        let own = format!("{} --socket {}", built()?.display(), gateway.socket().display());
        let files = [
            ("action.d/gateway.conf", ACTION.to_owned()),
            (
                "filter.d/api.conf",
                "[Definition]\nfailregex = ^ refused <HOST>$\ndatepattern = ^EPOCH\n".to_owned(),
            ),
            (
                "jail.conf",
                format!(
                    "[api]\nenabled = true\nfilter = api\nbackend = polling\nlogpath = {}\n\
                     maxretry = {TRIES}\nfindtime = 1h\nbantime = 2h\nusedns = no\n\
                     ignoreself = false\naction = gateway[name=api, gateway=\"{own}\"]\n",
                    at("log"),
                ),
            ),
            (
                "fail2ban.conf",
                format!(
                    "[Definition]\nloglevel = INFO\nlogtarget = {}\nsyslogsocket = auto\n\
                     socket = {}\npidfile = {}\ndbfile = {}\ndbpurgeage = 1d\nallowipv6 = auto\n",
                    at("messages"),
                    at("socket"),
                    at("pid"),
                    at("database"),
                ),
            ),
            ("log", String::new()),
        ];
        for (name, text) in files {
            fs::write(folder.path().join(name), text)?;
        }
        let server = Command::new("fail2ban-server")
            .args(arguments(&folder))
            .args(["-f", "start"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start fail2ban-server: install fail2ban")?;
        let fail2ban = Self { folder, server };
        wait_for("the jail", PATIENCE, || {
            Ok(fail2ban.ask(&["status", "api"])?.status.success().then_some(()))
        })
        .with_context(|| fail2ban.messages())?;
        Ok(fail2ban)
    }

    /// What `fail2ban-client` answers.
    fn ask(&self, command: &[&str]) -> Result<Output> {
        Ok(Command::new("fail2ban-client").args(arguments(&self.folder)).args(command).output()?)
    }

    fn done(&self, command: &[&str]) -> Result {
        let output = self.ask(command)?;
        ensure!(output.status.success(), "{command:?}: {output:?}\n{}", self.messages());
        Ok(())
    }

    /// Somebody is refused so often that it is too much.
    fn refused(&self, address: &str) -> Result {
        let mut log = File::options().append(true).open(self.folder.path().join("log"))?;
        for _ in 0..TRIES {
            writeln!(log, "{} refused {address}", now())?;
        }
        Ok(())
    }

    fn messages(&self) -> String {
        fs::read_to_string(self.folder.path().join("messages")).unwrap_or_default()
    }
}

impl Drop for Fail2ban {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what fail2ban says\n{}", self.messages());
        }
        // Already ended, or ended by this.
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

fn arguments(folder: &TempDir) -> Vec<PathBuf> {
    let at = |name: &str| folder.path().join(name);
    let own = folder.path().to_owned();
    ["-c".into(), own, "-s".into(), at("socket"), "-p".into(), at("pid")].into()
}

/// Waits until exactly these are banned.
fn until(gateway: &Gateway<'_>, fail2ban: &Fail2ban, wanted: &[&str]) -> Result {
    let mut last = Vec::new();
    let done = wait_for("bans", PATIENCE, || {
        last = bans::prefixes(gateway)?;
        Ok((last == wanted).then_some(()))
    });
    done.with_context(|| format!("{last:?} instead of {wanted:?}\n{}", fail2ban.messages()))
}

#[test]
fn whom_fail2ban_finds_in_a_log_the_gateway_bans_until_it_is_taken_back() -> Result {
    let site = Site::new()?;
    let gateway = gateway(&site)?;
    let mut fail2ban = Fail2ban::start(&gateway)?;
    fail2ban.refused("203.0.113.7")?;
    fail2ban.refused("2001:db8::7")?;
    until(&gateway, &fail2ban, &["203.0.113.7", "2001:db8::7"])?;
    for ban in bans::list(&gateway, &[])? {
        assert_eq!((&ban["author"], &ban["rule"]), (&json!("outside fail2ban"), &json!("api")));
        let lasts = ban["until_utc_ms"].as_u64().zip(ban["made_utc_ms"].as_u64());
        assert_eq!(lasts.map(|(until, made)| until - made), Some(2 * 3600 * 1000), "{ban}");
    }
    fail2ban.done(&["set", "api", "unbanip", "203.0.113.7"])?;
    until(&gateway, &fail2ban, &["2001:db8::7"])?;

    // The guard holds: fail2ban is told that it could not be done, and nobody is banned.
    fail2ban.refused("198.51.100.17")?;
    wait_for("the refusal", PATIENCE, || {
        Ok(fail2ban.messages().contains("never_block").then_some(()))
    })
    .with_context(|| fail2ban.messages())?;
    assert_eq!(bans::prefixes(&gateway)?, ["2001:db8::7"]);

    // What it has banned it takes back when it ends.
    fail2ban.done(&["stop"])?;
    until(&gateway, &fail2ban, &[])?;
    let ended = wait_for("its end", PATIENCE, || Ok(fail2ban.server.try_wait()?))?;
    assert!(ended.success(), "{ended}");
    let whole: Vec<Value> = bans::list(&gateway, &["--held"])?;
    assert!(whole.is_empty(), "{whole:?}");
    Ok(())
}
