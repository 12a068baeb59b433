//! Consumers by their certificates, through the real binary: over both protocols and in resumed sessions.

use std::net::SocketAddr;

use harness::Result;
use harness::authority::{Authority, Pair};
use harness::gateway::Gateway;
use harness::site::Site;
use serde_json::{Value, json};

struct Setting {
    site: Site,
    authority: Authority,
    listen: SocketAddr,
}

impl Setting {
    fn config(&self, server: &Pair, clients: Value) -> Value {
        let asked = json!({"ca": self.authority.ca(), "mode": "optional"});
        let tls = json!({"certificates": [server.json()], "client_certificates": asked});
        let route = |path: &str, consumer: &str| {
            json!({"match": {"path": path}, "auth": "devices", "require": {"consumers": [consumer]},
                   "upstream": "service"})
        };
        json!({
            "listen": [{"address": self.listen.to_string(), "tls": tls}],
            "workers": 1,
            "kernel": {"attach": "off"},
            "auth": {"devices": {"mtls": {"clients": clients}}},
            "upstreams": {"service": {"endpoints": ["echo"]}},
            "routes": [route("/meters", "meters"), route("/admin", "admin")],
        })
    }

    /// The statuses for a client: of the meters and of the admin.
    fn statuses(&self, pair: Option<&Pair>, more: &str) -> Result<[String; 2]> {
        let resolve = format!("api.test:{}:{}", self.listen.port(), self.listen.ip());
        let ca = self.authority.ca().display().to_string();
        let mut found = [String::new(), String::new()];
        for (path, found) in ["/meters", "/admin"].iter().zip(&mut found) {
            let url = format!("https://api.test:{}{path}", self.listen.port());
            let mut arguments = vec![
                "--cacert",
                &ca,
                "--resolve",
                &resolve,
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                more,
                &url,
            ];
            let files = pair
                .map(|Pair { cert, key, .. }| [cert, key].map(|file| file.display().to_string()));
            if let Some([cert, key]) = &files {
                arguments.extend(["--cert", cert, "--key", key]);
            }
            *found = String::from_utf8_lossy(&self.site.curl(&arguments)?.stdout).into_owned();
        }
        Ok(found)
    }

    fn openssl(&self, pair: &Pair, more: &str) -> Result<String> {
        let request = r"GET /meters HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n";
        let (cert, key) = (pair.cert.display(), pair.key.display());
        let command = format!(
            "printf '{request}' | timeout 10 openssl s_client -ign_eof -connect {} -cert {cert} -key {key} {more}",
            self.listen
        );
        Ok(String::from_utf8_lossy(&self.site.run("sh", &["-c", &command])?.stdout).into_owned())
    }
}

#[test]
fn a_certificate_is_its_consumer_over_both_protocols_and_in_resumed_sessions() -> Result {
    let (site, authority) = (Site::new()?, Authority::new()?);
    let listen = site.free_address()?;
    let setting = Setting { site, authority, listen };
    let issue = |name: &str, host: &str| setting.authority.issue(name, &[host]);
    let server = issue("server", "api.test")?;
    let meter = issue("meter", "meter-7.devices.test")?;
    let admin = issue("admin", "admin.office.test")?;
    let deeper = issue("deeper", "a.b.devices.test")?;
    let stranger = issue("stranger", "stranger.test")?;
    let cert = admin.cert.display().to_string();
    let printed = setting
        .site
        .run("openssl", &["x509", "-in", &cert, "-noout", "-fingerprint", "-sha256"])?;
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    let fingerprint = printed.trim().rsplit('=').next().unwrap_or_default().to_owned();
    let clients = json!([
        {"dns": "*.Devices.test", "consumer": "meters"},
        {"fingerprint": fingerprint, "consumer": "admin"},
    ]);
    let config = setting.config(&server, clients);
    let mut gateway = Gateway::unprivileged(setting.site.namespace.as_ref(), config)?;
    gateway.start()?;
    for protocol in ["--http1.1", "--http2"] {
        let statuses = |pair| setting.statuses(pair, protocol);
        assert_eq!(statuses(Some(&meter))?, ["200", "403"], "{protocol}");
        assert_eq!(statuses(Some(&admin))?, ["403", "200"], "{protocol}");
        for nobody in [None, Some(&deeper), Some(&stranger)] {
            assert_eq!(statuses(nobody)?, ["401", "401"], "{protocol} {nobody:?}");
        }
    }
    let session = setting.authority.folder().join("session");
    let session = session.display();
    setting.openssl(&meter, &format!("-sess_out {session}"))?;
    let resumed = setting.openssl(&meter, &format!("-sess_in {session}"))?;
    assert!(resumed.contains("Reused, TLSv1.3") && resumed.contains("200 OK"), "{resumed}");
    Ok(())
}
