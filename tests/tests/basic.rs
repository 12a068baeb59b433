//! Names and passwords through the real binary.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harness::authority::replace;
use harness::gateway::Gateway;
use harness::site::{PATIENCE, Site};
use harness::{Result, wait_for};
use serde_json::{Value, json};

/// Of `password`, from the tests of the reference implementation of argon2.
const ARGON2ID: &str =
    "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
/// Of `secret`, by crypt(3).
const BCRYPT: &str = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";
/// Of `secret` too, and it takes most of a second.
const COSTLY: &str = "$2b$14$abcdefghijklmnopqrstuug2/T3netL3BPRcnafSaAr9lEfTNoLyC";

struct Setting {
    site: Site,
    listen: SocketAddr,
    _folder: tempfile::TempDir,
    file: PathBuf,
}

impl Setting {
    fn new(users: &str) -> Result<Self> {
        let site = Site::new()?;
        let listen = site.free_address()?;
        let folder = tempfile::tempdir()?;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let file = folder.path().join("users");
        std::fs::write(&file, users)?;
        Ok(Self { site, listen, _folder: folder, file })
    }

    fn gateway(&self, basic: &Value) -> Result<Gateway<'_>> {
        let mut basic = basic.as_object().cloned().unwrap_or_default();
        basic.insert("htpasswd".to_owned(), json!(self.file));
        let config = json!({
            "listen": [{"address": self.listen.to_string()}],
            "workers": 2,
            "kernel": {"attach": "off"},
            "auth": {"admins": {"basic": basic}},
            "upstreams": {"service": {"endpoints": ["echo"]}},
            "routes": [
                {"match": {"path": "/ann"}, "auth": "admins", "require": {"when": "user == 'ann'"},
                 "upstream": "service"},
                {"match": {"path": "/{rest*}"}, "auth": "admins", "upstream": "service"},
            ],
        });
        Gateway::unprivileged(self.site.namespace.as_ref(), config)
    }

    fn ask(&self, path: &str, authorization: &str) -> Result<(u16, Option<String>)> {
        let mut client = self.site.connect(None, self.listen)?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n{authorization}\r\n");
        client.send(request.as_bytes())?;
        let answer = client.receive()?;
        Ok((answer.status, answer.header("www-authenticate").map(str::to_owned)))
    }

    fn status(&self, path: &str, user: &str, password: &str) -> Result<u16> {
        Ok(self.ask(path, &says(user, password))?.0)
    }
}

fn says(user: &str, password: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
}

#[test]
fn the_right_password_opens_and_everything_else_is_a_401_with_a_challenge() -> Result {
    let setting = Setting::new(&format!("ann:{ARGON2ID}\nbob:{BCRYPT}\n"))?;
    let mut gateway = setting.gateway(&json!({"realm": "the office"}))?;
    gateway.start()?;
    for _ in 0..3 {
        assert_eq!(setting.status("/", "ann", "password")?, 200);
        assert_eq!(setting.status("/", "bob", "secret")?, 200);
        assert_eq!(setting.status("/", "bob", "password")?, 401);
        assert_eq!(setting.status("/", "eve", "secret")?, 401);
    }
    assert_eq!(setting.status("/ann", "ann", "password")?, 200);
    assert_eq!(setting.status("/ann", "bob", "secret")?, 403);
    assert_eq!(setting.ask("/", &says("bob", "secret").replace("Basic", "bAsIc"))?.0, 200);
    let mut client = setting.site.connect(None, setting.listen)?;
    client
        .send(format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", says("bob", "secret")).as_bytes())?;
    let seen = client.receive()?.text().to_lowercase();
    assert!(seen.contains("host") && !seen.contains("authorization"), "{seen}");
    let challenge = "Basic realm=\"the office\", charset=\"UTF-8\"";
    let encoded = STANDARD.encode("bob:secret");
    for bad in [
        String::new(),
        "Authorization: Basic\r\n".to_owned(),
        "Authorization: Basic !!!!\r\n".to_owned(),
        format!("Authorization: Basic {}\r\n", encoded.trim_end_matches('=')),
        format!("Authorization: Basic {}\r\n", STANDARD.encode("no colon")),
        says("", "secret"),
        says("bob\0", "secret"),
        says("bob", &"x".repeat(257)),
        says("bob", &"x".repeat(3000)),
        says(&"b".repeat(129), "secret"),
        says("bob", "secret") + &says("bob", "secret"),
    ] {
        let (status, shown) = setting.ask("/", &bad)?;
        assert_eq!((status, shown.as_deref()), (401, Some(challenge)), "{bad}");
    }
    let log = gateway.log();
    assert!(!log.contains("$argon2id$") && !log.contains(&encoded), "{log}");
    Ok(())
}

#[test]
fn a_file_that_changes_is_in_force_at_once_unless_it_is_broken() -> Result {
    let setting = Setting::new(&format!("ann:{ARGON2ID}\n"))?;
    let mut gateway = setting.gateway(&json!({}))?;
    gateway.start()?;
    assert_eq!(setting.status("/", "ann", "password")?, 200);
    assert_eq!(setting.status("/", "bob", "secret")?, 401);
    replace(&setting.file, &format!("bob:{BCRYPT}\n"))?;
    wait_for("the new user", PATIENCE, || {
        Ok((setting.status("/", "bob", "secret")? == 200).then_some(()))
    })?;
    assert_eq!(setting.status("/", "ann", "password")?, 401, "remembered, but not there any more");
    replace(&setting.file, "bob:$apr1$salt1234$abcdefghijklmnopqrstu.\n")?;
    wait_for("the complaint", PATIENCE, || {
        let log = gateway.log();
        Ok((log.contains("line 1: the hash of `bob` is MD5")).then_some(()))
    })?;
    assert_eq!(setting.status("/", "bob", "secret")?, 200, "the users stay as they were");
    assert!(!gateway.log().contains("$apr1$"));
    Ok(())
}

#[test]
fn a_file_that_cannot_be_is_refused_with_its_line() -> Result {
    let setting = Setting::new("ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n")?;
    let mut gateway = setting.gateway(&json!({}))?;
    let said = format!("{:?}", gateway.start_refused()?);
    assert!(
        said.contains("auth.admins") && said.contains("line 1: the hash of `ann` is SHA-1"),
        "{said}"
    );
    assert!(said.contains("htpasswd -B") && !said.contains("5en6G6"), "{said}");
    Ok(())
}

#[test]
fn more_verifications_than_the_bounds_are_answered_with_503() -> Result {
    let setting = Setting::new(&format!("ann:{COSTLY}\n"))?;
    let mut gateway = setting.gateway(&json!({"verifications": 1, "waiting": 1}))?;
    gateway.start()?;
    let mut clients = Vec::new();
    for number in 0..12 {
        let mut client = setting.site.connect(None, setting.listen)?;
        let who = says("ann", &format!("guess-{number}"));
        client.send(format!("GET / HTTP/1.1\r\nHost: h\r\n{who}\r\n").as_bytes())?;
        clients.push(client);
    }
    let found = clients.iter_mut().map(|client| Ok(client.receive()?.status));
    let found = found.collect::<Result<Vec<u16>>>()?;
    assert!(found.contains(&503) && found.contains(&401), "{found:?}");
    assert!(found.iter().all(|status| [401, 503].contains(status)), "{found:?}");
    // Requests with the same credential share one verification, so none of them is one too many.
    let mut clients = Vec::new();
    for _ in 0..12 {
        let mut client = setting.site.connect(None, setting.listen)?;
        client.send(
            format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", says("ann", "secret")).as_bytes(),
        )?;
        clients.push(client);
    }
    for client in &mut clients {
        assert_eq!(client.receive()?.status, 200);
    }
    Ok(())
}
