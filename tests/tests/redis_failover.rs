//! Fail-over of a Redis that Sentinels watch and of a Cluster, through the real binary: gateways that count together,
//! and share nonces and keys, lose a master, answer as configured while there is none, and go on with the replica by
//! themselves. Nobody replaces a master before the test lets them, so that no answer depends on who is faster.
#![expect(clippy::indexing_slicing, reason = "helpers of tests fail like tests")]

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use gateway::base::time::utc;
use harness::client::{Client, Response};
use harness::gateway::Gateway;
use harness::redis::{Cluster, Redis, Watched};
use harness::{Result, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);
const SECRET: &str = "an-example-secret-that-all-may-know";
/// What all gateways together give of `/local`, and how much of it is given before the fail-over.
const LIMIT: usize = 30;
const BEFORE: usize = 20;

/// A GET request to `/signed`, signed by the only partner.
fn signed(nonce: &str) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (at, nonce) = (utc().0 / 1000, format!("{nonce:-<16}"));
    let body = hex(digest(&SHA256, b"").as_ref());
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let text = format!("GET\n/signed\n{at}\n{nonce}\n{body}");
    let signature = hex(hmac::sign(&key, text.as_bytes()).as_ref());
    format!(
        "GET /signed HTTP/1.1\r\nHost: h\r\nX-API-Key: partner-1\r\nX-Timestamp: {at}\r\n\
         X-Nonce: {nonce}\r\nX-Signature: {signature}\r\n\r\n"
    )
}

/// Two gateways with one worker each that share a Redis, and what has been done with them.
struct Fleet {
    gateways: Vec<(SocketAddr, Gateway<'static>)>,
    _folder: tempfile::TempDir,
    /// A key that opens, and one that is revoked.
    keys: [String; 2],
    /// Requests that were accepted.
    used: Vec<String>,
    nonces: usize,
}

impl Fleet {
    fn start(redis: &Value) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        let secret = folder.path().join("secret");
        std::fs::write(&secret, SECRET)?;
        let mut gateways = Vec::new();
        for _ in 0..2 {
            let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            let route = |path: &str, auth: &str, limits: Value| {
                let matched = json!({"path": path});
                json!({"match": matched, "auth": auth, "limits": limits, "respond": {"status": 204}})
            };
            let mut gateway = Gateway::unprivileged(
                None,
                json!({
                    "listen": [{"address": address.to_string()}],
                    "workers": 1,
                    "kernel": {"attach": "off"},
                    "state": {"redis": redis},
                    "auth": {
                        "keys": {"api_key": {"registry": "redis"}},
                        "signed": {"hmac": {"keys": [
                            {"id": "partner-1", "consumer": "acme", "secret": {"file": secret}},
                        ]}},
                    },
                    // Both count by the same, so that they are in the same slot of a Cluster.
                    "routes": [
                        route("/local", "anonymous", json!([
                            {"per": "global", "rate": format!("{LIMIT}/24h"), "count": "redis"},
                        ])),
                        route("/strict", "anonymous", json!([
                            {"per": "global", "rate": "1000000/24h", "count": "redis",
                             "when_unavailable": "refuse"},
                        ])),
                        route("/keys", "keys", json!([])),
                        route("/signed", "signed", json!([])),
                    ],
                }),
            )?;
            gateway.start()?;
            gateways.push((address, gateway));
        }
        let keys = [String::new(), String::new()];
        let mut fleet = Self { gateways, _folder: folder, keys, used: Vec::new(), nonces: 0 };
        fleet.settles()?;
        Ok(fleet)
    }

    /// The answer of one of them, which comes in time whatever it is.
    fn send(&self, at: usize, request: &str) -> Result<Response> {
        let mut client = Client::connect_here(None, self.gateways[at].0, PATIENCE / 4)?;
        client.send(request.as_bytes())?;
        client.receive()
    }

    fn get(&self, at: usize, path: &str) -> Result<Response> {
        self.send(at, &format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"))
    }

    fn show(&self, at: usize, key: &str) -> Result<u16> {
        let request = format!("GET /keys HTTP/1.1\r\nHost: h\r\nX-API-Key: {key}\r\n\r\n");
        Ok(self.send(at, &request)?.status)
    }

    /// The status of a request that nobody has sent before. Nobody is told that it was.
    fn sign(&mut self, at: usize) -> Result<u16> {
        self.nonces += 1;
        let request = signed(&format!("n{}", self.nonces));
        let status = self.send(at, &request)?.status;
        ensure!([204, 503].contains(&status), "{status} for a nonce that is new");
        if status == 204 {
            self.used.push(request);
        }
        Ok(status)
    }

    /// A new key.
    fn create(&self, at: usize) -> Result<Value> {
        let gateway = &self.gateways[at].1;
        gateway.cli(&["keys", "create", "--consumer", "acme", "--json"])?.ok()?.json()
    }

    /// Waits until everything that needs Redis has it.
    fn settles(&mut self) -> Result {
        let open = self.keys[0].clone();
        for at in 0..self.gateways.len() {
            wait_for("Redis, for everything", PATIENCE, || {
                let strict = self.get(at, "/strict")?.status;
                let (key, nonce) = (self.show(at, &open)?, self.sign(at)?);
                ensure!(open.is_empty() || key != 401, "a key that holds is called wrong");
                ensure!([204, 503].contains(&strict), "{strict} for a limit far away");
                let is_well = (strict, nonce) == (204, 204) && key != 503;
                Ok(is_well.then_some(()))
            })
            .with_context(|| self.gateways[at].1.log())?;
            wait_for("a status that says so", PATIENCE, || {
                Ok((self.gateways[at].1.status()?["redis"]["up"] == true).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Takes of limits, uses nonces up, makes keys and revokes one.
    fn work(&mut self) -> Result {
        for number in 0..BEFORE {
            let answer = self.get(number % 2, "/local")?;
            assert_eq!(answer.status, 204);
            let left = (LIMIT - 1 - number).to_string();
            assert_eq!(answer.header("x-ratelimit-remaining"), Some(&*left));
            assert_eq!(self.sign(number % 2)?, 204);
        }
        self.spent()?;
        let [open, revoked] = [self.create(0)?, self.create(1)?];
        let text = |key: &Value, name: &str| key[name].as_str().unwrap_or_default().to_owned();
        self.gateways[0].1.cli(&["keys", "revoke", &text(&revoked, "id")])?.ok()?;
        self.keys = [text(&open, "key"), text(&revoked, "key")];
        self.closed()?;
        self.settles()
    }

    /// Nonces that are used stay so, everywhere.
    fn spent(&self) -> Result {
        for (number, request) in self.used.iter().enumerate() {
            wait_for("a word about a nonce", PATIENCE, || {
                let status = self.send(number % 2, request)?.status;
                ensure!([401, 503].contains(&status), "{status}: a nonce is accepted again");
                Ok((status == 401).then_some(()))
            })?;
        }
        Ok(())
    }

    /// What is revoked stays so, everywhere.
    fn closed(&self) -> Result {
        for at in 0..self.gateways.len() {
            wait_for("a word about a key", PATIENCE, || {
                Ok((self.show(at, &self.keys[1])? == 401).then_some(()))
            })?;
        }
        Ok(())
    }

    /// While nobody is the master of what is counted, each answer is what is configured for that. What else a Cluster
    /// knows it tells until it notices that a part of it is missing.
    fn lacks(&mut self, elsewhere: bool) -> Result {
        for at in 0..self.gateways.len() {
            for _ in 0..3 {
                assert_eq!(self.get(at, "/strict")?.status, 503);
                assert_eq!(self.get(at, "/local")?.status, 204, "it counts by itself");
                let nonce = self.sign(at)?;
                assert!(elsewhere || nonce == 503, "{nonce}: who knows?");
                let again = self.send(at, &self.used[0])?.status;
                assert!(again == 503 || elsewhere && again == 401, "{again}");
            }
            wait_for("an end of what is remembered", PATIENCE, || {
                let status = self.show(at, &self.keys[0])?;
                ensure!([204, 503].contains(&status), "{status} for a key that holds");
                Ok((status == 503).then_some(()))
            })?;
            wait_for("an end of nonces", PATIENCE, || Ok((self.sign(at)? == 503).then_some(())))?;
        }
        Ok(())
    }

    /// Everything goes on where it was.
    fn goes_on(&mut self) -> Result {
        self.settles()?;
        self.spent()?;
        self.closed()?;
        let made = self.create(1)?;
        let made = made["key"].as_str().context("no key")?;
        wait_for("a new key", PATIENCE, || Ok((self.show(0, made)? == 204).then_some(())))?;
        // Of the limit as much is left as there was, for all together.
        let statuses = (0..LIMIT).map(|number| Ok(self.get(number % 2, "/local")?.status));
        let given = statuses.collect::<Result<Vec<_>>>()?.iter().filter(|s| **s == 204).count();
        assert_eq!(given, LIMIT - BEFORE);
        Ok(())
    }

    fn stop(self) -> Result {
        self.gateways.into_iter().try_for_each(|(_, mut gateway)| gateway.stop())
    }
}

/// Longer than any test.
const NEVER_MS: u32 = 3_600_000;

/// What becomes of a master, and what follows once another one has its place.
type Done = fn(&mut Redis) -> Result;

fn nothing(_: &mut Redis) -> Result {
    Ok(())
}

fn by_sentinels(lost: Done, replaced: Done) -> Result {
    let mut watched = Watched::start()?;
    let sentinels = watched.sentinels.iter().map(|sentinel| sentinel.address.to_string());
    let mut fleet = Fleet::start(&json!({
        "addresses": sentinels.collect::<Vec<_>>(), "mode": "sentinel", "master": "main",
        "timeout": "300ms",
    }))?;
    fleet.work()?;
    watched.replica.follows(&watched.master)?;
    watched.replaces_after(NEVER_MS)?;
    lost(&mut watched.master)?;
    fleet.lacks(false)?;
    watched.replaces_after(500)?;
    fleet.settles()?;
    replaced(&mut watched.master)?;
    fleet.goes_on()?;
    fleet.stop()
}

fn by_a_cluster(lost: Done, replaced: Done) -> Result {
    let mut cluster = Cluster::start()?;
    let seeds = cluster.nodes.iter().map(|node| node.address.to_string());
    let mut fleet = Fleet::start(&json!({
        "addresses": seeds.collect::<Vec<_>>(), "mode": "cluster", "timeout": "300ms",
    }))?;
    fleet.work()?;
    let has_limits = |node: &Redis| Ok(!node.ask(&["KEYS", "*:limit:*"])?.is_empty());
    let has_limits = cluster.nodes.iter().map(has_limits).collect::<Result<Vec<bool>>>()?;
    let number = has_limits.iter().position(|has| *has).context("no node has a limit")?;
    let replica = cluster.replica_of(number)?;
    lost(&mut cluster.nodes[number])?;
    fleet.lacks(true)?;
    Cluster::may_replace(&replica)?;
    fleet.settles()?;
    replaced(&mut cluster.nodes[number])?;
    fleet.goes_on()?;
    fleet.stop()
}

#[test]
fn sentinels_replace_a_master_that_dies() -> Result {
    by_sentinels(Redis::kill, nothing)
}

#[test]
fn sentinels_replace_a_master_that_hangs_and_does_not_know_it_for_a_while() -> Result {
    by_sentinels(|master| master.pause(), |master| master.resume())
}

#[test]
fn a_cluster_replaces_a_master_that_dies() -> Result {
    by_a_cluster(Redis::kill, nothing)
}

#[test]
fn a_cluster_replaces_a_master_that_hangs_and_does_not_know_it_for_a_while() -> Result {
    by_a_cluster(|master| master.pause(), |master| master.resume())
}
