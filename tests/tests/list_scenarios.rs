//! Lists that are kept elsewhere, through the real binary: files that change and break, feeds that fail and lie, and
//! an import that is killed.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions, Permissions};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use harness::gateway::{Gateway, Outcome};
use harness::namespace::Namespace;
use harness::origin::{Origin, Reply, Request};
use harness::{Result, require_root, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// As root in a namespace of its own, else on a free port of the loopback.
fn namespace() -> Result<Option<Namespace>> {
    nix::unistd::geteuid().is_root().then(|| Namespace::new("lists")).transpose()
}

fn config(kernel: &Value) -> Result<Value> {
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok(json!({
        "listen": [{"address": free.to_string()}],
        "kernel": kernel,
        "upstreams": {"echo": {"endpoints": ["echo"]}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "echo"}],
    }))
}

/// Writes another configuration of the same gateway.
fn reconfigure(gateway: &Gateway<'_>, kernel: Value) -> Result {
    let text = fs::read_to_string(gateway.config())?;
    let mut config: Value = serde_json::from_str(&text)?;
    config.as_object_mut().context("no object")?.insert("kernel".to_owned(), kernel);
    gateway.write_config(config)
}

fn file(gateway: &Gateway<'_>, name: &str) -> PathBuf {
    gateway.config().with_file_name(name)
}

/// As an editor saves it: the old one or the new one.
fn replace(gateway: &Gateway<'_>, name: &str, text: &str) -> Result {
    let new = file(gateway, "new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, file(gateway, name))?)
}

fn text(object: &Value, key: &str) -> String {
    object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A list as `gateway lists` shows it.
fn list(gateway: &Gateway<'_>, name: &str) -> Result<Option<Value>> {
    let lists = gateway.cli(&["lists", "--json"])?.ok()?.json_lines()?;
    Ok(lists.into_iter().find(|list| text(list, "name") == name))
}

fn note(gateway: &Gateway<'_>, name: &str) -> Result<String> {
    let list = list(gateway, name)?;
    Ok(list.map(|list| text(&list, "note")).unwrap_or_default())
}

/// The prefixes of a list that are in force, with their reasons.
fn entries(gateway: &Gateway<'_>, name: &str) -> Result<BTreeSet<(String, String)>> {
    let mut all = BTreeSet::new();
    for action in ["deny", "allow"] {
        let listed = gateway.cli(&[action, "list", "--list", name, "--json"])?;
        if listed.code == Some(0) {
            all.extend(
                listed
                    .json_lines()?
                    .iter()
                    .map(|rule| (text(rule, "prefix"), text(rule, "reason"))),
            );
        }
    }
    Ok(all)
}

fn prefixes(gateway: &Gateway<'_>, name: &str) -> Result<BTreeSet<String>> {
    Ok(entries(gateway, name)?.into_iter().map(|(prefix, _)| prefix).collect())
}

fn set(prefixes: &[&str]) -> BTreeSet<String> {
    prefixes.iter().map(|prefix| (*prefix).to_owned()).collect()
}

fn wait_for_prefixes(gateway: &Gateway<'_>, name: &str, wanted: &[&str]) -> Result {
    let wanted = set(wanted);
    let what = format!("{name} with {wanted:?}");
    wait_for(&what, PATIENCE, || Ok((prefixes(gateway, name)? == wanted).then_some(())))
}

fn wait_for_entries(gateway: &Gateway<'_>, wanted: u64) -> Result {
    wait_for(&format!("{wanted} entries"), PATIENCE, || {
        let entries = list(gateway, "drop")?.and_then(|list| list.get("entries")?.as_u64());
        Ok((entries == Some(wanted)).then_some(()))
    })
}

fn wait_for_note(gateway: &Gateway<'_>, name: &str, wanted: &str) -> Result<String> {
    wait_for(&format!("the note {wanted:?}"), PATIENCE, || {
        let note = note(gateway, name)?;
        Ok((if wanted.is_empty() { note.is_empty() } else { note.contains(wanted) })
            .then_some(note))
    })
}

fn verdict(gateway: &Gateway<'_>, address: &str) -> Result<String> {
    let why = gateway.cli(&["why", address, "--json"])?.ok()?.json()?;
    Ok(text(&why, "verdict"))
}

#[test]
fn a_file_is_watched_and_a_broken_one_leaves_its_last_good_copy() -> Result {
    let namespace = namespace()?;
    let kernel =
        json!({"deny_files": ["drop.txt"], "allow_files": [{"path": "in.txt", "name": "office"}]});
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(&kernel)?)?;
    fs::write(file(&gateway, "drop.txt"), "198.18.0.1\n198.18.0.2 # scanner\n")?;
    fs::write(file(&gateway, "in.txt"), "198.18.0.0/24\n")?;
    gateway.start()?;
    // What is announced is in force.
    assert_eq!(prefixes(&gateway, "drop")?, set(&["198.18.0.1", "198.18.0.2"]));
    assert_eq!(prefixes(&gateway, "office")?, set(&["198.18.0.0/24"]));
    assert!(verdict(&gateway, "198.18.0.2")?.starts_with("denied"));
    let scanner = ("198.18.0.2".to_owned(), "scanner".to_owned());
    assert!(entries(&gateway, "drop")?.contains(&scanner));

    replace(&gateway, "drop.txt", "198.18.0.2\n198.18.0.3\n198.18.0.4\n")?;
    wait_for_prefixes(&gateway, "drop", &["198.18.0.2", "198.18.0.3", "198.18.0.4"])?;
    assert!(verdict(&gateway, "198.18.0.1")?.starts_with("allowed"));
    assert!(verdict(&gateway, "198.18.0.3")?.starts_with("denied"));
    assert!(gateway.log().contains("\"added\":2,\"removed\":1"), "a difference");

    let good = ["198.18.0.2", "198.18.0.3", "198.18.0.4"];
    replace(&gateway, "drop.txt", "198.18.0.2\n198.18.0.300\n")?;
    let told = wait_for_note(&gateway, "drop", "drop.txt:2: ")?;
    assert!(told.contains("198.18.0.300"), "{told}");
    assert!(gateway.log().contains("drop.txt:2: "));
    let status = gateway.status()?;
    assert!(status["lists"][0].as_str().is_some_and(|line| line.starts_with("drop: ")), "{status}");
    assert_eq!(prefixes(&gateway, "drop")?, set(&good));
    replace(&gateway, "drop.txt", "")?;
    wait_for_note(&gateway, "drop", "it is empty")?;
    fs::remove_file(file(&gateway, "drop.txt"))?;
    wait_for_note(&gateway, "drop", "No such file")?;
    assert_eq!(prefixes(&gateway, "drop")?, set(&good));

    // So it is also after a start, and when the file is back.
    gateway.kill9()?;
    gateway.start()?;
    assert_eq!(prefixes(&gateway, "drop")?, set(&good));
    wait_for_note(&gateway, "drop", "No such file")?;
    gateway.cli(&["lists", "refresh", "drop"])?.refused(1, "No such file")?;
    replace(&gateway, "drop.txt", "# nobody\n")?;
    gateway.cli(&["lists", "refresh", "drop"])?.ok()?;
    assert_eq!((prefixes(&gateway, "drop")?, note(&gateway, "drop")?), (set(&[]), String::new()));
    Ok(())
}

#[test]
fn a_file_without_room_is_put_in_force_once_there_is_some() -> Result {
    let namespace = namespace()?;
    let kernel = json!({"deny_files": ["drop.txt"], "max_rules": 60});
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(&kernel)?)?;
    fs::write(file(&gateway, "drop.txt"), "198.18.0.1\n")?;
    gateway.start()?;
    fs::write(file(&gateway, "large.txt"), hosts(40))?;
    let large = file(&gateway, "large.txt");
    gateway.cli(&["deny", "import", large.to_str().context("no text")?])?.ok()?;
    let many: Vec<String> = (0..30).map(|last| format!("198.19.0.{last}")).collect();
    replace(&gateway, "drop.txt", &many.join("\n"))?;
    wait_for_note(&gateway, "drop", "tried again when there is more room")?;
    assert_eq!(prefixes(&gateway, "drop")?, set(&["198.18.0.1"]), "the last good copy");
    gateway.cli(&["deny", "remove", "--list", "large"])?.ok()?;
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    wait_for_prefixes(&gateway, "drop", &many)?;
    assert_eq!(note(&gateway, "drop")?, "");
    Ok(())
}

#[test]
fn a_file_that_lost_too_much_is_held_back_until_somebody_accepts_it() -> Result {
    let namespace = namespace()?;
    let kernel = json!({"deny_files": [{"path": "drop.txt", "min_entries": "50%"}, "other.txt"]});
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(&kernel)?)?;
    fs::write(file(&gateway, "drop.txt"), hosts(10))?;
    fs::write(file(&gateway, "other.txt"), "198.19.0.1\n198.19.0.2\n198.19.0.3\n")?;
    gateway.start()?;
    wait_for_entries(&gateway, 10)?;
    gateway.cli(&["lists", "accept", "drop"])?.refused(1, "nothing of drop is held back")?;
    let held = "held back: it lost 60 % of its entries (4 of 10 left, below min_entries: 50%)";
    replace(&gateway, "drop.txt", &hosts(4))?;
    replace(&gateway, "other.txt", "198.19.0.1\n")?;
    wait_for_note(&gateway, "drop", held)?;
    wait_for_prefixes(&gateway, "other", &["198.19.0.1"])?;
    wait_for_entries(&gateway, 10)?;
    gateway.cli(&["lists", "refresh", "drop"])?.refused(1, held)?;
    let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
    for line in [
        r#"gateway_list_held_back{list="drop"} 1"#,
        r#"gateway_list_held_back{list="other"} 0"#,
        r#"gateway_list_failures{list="drop"} 0"#,
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(gateway.cli(&["status"])?.ok()?.stdout.contains("lost 60 %"));

    // So it is after a start and a reload; what was looked at is what is accepted.
    gateway.kill9()?;
    gateway.start()?;
    wait_for_note(&gateway, "drop", held)?;
    wait_for_entries(&gateway, 10)?;
    gateway.cli(&["reload"])?.ok()?;
    wait_for_note(&gateway, "drop", held)?;
    gateway.cli(&["lists", "accept", "drop"])?.ok()?;
    wait_for_entries(&gateway, 4)?;
    assert_eq!(note(&gateway, "drop")?, "");

    // Half of them is enough, and one that has grown again needs nobody.
    replace(&gateway, "drop.txt", &hosts(2))?;
    wait_for_entries(&gateway, 2)?;
    replace(&gateway, "drop.txt", "# nobody\n")?;
    wait_for_note(&gateway, "drop", "lost 100 %")?;
    replace(&gateway, "drop.txt", &hosts(3))?;
    wait_for_entries(&gateway, 3)?;
    wait_for_note(&gateway, "drop", "")?;
    Ok(())
}

#[test]
fn a_file_that_the_daemon_may_not_read_is_said_with_its_user() -> Result {
    let namespace = namespace()?;
    let kernel = json!({"deny_files": ["drop.txt"]});
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(&kernel)?)?;
    let path = file(&gateway, "drop.txt");
    fs::write(&path, "198.18.0.1\n")?;
    fs::set_permissions(&path, Permissions::from_mode(0o000))?;
    gateway.start()?;
    let told = note(&gateway, "drop")?;
    let user = gateway.status()?["user"].as_str().unwrap_or_default().to_owned();
    assert!(told.contains(&format!("runs as the user {user}")), "{told}");
    fs::set_permissions(&path, Permissions::from_mode(0o644))?;
    wait_for_prefixes(&gateway, "drop", &["198.18.0.1"])?;
    wait_for_note(&gateway, "drop", "")?;
    Ok(())
}

#[test]
fn a_reload_takes_over_lists_and_refuses_what_would_leave_none() -> Result {
    let namespace = namespace()?;
    let kernel = json!({"deny_files": ["one.txt", "two.txt"]});
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(&kernel)?)?;
    fs::write(file(&gateway, "one.txt"), "198.18.0.1\n198.18.0.9\n")?;
    fs::write(file(&gateway, "two.txt"), "198.18.0.2\n198.18.0.9\n")?;
    gateway.start()?;
    gateway
        .cli(&[
            "deny",
            "import",
            "--list",
            "one",
            &file(&gateway, "two.txt").display().to_string(),
        ])?
        .refused(1, "the configuration has a list one")?;

    // A list that never was good: nothing changes, the other one included.
    fs::write(file(&gateway, "three.txt"), "198.18.0.3\nnonsense\n")?;
    reconfigure(&gateway, json!({"deny_files": ["two.txt", "three.txt"]}))?;
    gateway.cli(&["reload"])?.refused(2, "three.txt:2: ")?;
    assert_eq!(prefixes(&gateway, "one")?, set(&["198.18.0.1", "198.18.0.9"]));
    let check = gateway.cli(&["check", &gateway.config().display().to_string()])?;
    assert_eq!(check.code, Some(2), "{check}");
    assert!(format!("{check}").contains("three.txt:2: "), "{check}");

    replace(&gateway, "three.txt", "198.18.0.3\n")?;
    gateway.cli(&["check", &gateway.config().display().to_string()])?.ok()?;
    gateway.cli(&["reload"])?.ok()?;
    assert_eq!(prefixes(&gateway, "three")?, set(&["198.18.0.3"]));
    assert!(list(&gateway, "one")?.is_none());
    assert!(verdict(&gateway, "198.18.0.1")?.starts_with("no rule"));
    // The other list has it, too.
    assert!(verdict(&gateway, "198.18.0.9")?.starts_with("denied"));

    // What it does changes with the configuration, also while its file is broken.
    replace(&gateway, "three.txt", "nonsense\n")?;
    let section = json!({"path": "three.txt", "dry_run": true});
    reconfigure(&gateway, json!({"allow_files": ["two.txt"], "deny_files": [section]}))?;
    gateway.cli(&["reload"])?.ok()?;
    assert!(verdict(&gateway, "198.18.0.2")?.starts_with("allowed"));
    let three = list(&gateway, "three")?.unwrap_or_default();
    assert_eq!((&three["dry_run"], &three["entries"]), (&json!(true), &json!(1)));
    assert!(!verdict(&gateway, "198.18.0.3")?.starts_with("denied"));

    let path = file(&gateway, "two.txt").display().to_string();
    gateway.cli(&["deny", "import", "--list", "mine", &path])?.ok()?;
    reconfigure(&gateway, json!({"deny_files": [{"path": "two.txt", "name": "mine"}]}))?;
    gateway.cli(&["reload"])?.refused(2, "imported")?;
    // A start goes on with what there is, and says so.
    gateway.stop()?;
    gateway.start()?;
    let mine = list(&gateway, "mine")?.unwrap_or_default();
    assert_eq!(mine["kind"], "import");
    wait_for_note(&gateway, "mine", "gateway deny remove --list mine")?;
    gateway.cli(&["deny", "remove", "--list", "mine"])?.ok()?;
    gateway.cli(&["lists", "refresh", "mine"])?.ok()?;
    assert_eq!(list(&gateway, "mine")?.unwrap_or_default()["kind"], "file");
    Ok(())
}

/// What a feed's server says.
#[derive(Clone)]
enum Says {
    Version(&'static str, String),
    Bytes(Vec<u8>),
    Hang,
}

struct Server {
    origin: Origin,
    says: Arc<Mutex<Says>>,
}

impl Server {
    fn start(namespace: Option<&Namespace>, says: Says) -> Result<Self> {
        let says = Arc::new(Mutex::new(says));
        let script = {
            let says = Arc::clone(&says);
            move |request: &Request| answer(&lock(&says), request)
        };
        let origin = Origin::start(namespace, "127.0.0.5:0".parse()?, script)?;
        Ok(Self { origin, says })
    }

    fn says(&self, says: Says) {
        *lock(&self.says) = says;
    }

    fn url(&self) -> String {
        format!("http://{}/drop.txt?key=secret", self.origin.address)
    }

    fn conditional(&self) -> usize {
        let requests = self.origin.requests();
        requests.iter().filter(|request| request.header("if-none-match").is_some()).count()
    }
}

fn lock(says: &Mutex<Says>) -> MutexGuard<'_, Says> {
    says.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(says: &Says, request: &Request) -> Reply {
    match says {
        Says::Version(etag, _) if request.header("if-none-match") == Some(etag) => {
            Reply::Bytes(b"HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n".to_vec())
        }
        Says::Version(etag, body) => Reply::Bytes(
            format!(
                "HTTP/1.1 200 OK\r\netag: {etag}\r\ncontent-length: {}\r\n\
                 connection: close\r\n\r\n{body}",
                body.len()
            )
            .into_bytes(),
        ),
        Says::Bytes(bytes) => Reply::Bytes(bytes.clone()),
        Says::Hang => Reply::Hang,
    }
}

fn hosts(count: usize) -> String {
    (0..count).map(|last| format!("198.18.{}.{}\n", last / 250, last % 250)).collect()
}

fn feed(server: &Server) -> Value {
    json!({"feeds": [{"name": "drop", "url": server.url(), "timeout": "1s", "max_bytes": "64KiB"}]})
}

#[test]
fn a_feed_that_fails_leaves_its_last_good_copy() -> Result {
    let namespace = namespace()?;
    let server = Server::start(namespace.as_ref(), Says::Version("\"one\"", hosts(4)))?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(&feed(&server))?)?;
    gateway.start()?;
    let four = ["198.18.0.0", "198.18.0.1", "198.18.0.2", "198.18.0.3"];
    wait_for_prefixes(&gateway, "drop", &four)?;
    let refreshed = gateway.cli(&["lists", "refresh", "drop"])?.ok()?;
    assert!(refreshed.stdout.contains("has not changed"), "{refreshed}");
    assert_eq!(server.conditional(), 1);

    let head = |status: &str| format!("HTTP/1.1 {status}\r\nconnection: close\r\n").into_bytes();
    let endless = [head("200 OK"), b"\r\n".to_vec(), hosts(20_000).into_bytes()].concat();
    let html = [head("200 OK"), b"content-type: text/html\r\n\r\n198.18.0.7\n".to_vec()].concat();
    let bare_html = [head("200 OK"), b"\r\n<html>\n198.18.0.7\n".to_vec()].concat();
    let giant = [head("200 OK"), b"content-length: 5000000000\r\n\r\n".to_vec()].concat();
    for (says, complaint) in [
        (Says::Bytes([head("500 Oops"), b"\r\n".to_vec()].concat()), "answered 500"),
        (Says::Bytes(html), "web page"),
        (Says::Bytes(bare_html), "cannot be read"),
        (Says::Bytes([head("200 OK"), b"\r\n".to_vec()].concat()), "answered with nothing"),
        (Says::Version("\"comments\"", "# nobody\n".to_owned()), "has no entries"),
        (Says::Bytes(giant), "more than 65536 bytes"),
        (Says::Bytes(endless), "more than 65536 bytes"),
        (Says::Bytes(b"nonsense\r\n\r\n".to_vec()), "broke off"),
        (Says::Hang, "within 1s"),
    ] {
        server.says(says);
        let refused = gateway.cli(&["lists", "refresh", "drop"])?;
        refused.refused(1, complaint)?;
        assert!(!format!("{refused}").contains("secret"), "{refused}");
        assert!(note(&gateway, "drop")?.contains(complaint));
        assert_eq!(prefixes(&gateway, "drop")?, set(&four), "after {complaint}");
    }
    let listed = gateway.cli(&["lists"])?.ok()?;
    assert!(!gateway.log().contains("secret") && !listed.stdout.contains("secret"), "{listed}");

    // With nobody to ask: the last good copy is in force at once, and so it stays.
    gateway.kill9()?;
    gateway.start()?;
    assert_eq!(prefixes(&gateway, "drop")?, set(&four));
    assert!(verdict(&gateway, "198.18.0.2")?.starts_with("denied"));
    wait_for_note(&gateway, "drop", "within 1s")?;
    assert_eq!(prefixes(&gateway, "drop")?, set(&four));

    // A version that is known is not sent again, not even after a restart.
    gateway.stop()?;
    server.says(Says::Version("\"one\"", "198.18.0.200\n".to_owned()));
    let before = server.origin.requests().len();
    gateway.start()?;
    wait_for("a fetch at the start", PATIENCE, || {
        Ok((server.origin.requests().len() > before).then_some(()))
    })?;
    wait_for_note(&gateway, "drop", "")?;
    assert_eq!(prefixes(&gateway, "drop")?, set(&four));
    assert!(
        server.origin.requests()[before..]
            .iter()
            .all(|request| { request.header("if-none-match") == Some("\"one\"") })
    );

    reconfigure(&gateway, json!({}))?;
    gateway.cli(&["reload"])?.ok()?;
    assert!(list(&gateway, "drop")?.is_none());
    assert!(verdict(&gateway, "198.18.0.2")?.starts_with("no rule"));
    gateway.kill9()?;
    gateway.start()?;
    assert!(list(&gateway, "drop")?.is_none(), "it does not come back");
    Ok(())
}

#[test]
fn a_feed_that_shrinks_grows_or_denies_half_of_all_waits_until_somebody_accepts_it() -> Result {
    let namespace = namespace()?;
    let server = Server::start(namespace.as_ref(), Says::Version("\"one\"", hosts(100)))?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(&feed(&server))?)?;
    gateway.start()?;
    wait_for_entries(&gateway, 100)?;
    gateway.cli(&["lists", "accept", "drop"])?.refused(1, "held back")?;
    gateway.cli(&["lists", "accept", "other"])?.refused(1, "there is no list")?;

    server.says(Says::Version("\"wide\"", format!("0.0.0.0/1\n{}", hosts(100))));
    gateway.cli(&["lists", "refresh", "drop"])?.refused(1, "covers 50")?;
    wait_for_entries(&gateway, 100)?;
    server.says(Says::Version("\"long\"", hosts(1001)));
    gateway.cli(&["lists", "refresh", "drop"])?.refused(1, "grew from 100 to 1,001")?;
    wait_for_entries(&gateway, 100)?;
    server.says(Says::Version("\"two\"", hosts(10)));
    gateway.cli(&["lists", "refresh", "drop"])?.refused(1, "lost 90 %")?;
    // The same once more is not sent again, and still held back.
    gateway.cli(&["lists", "refresh", "drop"])?.refused(1, "lost 90 %")?;
    wait_for_entries(&gateway, 100)?;
    assert!(note(&gateway, "drop")?.contains("gateway lists accept drop"));
    let metrics = gateway.cli(&["metrics"])?.ok()?.stdout;
    for line in [
        r#"gateway_list_entries{list="drop",kind="feed",action="deny"} 100"#,
        r#"gateway_list_held_back{list="drop"} 1"#,
        r#"gateway_list_failures{list="drop"} 0"#,
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(gateway.cli(&["status"])?.ok()?.stdout.contains("lost 90 %"));
    assert!(gateway.log().contains("lost 90 %"));

    // What was looked at is what is accepted, whatever the server says by now.
    server.says(Says::Version("\"three\"", "198.18.0.1\n".to_owned()));
    gateway.cli(&["lists", "accept", "drop"])?.ok()?;
    wait_for_entries(&gateway, 10)?;
    assert_eq!(note(&gateway, "drop")?, "");
    gateway.kill9()?;
    server.says(Says::Hang);
    gateway.start()?;
    wait_for_entries(&gateway, 10)?;

    // One that is good again needs nobody.
    server.says(Says::Version("\"four\"", "198.18.0.1\n".to_owned()));
    gateway.cli(&["lists", "refresh", "drop"])?.refused(1, "lost 90 %")?;
    gateway.kill9()?;
    gateway.start()?;
    wait_for_note(&gateway, "drop", "lost 90 %")?;
    wait_for_entries(&gateway, 10)?;
    server.says(Says::Version("\"five\"", format!("{}? what is this\n", hosts(120))));
    let done = gateway.cli(&["lists", "refresh", "drop"])?.ok()?;
    wait_for_entries(&gateway, 120)?;
    let told = "1 line left out that cannot be read: line 121: `?`";
    assert!(note(&gateway, "drop")?.starts_with(told), "{}", note(&gateway, "drop")?);
    assert!(done.stdout.contains(told) && gateway.log().contains("line 121: "), "{done}");
    Ok(())
}

#[test]
fn lists_that_overlap_keep_their_reasons_and_an_operator_is_above_a_feed() -> Result {
    let namespace = namespace()?;
    let text = "198.18.0.1 ; of the feed\n198.18.1.0/24 ; of the feed\n";
    let server = Server::start(namespace.as_ref(), Says::Version("\"one\"", text.to_owned()))?;
    let mut kernel = feed(&server);
    kernel["deny_files"] = json!(["own.txt"]);
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(&kernel)?)?;
    fs::write(file(&gateway, "own.txt"), "198.18.0.1 ; of the file\n")?;
    gateway.start()?;
    wait_for_prefixes(&gateway, "drop", &["198.18.0.1", "198.18.1.0/24"])?;
    let reason = |address: &str| -> Result<[Value; 2]> {
        let why = gateway.cli(&["why", address, "--json"])?.ok()?.json()?;
        Ok([why["rule"]["list"].clone(), why["rule"]["reason"].clone()])
    };
    assert_eq!(reason("198.18.0.1")?, [json!("own"), json!("of the file")]);
    fs::write(file(&gateway, "own.txt"), "198.18.0.77\n")?;
    wait_for_prefixes(&gateway, "own", &["198.18.0.77"])?;
    assert_eq!(reason("198.18.0.1")?, [json!("drop"), json!("of the feed")]);

    gateway.cli(&["allow", "add", "198.18.0.0/16"])?.ok()?;
    for address in ["198.18.0.1", "198.18.1.7"] {
        let said = verdict(&gateway, address)?;
        assert!(said.starts_with("allowed"), "{address}: {said}");
    }
    gateway.cli(&["allow", "remove", "198.18.0.0/16"])?.ok()?;
    assert!(verdict(&gateway, "198.18.1.7")?.starts_with("denied"));
    Ok(())
}

#[test]
fn an_exported_reset_is_imported_as_one_and_kept() -> Result {
    let namespace = namespace()?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(&json!({}))?)?;
    gateway.start()?;
    let deny = |more: &[&str]| gateway.cli(&[&["deny"], more].concat())?.ok();
    deny(&["add", "203.0.113.7", "2001:db8::/64", "--reset", "--for", "2h", "--reason", "a scan"])?;
    deny(&["add", "203.0.113.8"])?;
    let exported = deny(&["export", "-"])?.stdout;
    let resets = exported.lines().filter(|line| line.contains("\"action\":\"reset\"")).count();
    assert_eq!((exported.lines().count(), resets), (3, 2), "{exported}");
    deny(&["remove", "203.0.113.7", "203.0.113.8", "2001:db8::/64"])?;
    fs::write(file(&gateway, "drop.json"), &exported)?;
    deny(&["import", &file(&gateway, "drop.json").display().to_string()])?;
    let command = "deny add 203.0.113.7 2001:db8::/64 --reset --for 7200000ms";
    let log = gateway.log();
    assert!(log.contains(command), "the audit trail has what was typed: {log}");
    let has = |gateway: &Gateway<'_>| -> Result {
        let again = gateway.cli(&["deny", "export", "-", "--list", "drop"])?.ok()?.stdout;
        assert_eq!(again, exported);
        assert!(verdict(gateway, "203.0.113.7")?.starts_with("reset"));
        assert!(verdict(gateway, "203.0.113.8")?.starts_with("denied"));
        Ok(())
    };
    has(&gateway)?;
    gateway.kill9()?;
    gateway.start()?;
    has(&gateway)?;
    // The next version denies all of them.
    let denied = exported.replace("\"action\":\"reset\",", "");
    fs::write(file(&gateway, "drop.json"), denied)?;
    let path = file(&gateway, "drop.json").display().to_string();
    gateway.cli(&["deny", "import", &path])?.ok()?;
    assert!(verdict(&gateway, "203.0.113.7")?.starts_with("denied"));
    Ok(())
}

#[test]
fn the_hosts_of_a_feed_are_never_blocked() -> Result {
    let namespace = namespace()?;
    let text = "127.0.0.5\n127.0.0.6\n198.18.0.1\n".to_owned();
    let target = Server::start(namespace.as_ref(), Says::Version("\"one\"", text))?;
    let port = target.origin.address.port();
    let location = format!("http://127.0.0.6:{port}/list");
    let second = Origin::start(namespace.as_ref(), SocketAddr::new("127.0.0.6".parse()?, port), {
        let says = Arc::clone(&target.says);
        move |request| answer(&lock(&says), request)
    })?;
    let redirect =
        format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\nconnection: close\r\n\r\n");
    let first = Server::start(namespace.as_ref(), Says::Bytes(redirect.into_bytes()))?;
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(&feed(&first))?)?;
    gateway.start()?;
    wait_for_prefixes(&gateway, "drop", &["127.0.0.5", "127.0.0.6", "198.18.0.1"])?;
    assert_eq!(second.requests().len(), 1);
    for address in ["127.0.0.5", "127.0.0.6"] {
        assert!(verdict(&gateway, address)?.starts_with("allowed"), "{address}");
        gateway.cli(&["deny", "add", address])?.refused(1, "feed drop")?;
    }
    assert!(verdict(&gateway, "198.18.0.1")?.starts_with("denied"));
    Ok(())
}

#[test]
fn a_large_file_is_imported_as_a_small_one_is_and_so_is_a_pipe() -> Result {
    let namespace = namespace()?;
    let kernel = json!({"max_rules": 100_000});
    let mut gateway = Gateway::unprivileged(namespace.as_ref(), config(&kernel)?)?;
    gateway.start()?;
    let import = |gateway: &Gateway<'_>, name: &str, more: &[&str]| {
        let path = file(gateway, name).display().to_string();
        gateway.cli(&[&["deny", "import", "--list", "drop", &path], more].concat())
    };
    // More than a MiB, so both halves are read at once; every reason is in both.
    let line = |number: u32| {
        let address = std::net::Ipv4Addr::from(0xc612_0000 + number);
        format!("{address} reason {}\n", number % 3)
    };
    let mut lines: Vec<String> = (0..60_000).map(line).collect();
    lines.push("198.18.0.1 again\n".to_owned());
    fs::write(file(&gateway, "large.txt"), lines.concat())?;
    import(&gateway, "large.txt", &[])?.ok()?;
    wait_for_entries(&gateway, 60_000)?;
    let reason = |address: &str| -> Result<String> {
        let why = gateway.cli(&["why", address, "--json"])?.ok()?.json()?;
        Ok(why.pointer("/rule").map(|rule| text(rule, "reason")).unwrap_or_default())
    };
    let reasons = ["198.18.0.0", "198.18.0.1", "198.18.0.2", "198.18.234.94", "198.18.234.95"];
    let reasons = reasons.map(|address| reason(address).unwrap_or_default());
    assert_eq!(reasons, ["reason 0", "reason 1", "reason 2", "reason 1", "reason 2"]);

    for bad in [2, 59_000] {
        lines.insert(bad, "192.0.2.300\n".to_owned());
    }
    fs::write(file(&gateway, "large.txt"), lines.concat())?;
    let refused = import(&gateway, "large.txt", &[])?;
    for told in ["\"line\":3,", "\"line\":59001,", "2 lines cannot be read"] {
        refused.refused(1, told)?;
    }
    import(&gateway, "large.txt", &["--skip-invalid"])?.ok()?;
    wait_for_entries(&gateway, 60_000)?;

    let pipe = file(&gateway, "pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
    // The command is run by whoever the gateway is.
    fs::set_permissions(&pipe, Permissions::from_mode(0o666))?;
    std::thread::scope(|scope| -> Result {
        let writer = scope.spawn(|| fs::write(&pipe, "192.0.2.1\n192.0.2.2\n"));
        let imported = import(&gateway, "pipe", &[]);
        // Whoever writes waits for a reader, also if the import was none.
        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&pipe);
        drop((writer.join(), reader));
        imported?.ok().map(drop)
    })?;
    wait_for_prefixes(&gateway, "drop", &["192.0.2.1", "192.0.2.2"])
}

/// A version of a list: what all versions have, and what only this one has.
fn version(number: usize) -> String {
    let always = (0..500).map(|last| format!("127.66.{}.{}\n", last / 250, last % 250));
    let own = (0..4000).map(|last| format!("198.{}.{}.{}\n", 18 + number, last / 250, last % 250));
    always.chain(own).collect()
}

#[test]
fn a_killed_import_leaves_the_old_or_the_new_list_and_no_moment_without_what_both_have() -> Result {
    require_root()?;
    let host = Namespace::new("lists")?;
    let mut gateway = Gateway::new(&host, config(&json!({"interfaces": ["lo"]}))?)?;
    for number in 0..2 {
        fs::write(file(&gateway, &format!("{number}.txt")), version(number))?;
    }
    let import = |gateway: &Gateway<'_>, number: usize| {
        let path = file(gateway, &format!("{number}.txt")).display().to_string();
        gateway.cli(&["deny", "import", "--list", "drop", &path])
    };
    let versions = [0, 1].map(|number| version(number).lines().map(str::to_owned).collect());
    let versions: [BTreeSet<String>; 2] = versions;
    gateway.start()?;
    import(&gateway, 0)?.ok()?;

    let (listener, listed, other) = host.enter(|| -> Result<_> {
        let bind = |address: &str| UdpSocket::bind(address);
        Ok((bind("127.0.0.1:9000")?, bind("127.66.1.1:0")?, bind("127.0.0.7:0")?))
    })??;
    listener.set_read_timeout(Some(Duration::from_millis(200)))?;
    let over = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| -> Result<BTreeSet<SocketAddr>> {
        let sender = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // The listener counts; a full queue is none of the test's business.
                listed.send_to(b"x", "127.0.0.1:9000").ok();
                other.send_to(b"x", "127.0.0.1:9000").ok();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let receiver = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            let mut buffer = [0; 16];
            while !over.load(Ordering::Relaxed) {
                seen.extend(listener.recv_from(&mut buffer).ok().map(|(_, from)| from));
            }
            seen
        });
        let killed = kill_imports(&mut gateway, import, &versions);
        over.store(true, Ordering::Relaxed);
        let seen = receiver.join();
        drop(sender.join());
        killed?;
        Ok(seen.unwrap_or_default())
    })?;
    assert_eq!(seen, BTreeSet::from([other.local_addr()?]), "a listed address was let in");
    Ok(())
}

/// Kills the daemon at one moment after the other of an import, and starts it again.
fn kill_imports(
    gateway: &mut Gateway<'_>,
    import: impl Fn(&Gateway<'_>, usize) -> Result<Outcome> + Sync,
    versions: &[BTreeSet<String>; 2],
) -> Result {
    const ROUNDS: u32 = 16;
    let mut held = 0;
    let (mut old, mut new) = (0, 0);
    for round in 0..ROUNDS {
        let next = 1 - held;
        let running: &Gateway<'_> = gateway;
        let outcome = std::thread::scope(|scope| -> Result<_> {
            let import = scope.spawn(|| import(running, next));
            std::thread::sleep(Duration::from_millis(6) * round);
            running.signal(Signal::SIGKILL)?;
            import.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        gateway.kill9()?;
        gateway.start()?;
        let there = prefixes(gateway, "drop")?;
        let found = versions.iter().position(|version| *version == there);
        let found = found.with_context(|| format!("neither version: {} entries", there.len()))?;
        assert!(outcome.code != Some(0) || found == next, "what was acknowledged is gone");
        if found == held {
            old += 1
        } else {
            new += 1
        }
        assert!(verdict(gateway, "127.66.1.1")?.starts_with("denied"));
        held = found;
    }
    eprintln!("{old} imports were killed before they were in force, {new} after");
    Ok(())
}
