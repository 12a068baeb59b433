//! Browsers: a real one, and what others offer in their handshakes, as openssl can say it.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use gateway::http::h1::upgrade::accept;
use harness::authority::{Authority, End, Kind, Pair};
use harness::gateway::Gateway;
use harness::origin::{Origin, Reply, Request};
use harness::site::Site;
use harness::{Result, wait_for};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// Says by another request what the page came over, and what a WebSocket said.
const PAGE: &str = "<!doctype html><script>
const spoken = performance.getEntriesByType('navigation')[0].nextHopProtocol;
const socket = new WebSocket('wss://' + location.host + '/socket');
const body = 'b'.repeat(100000);
const report = said => fetch('/report?' + spoken + '&' + said, {method: 'POST', body});
socket.onmessage = message => report(message.data);
socket.onerror = () => report('error');
</script>";

/// A WebSocket with one message, `hi`, and a goodbye.
fn socket(request: &Request) -> Reply {
    let proof = accept(request.header("sec-websocket-key").unwrap_or_default().as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {proof}\r\n\r\n"
    );
    Reply::Bytes([head.as_bytes(), b"\x81\x02hi\x88\x00"].concat())
}

fn script(request: &Request) -> Reply {
    match request.line.split(' ').nth(1) {
        Some("/socket") => socket(request),
        Some("/") => {
            let length = PAGE.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {length}\r\n\
                 connection: close\r\n\r\n"
            );
            Reply::Bytes([head.as_bytes(), PAGE.as_bytes()].concat())
        }
        _ => Reply::Answer(200, "fine"),
    }
}

/// A gateway with these certificates in front of `origin`.
fn gateway<'s>(
    site: &'s Site,
    certificates: &[&Pair],
    origin: &Origin,
) -> Result<(Gateway<'s>, SocketAddr)> {
    let listen = site.free_address()?;
    let certificates: Vec<Value> = certificates.iter().map(|pair| pair.json()).collect();
    let config = json!({
        "listen": [{"address": listen.to_string(), "tls": {"certificates": certificates}}],
        "workers": 1,
        "kernel": {"attach": "off"},
        "upstreams": {"service": {"endpoints": [origin.address.to_string()]}},
        "routes": [{"match": {"path": "/{rest*}"}, "upstream": "service"}],
    });
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config)?;
    gateway.start()?;
    Ok((gateway, listen))
}

/// A browser with a page. All of its processes end with it.
struct Browser(Child);

impl Browser {
    fn start(site: &Site, folder: &std::path::Path, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new("chromium");
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-sync"])
            .arg(format!("--user-data-dir={}", folder.join("profile").display()))
            .args(arguments)
            .env("HOME", folder)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(site.enter(|| command.spawn())?.context("chromium cannot be started")?))
    }

    /// Has it end by itself, so that it writes its files to their ends.
    fn end(&mut self) -> Result {
        killpg(Pid::from_raw(self.0.id().try_into()?), Signal::SIGTERM)?;
        let ended = || Ok(self.0.try_wait()?);
        wait_for("the end of the browser", PATIENCE, ended).map(drop)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Ok(group) = self.0.id().try_into() {
            // Already ended, or ended by this.
            killpg(Pid::from_raw(group), Signal::SIGKILL).ok();
        }
        drop(self.0.wait());
    }
}

/// The hash of a certificate's key that `--ignore-certificate-errors-spki-list` takes.
fn key_hash(site: &Site, pair: &Pair) -> Result<String> {
    let cert = pair.cert.display();
    let command = format!(
        "openssl x509 -in {cert} -noout -pubkey | openssl pkey -pubin -outform der \
         | openssl dgst -sha256 -binary | openssl base64"
    );
    Ok(String::from_utf8(site.run("sh", &["-c", &command])?.stdout)?.trim().to_owned())
}

#[test]
fn chromium_speaks_http_2_over_tls_1_3_with_websockets_in_it() -> Result {
    let (site, authority, folder) = (Site::new()?, Authority::new()?, tempfile::tempdir()?);
    let pair = authority.issue("api", &["api.test"])?;
    let origin = site.origin(script)?;
    let (_gateway, listen) = gateway(&site, &[&pair], &origin)?;
    let trusted = format!("--ignore-certificate-errors-spki-list={}", key_hash(&site, &pair)?);
    let log = folder.path().join("net.json");
    let logged = format!("--log-net-log={}", log.display());
    let url = format!("https://api.test:{}/", listen.port());
    let resolved = "--host-resolver-rules=MAP api.test 127.0.0.1, MAP * ~NOTFOUND";
    let mut browser = Browser::start(&site, folder.path(), &[&trusted, &logged, resolved, &url])?;
    let report = wait_for("the browser's report", PATIENCE, || {
        Ok(origin.requests().into_iter().find(|request| request.line.contains("/report")))
    })?;
    assert_eq!(report.line, "POST /report?h2&hi HTTP/1.1");
    assert_eq!(report.body.len(), 100_000);
    let socket = origin.requests().into_iter().find(|request| request.line.contains("/socket"));
    assert_eq!(socket.context("no WebSocket")?.header("upgrade"), Some("websocket"));

    browser.end()?;
    let log = std::fs::read_to_string(log)?;
    // An event a line; the last one is torn.
    let events = log.lines().map(|line| line.trim_end_matches(','));
    let agreed: Vec<Value> = events
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|event| event["params"].clone())
        .filter(|params| params["next_proto"].is_string() && params["version"].is_string())
        .collect();
    assert!(!agreed.is_empty(), "no handshake in the log");
    for params in agreed {
        ensure!(params["version"] == "TLS 1.3" && params["next_proto"] == "h2", "{params}");
        ensure!(params["key_exchange_group"] == 0x11ec, "not X25519MLKEM768: {params}");
    }
    Ok(())
}

/// What a browser offers, as options of `openssl s_client`.
struct Offer {
    name: &'static str,
    options: &'static str,
    /// Version, cipher suite and protocol that it gets.
    agreed: [&'static str; 3],
}

const OFFERS: [Offer; 6] = [
    Offer {
        name: "Chrome, without what openssl cannot say",
        options: "-ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:\
                  TLS_CHACHA20_POLY1305_SHA256 -cipher ECDHE-ECDSA-AES128-GCM-SHA256:\
                  ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:\
                  ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:\
                  ECDHE-RSA-CHACHA20-POLY1305:ECDHE-RSA-AES128-SHA:ECDHE-RSA-AES256-SHA:\
                  AES128-GCM-SHA256:AES256-GCM-SHA384:AES128-SHA:AES256-SHA -groups \
                  X25519:P-256:P-384 -sigalgs ECDSA+SHA256:RSA-PSS+SHA256:RSA+SHA256:\
                  ECDSA+SHA384:RSA-PSS+SHA384:RSA+SHA384:RSA-PSS+SHA512:RSA+SHA512 -alpn \
                  h2,http/1.1",
        agreed: ["TLSv1.3", "TLS_AES_", "h2"],
    },
    Offer {
        name: "Firefox, without what openssl cannot say",
        options: "-ciphersuites TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:\
                  TLS_AES_256_GCM_SHA384 -cipher ECDHE-ECDSA-AES128-GCM-SHA256:\
                  ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305:\
                  ECDHE-RSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES256-GCM-SHA384:\
                  ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-SHA:AES128-GCM-SHA256:\
                  AES256-GCM-SHA384 -groups X25519:P-256:P-384:P-521:ffdhe2048:ffdhe3072 \
                  -sigalgs ECDSA+SHA256:ECDSA+SHA384:ECDSA+SHA512:RSA-PSS+SHA256:\
                  RSA-PSS+SHA384:RSA-PSS+SHA512:RSA+SHA256:RSA+SHA384:RSA+SHA512:\
                  ECDSA+SHA1:RSA+SHA1 -alpn h2,http/1.1",
        agreed: ["TLSv1.3", "TLS_AES_", "h2"],
    },
    Offer {
        name: "Safari, without what openssl cannot say",
        options: "-ciphersuites TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:\
                  TLS_AES_128_GCM_SHA256 -cipher ECDHE-ECDSA-AES256-GCM-SHA384:\
                  ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305:\
                  ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256:\
                  ECDHE-RSA-CHACHA20-POLY1305 -groups X25519:P-256:P-384:P-521 -sigalgs \
                  ECDSA+SHA256:RSA-PSS+SHA256:RSA+SHA256:ECDSA+SHA384:RSA-PSS+SHA384:\
                  RSA+SHA384:RSA-PSS+SHA512:RSA+SHA512:RSA+SHA1 -alpn h2,http/1.1",
        agreed: ["TLSv1.3", "TLS_AES_", "h2"],
    },
    Offer {
        name: "Chrome 49, Windows XP: no TLS 1.3",
        options: "-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256:\
                  ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-SHA -groups X25519:P-256:\
                  P-384 -alpn h2,http/1.1",
        agreed: ["TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", "h2"],
    },
    Offer {
        name: "Safari 8: no HTTP/2, no X25519",
        options: "-tls1_2 -cipher ECDHE-ECDSA-AES256-SHA384:ECDHE-RSA-AES256-GCM-SHA384:\
                  AES256-SHA256 -groups P-256:P-384:P-521 -sigalgs RSA+SHA256:\
                  ECDSA+SHA256:RSA+SHA1",
        agreed: ["TLSv1.2", "ECDHE-RSA-AES256-GCM-SHA384", ""],
    },
    Offer {
        name: "Internet Explorer 11, Windows 10: ECDSA or nothing",
        options: "-tls1_2 -cipher ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-SHA384:\
                  AES256-SHA -groups P-256:P-384 -sigalgs RSA+SHA256:RSA+SHA384:RSA+SHA1:\
                  ECDSA+SHA256:ECDSA+SHA384 -alpn h2,http/1.1",
        agreed: ["TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384", "h2"],
    },
];

#[test]
fn browsers_of_today_get_tls_1_3_and_older_ones_what_they_have() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let ecdsa = authority.issue("ecdsa", &["api.test"])?;
    let rsa = authority.issue_as("rsa", &["api.test"], Kind::Rsa, End::Late)?;
    let origin = site.origin(script)?;
    let (_gateway, listen) = gateway(&site, &[&ecdsa, &rsa], &origin)?;
    for Offer { name, options, agreed: [version, suite, protocol] } in OFFERS {
        let ca = authority.ca();
        let command = format!(
            "timeout 10 openssl s_client -connect {listen} -servername api.test -CAfile {} \
             {options} </dev/null",
            ca.display()
        );
        let output = site.run("sh", &["-c", &command])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(said.contains(&format!("New, {version}, Cipher is {suite}")), "{name}: {said}");
        ensure!(said.contains("Verification: OK"), "{name}: {said}");
        let alpn = if protocol.is_empty() {
            "No ALPN negotiated".to_owned()
        } else {
            format!("ALPN protocol: {protocol}")
        };
        ensure!(said.contains(&alpn), "{name}: {said}");
    }
    Ok(())
}
