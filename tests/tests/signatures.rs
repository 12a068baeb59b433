//! Signed requests through the real binary: what is accepted once, and everything that is not.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PSS_SHA512,
};
use aws_lc_rs::{hmac, rsa};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gateway::base::time::utc;
use harness::client::Client;
use harness::gateway::Gateway;
use harness::origin::{Origin, Reply};
use harness::redis::Redis;
use harness::site::{PATIENCE, Site};
use harness::successor::Successor;
use harness::{Result, wait_for};
use serde_json::{Value, json};

const SECRET: &str = "an-example-secret-that-all-may-know";
const OTHER: &str = "another-secret-that-is-long-enough-too";

struct Setting {
    site: Site,
    origin: Origin,
    listen: SocketAddr,
    folder: tempfile::TempDir,
}

impl Setting {
    fn new() -> Result<Self> {
        let site = Site::new()?;
        let origin = site.origin(|_| Reply::Answer(200, "ok"))?;
        let listen = site.free_address()?;
        let folder = tempfile::tempdir()?;
        readable(folder.path(), 0o755)?;
        for (name, secret) in [("one", SECRET), ("two", OTHER)] {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("{secret}\n"))?;
            readable(&path, 0o644)?;
        }
        Ok(Self { site, origin, listen, folder })
    }

    fn config(&self, hmac: &Value) -> Value {
        let path = |name: &str| self.folder.path().join(name);
        let mut hmac = hmac.as_object().cloned().unwrap_or_default();
        let keys = json!([
            {"id": "partner-1", "consumer": "acme", "secret": {"file": path("one")}},
            {"id": "partner-2", "consumer": "acme", "secret": {"file": path("two")}},
        ]);
        hmac.insert("keys".to_owned(), keys);
        json!({
            "listen": [{"address": self.listen.to_string()}],
            "workers": 2,
            "kernel": {"attach": "off"},
            "auth": {"signed": {"hmac": hmac}},
            "upstreams": {"service": {"endpoints": [self.origin.address.to_string()]}},
            "routes": [{
                "match": {"path": "/{rest*}"},
                "auth": "signed",
                "require": {"consumers": ["acme"]},
                "upstream": "service",
                "rewrite": "/behind/{rest}",
            }],
        })
    }

    fn gateway(&self, hmac: &Value) -> Result<Gateway<'_>> {
        let mut gateway = Gateway::unprivileged(self.site.namespace.as_ref(), self.config(hmac))?;
        gateway.start()?;
        Ok(gateway)
    }

    /// The status of a request over a connection of its own.
    fn ask(&self, request: &[u8]) -> Result<u16> {
        let mut client = self.site.connect(None, self.listen)?;
        client.send(request)?;
        Ok(client.receive()?.status)
    }

    /// A request that has arrived, which the answer says, but for its body of four bytes.
    fn begun(&self, nonce: &str) -> Result<(Signed, Client)> {
        let signed = Signed::new("POST", "/", nonce, "body");
        let mut client = self.site.connect(None, self.listen)?;
        client.send(signed.head("Expect: 100-continue\r\nContent-Length: 4\r\n").as_bytes())?;
        assert_eq!(client.receive()?.status, 100);
        Ok((signed, client))
    }
}

fn readable(path: &Path, mode: u32) -> Result {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

fn now() -> u64 {
    utc().0 / 1000
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request in parts, so that a test can change each of them behind its signature.
#[derive(Clone)]
struct Signed {
    method: &'static str,
    target: String,
    timestamp: String,
    nonce: String,
    key: &'static str,
    signature: String,
    body: &'static str,
}

impl Signed {
    fn new(method: &'static str, target: &str, nonce: &str, body: &'static str) -> Self {
        Self::at(now(), (method, target), nonce, body)
    }

    fn at(
        timestamp: u64,
        (method, target): (&'static str, &str),
        nonce: &str,
        body: &'static str,
    ) -> Self {
        let nonce = format!("{nonce:-<16}");
        let hash = hex(digest(&SHA256, body.as_bytes()).as_ref());
        let text = format!("{method}\n{target}\n{timestamp}\n{nonce}\n{hash}");
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        Self {
            method,
            target: target.to_owned(),
            timestamp: timestamp.to_string(),
            nonce,
            key: "partner-1",
            signature: hex(hmac::sign(&key, text.as_bytes()).as_ref()),
            body,
        }
    }

    fn head(&self, more: &str) -> String {
        let Self { method, target, timestamp, nonce, key, signature, .. } = self;
        format!(
            "{method} {target} HTTP/1.1\r\nHost: h\r\nX-API-Key: {key}\r\nX-Timestamp: {timestamp}\r\n\
             X-Nonce: {nonce}\r\nX-Signature: {signature}\r\n{more}\r\n"
        )
    }

    fn bytes(&self) -> Vec<u8> {
        let length = format!("Content-Length: {}\r\n", self.body.len());
        [self.head(&length).as_bytes(), self.body.as_bytes()].concat()
    }

    fn chunked(&self) -> Vec<u8> {
        let mut bytes = self.head("Transfer-Encoding: chunked\r\n").into_bytes();
        for piece in self.body.as_bytes().chunks(3) {
            bytes.extend(format!("{:x}\r\n", piece.len()).into_bytes());
            bytes.extend([piece, b"\r\n"].concat());
        }
        bytes.extend(b"0\r\nX-Trailer: unsigned\r\n\r\n");
        bytes
    }
}

#[test]
fn a_signed_request_is_accepted_once_whatever_happens_in_between() -> Result {
    let setting = Setting::new()?;
    let gateway = setting.gateway(&json!({}))?;
    let signed = Signed::new("POST", "/orders?page=2&sort=-date", "once", "{\"hello\": \"world\"}");
    assert_eq!(setting.ask(&signed.bytes())?, 200);
    let seen = setting.origin.requests().pop().expect("the service was asked");
    assert_eq!(seen.line, "POST /behind/orders?page=2&sort=-date HTTP/1.1");
    assert_eq!(seen.body, signed.body.as_bytes());
    assert_eq!(setting.ask(&signed.bytes())?, 401, "the same once more");

    gateway.write_config(setting.config(&json!({"skew": "10m"})))?;
    gateway.cli(&["reload"])?.ok()?;
    assert_eq!(setting.ask(&signed.bytes())?, 401, "the same after a reload");
    let again = Signed::new("GET", "/", "twice", "");
    assert_eq!(setting.ask(&again.bytes())?, 200);
    assert_eq!(setting.origin.requests().len(), 2);
    assert!(!gateway.log().contains(SECRET) && !gateway.log().contains(&signed.signature));
    Ok(())
}

#[test]
fn a_successor_knows_what_its_predecessor_has_accepted() -> Result {
    let setting = Setting::new()?;
    let mut gateway = setting.gateway(&json!({}))?;
    // As by a clock that is ahead: it is not too old for anybody who was started meanwhile.
    let used = Signed::at(now() + 60, ("GET", "/"), "used", "");
    let fresh = Signed::new("GET", "/", "fresh", "");
    assert_eq!(setting.ask(&used.bytes())?, 200);
    gateway.replace()?;
    assert_eq!(setting.ask(&used.bytes())?, 401, "once more, at the successor");
    assert_eq!(setting.ask(&fresh.bytes())?, 200, "signed before it was started");
    assert_eq!(setting.ask(&fresh.bytes())?, 401);
    gateway.stop()
}

#[test]
fn explain_checks_a_signature_and_uses_no_nonce_up() -> Result {
    let setting = Setting::new()?;
    let mut gateway = setting.gateway(&json!({}))?;
    let explain = |signed: &Signed| {
        let config = gateway.config().display().to_string();
        let head = signed.head("");
        let fields = head.lines().skip(2).filter(|line| !line.is_empty());
        let fields = fields.flat_map(|field| ["-H", field]);
        let arguments = ["explain", &config, "GET", "http://h/", "--json"].into_iter();
        let found = gateway.cli(&arguments.chain(fields).collect::<Vec<_>>())?.ok()?.json()?;
        Ok::<_, anyhow::Error>((found["caller"]["consumer"].clone(), found["status"].clone()))
    };
    let good = Signed::new("GET", "/", "good", "");
    assert_eq!(explain(&good)?, (json!("acme"), Value::Null));
    assert_eq!(setting.ask(&good.bytes())?, 200);
    let before = Signed::at(now() - 60, ("GET", "/"), "before", "");
    assert_eq!(explain(&before)?.0, "acme", "signed before anybody explains it");
    let old = Signed::at(now() - 3600, ("GET", "/"), "old", "");
    assert_eq!(explain(&old)?, (Value::Null, json!(401)));
    gateway.stop()
}

#[test]
fn nothing_is_accepted_here_that_a_successor_may_have_accepted() -> Result {
    let setting = Setting::new()?;
    let mut gateway = setting.gateway(&json!({}))?;
    let mut successor = Successor::of(&gateway)?;
    successor.release()?;
    let first = Signed::new("GET", "/", "first", "");
    assert_eq!(setting.ask(&first.bytes())?, 200, "it has not asked yet");
    let told = successor.accepted()?;
    assert!(told.windows(6).any(|part| part == b"signed"), "{told:?}");
    let second = Signed::new("GET", "/", "second", "");
    assert_eq!(setting.ask(&second.bytes())?, 503, "the successor decides");
    drop(successor);
    let mut number = 0;
    wait_for("signed requests", PATIENCE, || {
        number += 1;
        let signed = Signed::new("GET", "/", &format!("later-{number}"), "");
        Ok((setting.ask(&signed.bytes())? == 200).then_some(()))
    })?;
    for signed in [&first, &second] {
        assert_eq!(setting.ask(&signed.bytes())?, 401, "it may have been accepted there");
    }
    gateway.stop()
}

#[test]
fn while_a_successor_starts_signed_requests_wait_for_what_it_says() -> Result {
    let setting = Setting::new()?;
    let gateway = setting.gateway(&json!({}))?;
    let mut successor = Successor::of(&gateway)?;
    successor.release()?;
    successor.accepted_and_answers()?;
    let clients = (0..5).map(|number| setting.begun(&format!("asked-{number}")));
    let mut clients = clients.collect::<Result<Vec<_>>>()?;
    for (_, client) in &mut clients {
        client.send(b"body")?;
    }
    successor.serving()?;
    for answer in *b"yufm?" {
        assert_eq!(successor.answer(answer)?, "signed");
    }
    let statuses = clients.iter_mut().map(|(_, client)| Ok(client.receive()?.status));
    let mut statuses = statuses.collect::<Result<Vec<_>>>()?;
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401, 401, 503, 503]);
    Ok(())
}

#[test]
fn what_is_in_flight_while_another_takes_over_is_accepted_by_one_of_the_two() -> Result {
    let setting = Setting::new()?;
    let mut gateway = setting.gateway(&json!({}))?;
    let (mut fresh, mut used) = (setting.begun("fresh")?, setting.begun("used")?);
    // Whoever has a connection without a request is told to go once the other one serves.
    let mut idle = setting.site.connect(None, setting.listen)?;
    idle.send(&Signed::new("GET", "/", "idle", "").bytes())?;
    assert_eq!(idle.receive()?.status, 200);
    std::thread::scope(|scope| -> Result {
        let replacing = scope.spawn(|| gateway.replace());
        let asked = (|| {
            idle.read_to_end()?;
            assert_eq!(setting.ask(&used.0.bytes())?, 200, "at the successor");
            for ((_, client), status) in [(&mut fresh, 200), (&mut used, 401)] {
                client.send(b"body")?;
                assert_eq!(client.receive()?.status, status, "at the predecessor");
            }
            assert_eq!(setting.ask(&fresh.0.bytes())?, 401, "at the successor, once more");
            Ok(())
        })();
        // It waits for what is in flight.
        drop((fresh, used));
        let replaced = replacing.join().map_err(|_| anyhow::anyhow!("replacing has panicked"))?;
        asked.and(replaced)
    })?;
    gateway.stop()
}

#[test]
fn whatever_is_changed_behind_its_signature_is_noticed() -> Result {
    let setting = Setting::new()?;
    let _gateway = setting.gateway(&json!({}))?;
    let good = Signed::new("PUT", "/a%2Db?q=a+b", "changed", "body");
    let (mut method, mut body, mut key) = (good.clone(), good.clone(), good.clone());
    method.method = "POST";
    body.body = "Body";
    key.key = "partner-2";
    let mut changed = vec![method, body, key];
    for target in
        ["/a-b?q=a+b", "/a%2db?q=a+b", "/a%2Db?q=a%20b", "/a%2Db", "/A%2Db?q=a+b", "/a%2Db?q=a+b&"]
    {
        changed.push(Signed { target: target.to_owned(), ..good.clone() });
    }
    for signature in [
        good.signature[..62].to_owned(),
        good.signature.to_uppercase(),
        format!("{}00", good.signature),
        "0".repeat(64),
        String::new(),
    ] {
        changed.push(Signed { signature, ..good.clone() });
    }
    let later = (now() + 1).to_string();
    changed.push(Signed { timestamp: later, ..good.clone() });
    changed.push(Signed { timestamp: format!("0{}", good.timestamp), ..good.clone() });
    changed.push(Signed { nonce: format!("{}x", good.nonce), ..good.clone() });
    changed.push(Signed { key: "partner-9", ..good.clone() });
    for (index, request) in changed.iter().enumerate() {
        assert_eq!(setting.ask(&request.bytes())?, 401, "number {index}");
    }
    for twice in
        ["X-API-Key: partner-1", "X-Timestamp: 1", "X-Nonce: 1", "X-Signature: 1", "x-nonce: "]
    {
        let request = good.head(&format!("{twice}\r\nContent-Length: 4\r\n")) + good.body;
        assert_eq!(setting.ask(request.as_bytes())?, 401, "{twice}");
    }
    assert!(setting.origin.requests().is_empty(), "nothing of it was forwarded");
    assert_eq!(setting.ask(&good.bytes())?, 200, "none of that has used the nonce up");
    Ok(())
}

#[test]
fn a_clock_may_be_off_by_the_skew_and_no_more() -> Result {
    let setting = Setting::new()?;
    let _gateway = setting.gateway(&json!({"skew": "5m"}))?;
    for (timestamp, status) in [
        (now() + 200, 200),
        (now() + 400, 401),
        (now() - 400, 401),
        // Within the skew, but before the gateway was started: it may have been used then.
        (now() - 200, 401),
        (0, 401),
    ] {
        let signed = Signed::at(timestamp, ("GET", "/"), &format!("t{timestamp}"), "");
        assert_eq!(setting.ask(&signed.bytes())?, status, "{timestamp} at {}", now());
    }
    Ok(())
}

#[test]
fn a_body_is_read_in_full_within_its_bound_before_anything_goes_on() -> Result {
    let setting = Setting::new()?;
    let _gateway = setting.gateway(&json!({"body_bytes": 64}))?;
    let chunked = Signed::new("POST", "/", "chunked", "a body in pieces");
    assert_eq!(setting.ask(&chunked.chunked())?, 200);
    let seen = setting.origin.requests().pop().expect("the service was asked");
    assert_eq!(seen.body, b"a body in pieces");

    const LONG: &str =
        "more than the bound: 0123456789012345678901234567890123456789012345678901234567890";
    for nonce in ["declared", "pieces"] {
        let long = Signed::new("POST", "/", nonce, LONG);
        let bytes = if nonce == "pieces" { long.chunked() } else { long.bytes() };
        assert_eq!(setting.ask(&bytes)?, 413, "{nonce}");
    }
    let mut wrong = Signed::new("POST", "/", "mismatch", "right");
    wrong.body = "wrong";
    assert_eq!(setting.ask(&wrong.chunked())?, 401);
    assert_eq!(setting.origin.requests().len(), 1);

    let waiting = Signed::new("POST", "/", "expect", "body");
    let mut client = setting.site.connect(None, setting.listen)?;
    client.send(waiting.head("Expect: 100-continue\r\nContent-Length: 4\r\n").as_bytes())?;
    assert_eq!(client.receive()?.status, 100);
    client.send(b"body")?;
    assert_eq!(client.receive()?.status, 200);
    let unknown = Signed { key: "nobody", ..Signed::new("POST", "/", "unknown", "body") };
    client.send(unknown.head("Expect: 100-continue\r\nContent-Length: 4\r\n").as_bytes())?;
    assert_eq!(client.receive()?.status, 401, "nobody asks for a body that does not matter");
    Ok(())
}

#[test]
fn http2_is_signed_as_http1_is() -> Result {
    let setting = Setting::new()?;
    let _gateway = setting.gateway(&json!({}))?;
    let signed = Signed::new("POST", "/x?y=%31", "http2", "body");
    let url = format!("http://{}{}", setting.listen, signed.target);
    let fields = [
        "X-API-Key: partner-1".to_owned(),
        format!("X-Timestamp: {}", signed.timestamp),
        format!("X-Nonce: {}", signed.nonce),
        format!("X-Signature: {}", signed.signature),
    ];
    let mut arguments = vec!["--http2-prior-knowledge", "-d", "body", "-w", " %{http_code}", &url];
    fields.iter().for_each(|field| arguments.extend(["-H", field]));
    let said = setting.site.curl(&arguments)?;
    assert_eq!(String::from_utf8_lossy(&said.stdout), "ok 200");
    let said = setting.site.curl(&arguments)?;
    assert!(String::from_utf8_lossy(&said.stdout).ends_with(" 401"));
    Ok(())
}

#[test]
fn a_full_table_of_nonces_refuses_and_a_bad_signature_takes_no_place_in_it() -> Result {
    let setting = Setting::new()?;
    let _gateway = setting.gateway(&json!({"nonces": 1000}))?;
    let mut client = setting.site.connect(None, setting.listen)?;
    let mut status = |signed: &Signed| -> Result<u16> {
        client.send(&signed.bytes())?;
        Ok(client.receive()?.status)
    };
    for number in 0..1200 {
        let forged = Signed::new("GET", "/", &format!("forged-{number}"), "");
        assert_eq!(status(&Signed { signature: "0".repeat(64), ..forged })?, 401);
    }
    let mut found = Vec::new();
    for number in 0..1100 {
        found.push(status(&Signed::new("GET", "/", &format!("number-{number}"), ""))?);
    }
    assert_eq!(found[0], 200);
    assert!(found.contains(&503) && found.iter().all(|status| [200, 503].contains(status)));
    Ok(())
}

/// A request signed as RFC 9421 has it.
fn described(components: &str, base: &str, params: &str, more: &str, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let sign = |base: &[u8]| hmac::sign(&key, base).as_ref().to_vec();
    described_by(sign, (components, base, params), more, body)
}

fn described_by(
    sign: impl Fn(&[u8]) -> Vec<u8>,
    (components, base, params): (&str, &str, &str),
    more: &str,
    body: &str,
) -> String {
    let params = format!("({components}){params}");
    let base = format!("{base}\"@signature-params\": {params}");
    let signature = STANDARD.encode(sign(base.as_bytes()));
    format!(
        "POST /x?y=z HTTP/1.1\r\nHost: Example.com:80\r\nSignature-Input: s={params}\r\n\
         Signature: s=:{signature}:\r\nContent-Length: {}\r\n{more}\r\n{body}",
        body.len()
    )
}

#[test]
fn message_signatures_are_accepted_if_they_cover_enough() -> Result {
    let setting = Setting::new()?;
    let _gateway = setting.gateway(&json!({"cover": ["x-account"]}))?;
    let digest = format!("sha-256=:{}:", STANDARD.encode(digest(&SHA256, b"body")));
    let fields = format!("Content-Digest: {digest}\r\nX-Account: 7\r\n");
    let all = "\"@method\" \"@target-uri\" \"content-digest\" \"x-account\"";
    let base = format!(
        "\"@method\": POST\n\"@target-uri\": http://example.com/x?y=z\n\"content-digest\": {digest}\n\
         \"x-account\": 7\n"
    );
    let params = |nonce: &str, more: &str| {
        format!(";created={};keyid=\"partner-1\";nonce=\"{nonce:-<16}\"{more}", now())
    };
    let good = described(all, &base, &params("good", ""), &fields, "body");
    assert_eq!(setting.ask(good.as_bytes())?, 200);
    assert_eq!(setting.ask(good.as_bytes())?, 401, "once more");
    let named = described(all, &base, &params("alg", ";alg=\"hmac-sha256\""), &fields, "body");
    assert_eq!(setting.ask(named.as_bytes())?, 200);

    let refused = |what: &str, request: &str| -> Result {
        assert_eq!(setting.ask(request.as_bytes())?, 401, "{what}");
        Ok(())
    };
    let with = |more: &str| described(all, &base, &params("other", more), &fields, "body");
    refused("another algorithm", &with(";alg=\"ed25519\""))?;
    refused("expired", &with(&format!(";expires={}", now() - 1)))?;
    let body = with("").replace("\r\n\r\nbody", "\r\n\r\nBODY");
    refused("another body", &body)?;
    let field = with("").replace("X-Account: 7", "X-Account: 8");
    refused("another field", &field)?;
    let twice = with("").replace("X-Account: 7", "X-Account: 7\r\nX-Account: 7");
    refused("a field twice", &twice)?;
    let label = with("").replace("Signature: s=", "Signature: s=:AAAA:, s=");
    refused("a label twice", &label)?;
    let both = with("").replace("X-Account", "X-Signature: 00\r\nX-Account");
    refused("two ways at once", &both)?;
    let no_nonce = format!(";created={};keyid=\"partner-1\"", now());
    refused("no nonce", &described(all, &base, &no_nonce, &fields, "body"))?;
    let no_time = ";keyid=\"partner-1\";nonce=\"no-time---------\"";
    refused("no time", &described(all, &base, no_time, &fields, "body"))?;
    let little = "\"@method\" \"@target-uri\" \"x-account\"";
    let base_of_little =
        "\"@method\": POST\n\"@target-uri\": http://example.com/x?y=z\n\"x-account\": 7\n";
    let bodiless = described(little, base_of_little, &params("little", ""), &fields, "body");
    refused("a body that is not covered", &bodiless)?;
    let empty = described(little, base_of_little, &params("empty", ""), &fields, "");
    assert_eq!(setting.ask(empty.as_bytes())?, 200, "no body needs no digest");
    Ok(())
}

/// Signs, and the algorithm and the public key in PEM that verify it.
type Signer = (&'static str, String, Box<dyn Fn(&[u8]) -> Vec<u8>>);

fn signers() -> Result<[Signer; 3]> {
    let pem = |der: &[u8]| {
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    };
    let ed25519 = Ed25519KeyPair::generate()?;
    let ecdsa = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let rsa = rsa::KeyPair::generate(rsa::KeySize::Rsa2048)?;
    let ed25519_pem = pem(AsDer::<PublicKeyX509Der<'_>>::as_der(ed25519.public_key())?.as_ref());
    let ecdsa_pem = pem(AsDer::<PublicKeyX509Der<'_>>::as_der(ecdsa.public_key())?.as_ref());
    let rsa_pem = pem(AsDer::<PublicKeyX509Der<'_>>::as_der(rsa.public_key())?.as_ref());
    let by_ecdsa = move |text: &[u8]| {
        let signature = ecdsa.sign(&SystemRandom::new(), text);
        signature.map(|signature| signature.as_ref().to_vec()).unwrap_or_default()
    };
    let by_rsa = move |text: &[u8]| {
        let mut signature = vec![0; rsa.public_modulus_len()];
        let signed = rsa.sign(&RSA_PSS_SHA512, &SystemRandom::new(), text, &mut signature);
        signed.map(|()| signature).unwrap_or_default()
    };
    Ok([
        ("ed25519", ed25519_pem, Box::new(move |text| ed25519.sign(text).as_ref().to_vec())),
        ("ecdsa-p256-sha256", ecdsa_pem, Box::new(by_ecdsa)),
        ("rsa-pss-sha512", rsa_pem, Box::new(by_rsa)),
    ])
}

#[test]
fn a_public_key_verifies_what_its_own_private_one_has_signed_and_nothing_else() -> Result {
    let setting = Setting::new()?;
    let signers = signers()?;
    let mut config = setting.config(&json!({}));
    let mut keys = Vec::new();
    for (algorithm, pem, _) in &signers {
        let path = setting.folder.path().join(algorithm);
        std::fs::write(&path, pem)?;
        readable(&path, 0o644)?;
        keys.push(json!({"id": algorithm, "consumer": "acme", "public_key": path}));
    }
    config["auth"]["signed"]["hmac"]["keys"] = json!(keys);
    let mut gateway = Gateway::unprivileged(setting.site.namespace.as_ref(), config)?;
    gateway.start()?;
    let content = format!("sha-256=:{}:", STANDARD.encode(digest(&SHA256, b"body")));
    let fields = format!("Content-Digest: {content}\r\n");
    let all = "\"@method\" \"@target-uri\" \"content-digest\"";
    let base = format!(
        "\"@method\": POST\n\"@target-uri\": http://example.com/x?y=z\n\"content-digest\": {content}\n"
    );
    let params = |key: &str, nonce: &str, more: &str| {
        format!(";created={};keyid=\"{key}\";nonce=\"{nonce:-<16}\"{more}", now())
    };
    for (number, (algorithm, pem, sign)) in signers.iter().enumerate() {
        let signed = |nonce: &str, more: &str| {
            described_by(sign, (all, &base, &params(algorithm, nonce, more)), &fields, "body")
        };
        let good = signed("good", "");
        assert_eq!(setting.ask(good.as_bytes())?, 200, "{algorithm}");
        assert_eq!(setting.ask(good.as_bytes())?, 401, "{algorithm}: once more");
        let named = signed("named", &format!(";alg=\"{algorithm}\""));
        assert_eq!(setting.ask(named.as_bytes())?, 200, "{algorithm} by its name");
        let (other, _, by_another) = &signers[(number + 1) % signers.len()];
        let other = signed("other", &format!(";alg=\"{other}\""));
        assert_eq!(setting.ask(other.as_bytes())?, 401, "{algorithm} by another name");
        let changed = signed("changed", "").replace("POST /x?y=z", "POST /x?y=Z");
        assert_eq!(setting.ask(changed.as_bytes())?, 401, "{algorithm}: another target");

        let forged = |sign: &dyn Fn(&[u8]) -> Vec<u8>, more: &str| {
            let params = params(algorithm, "forged", more);
            setting.ask(described_by(sign, (all, &base, &params), &fields, "body").as_bytes())
        };
        assert_eq!(forged(by_another, "")?, 401, "{algorithm} by another key");
        assert_eq!(forged(&|_| Vec::new(), "")?, 401, "{algorithm}: nothing");
        assert_eq!(forged(&|text| sign(text)[1..].to_vec(), "")?, 401, "{algorithm}: cut off");
        // The public key as a shared secret, the oldest trick against tokens.
        let by_secret = |text: &[u8]| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, pem.as_bytes());
            hmac::sign(&key, text).as_ref().to_vec()
        };
        for more in ["", ";alg=\"hmac-sha256\""] {
            assert_eq!(forged(&by_secret, more)?, 401, "{algorithm} as a secret");
        }
        let fields = Signed { key: algorithm, ..Signed::new("GET", "/", algorithm, "") };
        assert_eq!(setting.ask(&fields.bytes())?, 401, "{algorithm} in the other format");
    }
    assert_eq!(setting.origin.requests().len(), 2 * signers.len());
    gateway.stop()
}

#[test]
fn what_cannot_be_a_key_is_explained_and_never_shown() -> Result {
    let setting = Setting::new()?;
    std::fs::write(setting.folder.path().join("one"), "too-short")?;
    let config = setting.config(&json!({}));
    let mut gateway = Gateway::unprivileged(setting.site.namespace.as_ref(), config)?;
    let outcome = gateway.start_refused()?;
    let said = format!("{outcome:?}");
    assert!(
        said.contains("auth.signed: the key `partner-1`") && !said.contains("too-short"),
        "{said}"
    );
    let mut typed = setting.config(&json!({}));
    typed["auth"]["signed"]["hmac"]["keys"][0]["secret"] = json!("typed-into-the-file");
    gateway.write_config(typed)?;
    let said = format!("{:?}", gateway.start_refused()?);
    assert!(said.contains("a secret does not belong into this file"), "{said}");
    Ok(())
}

/// A gateway beside others, which share what `redis` knows, or alone.
fn config(redis: Option<&Redis>, secret: &Path, listen: SocketAddr) -> Value {
    let keys = json!([{"id": "partner-1", "consumer": "acme", "secret": {"file": secret}}]);
    let redis =
        redis.map(|redis| json!({"addresses": [redis.address.to_string()], "timeout": "1s"}));
    json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "state": {"redis": redis},
        "auth": {"signed": {"hmac": {"keys": keys}}},
        "upstreams": {"service": {"endpoints": ["echo"]}},
        "routes": [{"match": {"path": "/{rest*}"}, "auth": "signed", "upstream": "service"}],
    })
}

/// One that shares, and where it listens.
fn sharing(redis: &Redis, secret: &Path) -> Result<(Gateway<'static>, SocketAddr)> {
    let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut gateway = Gateway::unprivileged(None, config(Some(redis), secret, listen))?;
    gateway.start()?;
    Ok((gateway, listen))
}

/// The status of a request to a gateway here.
fn ask_at(listen: SocketAddr, signed: &Signed) -> Result<u16> {
    let mut client = Client::connect_here(None, listen, PATIENCE)?;
    client.send(&signed.bytes())?;
    Ok(client.receive()?.status)
}

/// A request that was accepted: the first, once it is known that Redis is there.
fn settled(listen: SocketAddr, name: &str) -> Result<Signed> {
    let mut number = 0;
    wait_for("an answer", PATIENCE, || {
        number += 1;
        let fresh = Signed::new("GET", "/", &format!("{name}-{number}"), "");
        Ok((ask_at(listen, &fresh)? == 200).then_some(fresh))
    })
}

/// A folder with the secret in it.
fn with_secret() -> Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    readable(folder.path(), 0o755)?;
    let secret = folder.path().join("secret");
    std::fs::write(&secret, SECRET)?;
    readable(&secret, 0o644)?;
    Ok((folder, secret))
}

#[test]
fn what_one_process_has_used_the_next_refuses_also_with_redis() -> Result {
    let (_folder, secret) = with_secret()?;
    let redis = Redis::start()?;
    let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut gateway = Gateway::unprivileged(None, config(None, &secret, listen))?;
    gateway.start()?;
    let used = Signed::new("GET", "/", "used", "");
    assert_eq!(ask_at(listen, &used)?, 200);
    gateway.kill9()?;
    gateway.start()?;
    assert_eq!(ask_at(listen, &used)?, 401, "killed and started in the same second");

    let again = settled(listen, "again")?;
    gateway.kill9()?;
    gateway.write_config(config(Some(&redis), &secret, listen))?;
    gateway.start()?;
    settled(listen, "shared")?;
    for signed in [&used, &again] {
        assert_eq!(ask_at(listen, signed)?, 401, "Redis has never heard of it");
    }
    // Once this is on the disk, a restart refuses nothing that Redis would know.
    let mark = gateway.config().with_file_name("state").join("nonces.json");
    wait_for("a mark on the disk", PATIENCE, || {
        let text = std::fs::read_to_string(&mark).unwrap_or_default();
        let marks: Value = serde_json::from_str(&text).unwrap_or_default();
        Ok((marks["signed"]["place"].as_u64() > Some(0)).then_some(()))
    })?;
    let known = settled(listen, "known")?;
    let unused = Signed::new("GET", "/", "unused", "");
    gateway.kill9()?;
    wait_for("another second", PATIENCE, || {
        Ok((now().to_string() > unused.timestamp).then_some(()))
    })?;
    gateway.start()?;
    settled(listen, "last")?;
    assert_eq!(ask_at(listen, &unused)?, 200, "signed before the start, by a clock that lags");
    for signed in [&used, &again, &known, &unused] {
        assert_eq!(ask_at(listen, signed)?, 401);
    }
    gateway.stop()
}

#[test]
fn a_successor_with_redis_knows_what_was_used_before_there_was_one() -> Result {
    let (_folder, secret) = with_secret()?;
    let redis = Redis::start()?;
    let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut gateway = Gateway::unprivileged(None, config(None, &secret, listen))?;
    gateway.start()?;
    let used = settled(listen, "memory")?;
    gateway.write_config(config(Some(&redis), &secret, listen))?;
    gateway.cli(&["reload"])?.ok()?;
    let shared = settled(listen, "shared")?;
    gateway.replace()?;
    settled(listen, "successor")?;
    for signed in [&used, &shared] {
        assert_eq!(ask_at(listen, signed)?, 401);
    }
    gateway.stop()
}

#[test]
fn a_secret_that_changes_is_in_force_at_once_unless_it_is_none() -> Result {
    let setting = Setting::new()?;
    let gateway = setting.gateway(&json!({}))?;
    let put = |secret: &str| -> Result {
        let (new, path) = (setting.folder.path().join("new"), setting.folder.path().join("one"));
        std::fs::write(&new, secret)?;
        readable(&new, 0o644)?;
        Ok(std::fs::rename(new, path)?)
    };
    let mut number = 0;
    let mut ask = || {
        number += 1;
        setting.ask(&Signed::new("GET", "/", &format!("watched-{number}"), "").bytes())
    };
    assert_eq!(ask()?, 200);
    put(OTHER)?;
    wait_for("another secret", PATIENCE, || Ok((ask()? == 401).then_some(())))?;
    put(&format!("{SECRET}\n"))?;
    wait_for("the secret as it was", PATIENCE, || Ok((ask()? == 200).then_some(())))?;
    put("too-short")?;
    wait_for("a word about it", PATIENCE, || {
        Ok(gateway.log().contains("the key stays as it was").then_some(()))
    })?;
    assert_eq!(ask()?, 200, "a bad version is not taken");
    let log = gateway.log();
    assert!(![SECRET, OTHER, "too-short"].iter().any(|secret| log.contains(secret)), "{log}");
    Ok(())
}

#[test]
fn gateways_that_share_redis_accept_a_nonce_once_together_and_refuse_without_it() -> Result {
    let (_folder, secret) = with_secret()?;
    let mut redis = Redis::start()?;
    let (_one, first) = sharing(&redis, &secret)?;
    let (_other, second) = sharing(&redis, &secret)?;
    let used = settled(first, "first")?;
    settled(second, "second")?;
    assert_eq!(ask_at(second, &used)?, 401, "used at the other gateway");
    assert_eq!(ask_at(first, &used)?, 401);
    redis.kill()?;
    for listen in [first, second] {
        assert_eq!(ask_at(listen, &Signed::new("GET", "/", "without", ""))?, 503);
        assert_eq!(ask_at(listen, &used)?, 503, "nobody can tell");
        let forged = Signed::new("GET", "/", "forged", "");
        let forged = Signed { signature: "0".repeat(64), ..forged };
        assert_eq!(ask_at(listen, &forged)?, 401, "what is wrong anyway is no question for Redis");
    }
    redis.start_again()?;
    settled(first, "again")?;
    Ok(())
}
