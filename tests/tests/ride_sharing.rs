//! `examples/ride-sharing.yaml` as it is, but for addresses and hosts of the test: riders, drivers, partners and staff
//! do what they may and nothing else, and `gateway explain` says beforehand what becomes of them.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use harness::Result;
use harness::authority::{Authority, Pair};
use harness::gateway::Gateway;
use harness::idp::{Idp, now};
use harness::origin::{Origin, Reply, Request};
use harness::site::Site;
use serde_json::{Value, json};

const EXAMPLE: &str = include_str!("../../examples/ride-sharing.yaml");
const SECRET: &str = "8f2c0d5e7b914a6fb3d1e09c57a2468d";

struct Town {
    site: Site,
    authority: Authority,
    idp: Idp,
    service: Origin,
    public: SocketAddr,
    internal: SocketAddr,
}

impl Town {
    fn new() -> Result<Self> {
        let site = Site::new()?;
        let (idp, service) = (Idp::start(&site)?, site.origin(|_| Reply::Answer(200, "ok"))?);
        let (public, internal) = (site.free_address()?, site.free_address()?);
        Ok(Self { authority: Authority::new()?, site, idp, service, public, internal })
    }

    /// The gateway of the example, with certificates, secrets and an identity provider that are there.
    fn gateway(&self) -> Result<Gateway<'_>> {
        let own = json!({"kernel": {"attach": "off"}});
        let gateway = Gateway::unprivileged(self.site.namespace.as_ref(), own)?;
        let own: Value = serde_json::from_str(&fs::read_to_string(gateway.config())?)?;
        let folder = gateway.config().parent().context("a file is in a folder")?.to_owned();
        let secrets = folder.join("secrets");
        fs::create_dir(&secrets)?;
        for name in ["grand-hotel-1", "grand-hotel-2", "airport-1"] {
            fs::write(secrets.join(name), format!("{SECRET}-{name}\n"))?;
        }
        let tls = folder.join("tls");
        fs::create_dir(&tls)?;
        for (name, host) in [("api", "*.rides.example"), ("operations", "operations.rides.example")]
        {
            let pair = self.authority.issue(name, &[host])?;
            fs::copy(&pair.cert, tls.join(format!("{name}.pem")))?;
            fs::copy(&pair.key, tls.join(format!("{name}.key")))?;
        }
        fs::copy(self.authority.ca(), tls.join("staff-ca.pem"))?;
        let mut text = EXAMPLE.to_owned();
        let endpoint = self.service.address.to_string();
        for (from, to) in [
            ("0.0.0.0:443", self.public.to_string()),
            ("10.0.0.1:8443", self.internal.to_string()),
            ("[10.0.1.11:8080, 10.0.1.12:8080]", format!("[\"{endpoint}\"]")),
            ("[10.0.1.21:8080]", format!("[\"{endpoint}\"]")),
            ("[10.0.1.31:8080]", format!("[\"{endpoint}\"]")),
            ("[10.0.1.41:8080]", format!("[\"{endpoint}\"]")),
            ("https://login.rides.example/keys", self.idp.jwks_url()),
        ] {
            ensure!(text.contains(from), "the example has no {from}");
            text = text.replacen(from, &to, 1);
        }
        for (section, value) in own.as_object().context("no section")? {
            if ["state", "admin", "kernel", "user"].contains(&section.as_str()) {
                text.push_str(&format!("\n{section}: {value}\n"));
            }
        }
        gateway.write_config_text(&text)?;
        Ok(gateway)
    }

    /// The status of the answer to curl with these options.
    fn ask(&self, host: &str, path: &str, options: &[&str]) -> Result<u16> {
        let listen = if host == "operations" { self.internal } else { self.public };
        let host = format!("{host}.rides.example");
        let resolve = format!("{host}:{}:{}", listen.port(), listen.ip());
        let url = format!("https://{host}:{}{path}", listen.port());
        let ca = self.authority.ca().display().to_string();
        let common = ["-o", "/dev/null", "-w", "%{http_code}", "--cacert", &ca];
        let common = [&common[..], &["--resolve", &resolve, &url]].concat();
        let said = self.site.curl(&[&common[..], options].concat())?.stdout;
        let said = String::from_utf8(said)?;
        said.parse().with_context(|| format!("curl said {said}"))
    }

    fn last(&self) -> Result<Request> {
        self.service.requests().pop().context("the service was not asked")
    }

    fn token(&self, user: &str, role: &str) -> Result<String> {
        self.idp.token(&json!({
            "iss": "https://login.rides.example/", "aud": "rides-api", "sub": user,
            "plan": role, "roles": [role],
        }))
    }
}

/// The header fields of a partner's request (docs/signatures.md).
fn signed(
    site: &Site,
    key: &str,
    (method, target): (&str, &str),
    body: &str,
    nonce: &str,
) -> Result<Vec<String>> {
    let sha256 = |arguments: &[&str], text: &str| {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), text)?;
        let path = file.path().display().to_string();
        let said =
            site.run("openssl", &[&["dgst", "-sha256", "-r"][..], arguments, &[&path]].concat())?;
        let said = String::from_utf8(said.stdout)?;
        Ok::<_, anyhow::Error>(said.split(' ').next().unwrap_or_default().to_owned())
    };
    let (timestamp, digest) = (now(), sha256(&[], body)?);
    let text = format!("{method}\n{target}\n{timestamp}\n{nonce}\n{digest}");
    let signature = sha256(&["-hmac", &format!("{SECRET}-{key}")], &text)?;
    Ok(vec![
        format!("X-API-Key: {key}"),
        format!("X-Timestamp: {timestamp}"),
        format!("X-Nonce: {nonce}"),
        format!("X-Signature: {signature}"),
    ])
}

fn headers(fields: &[String]) -> Vec<&str> {
    fields.iter().flat_map(|field| ["-H", field.as_str()]).collect()
}

#[test]
fn riders_and_drivers_come_by_their_app() -> Result {
    let town = Town::new()?;
    let mut gateway = town.gateway()?;
    gateway.start()?;
    let bearer = |role: &str| {
        Ok::<_, anyhow::Error>(format!("Authorization: Bearer {}", town.token("ann", role)?))
    };
    let (rider, driver) = (bearer("rider")?, bearer("driver")?);
    assert_eq!(town.ask("api", "/healthz", &[])?, 204);
    assert_eq!(town.ask("api", "/v1/rides/7", &[])?, 401);
    let forged =
        ["-H", &rider, "-H", "X_User_Id: eve", "-H", "x-roles: driver", "-H", "X-Consumer: x"];
    assert_eq!(town.ask("api", "/v1/rides/7", &forged)?, 200);
    let request = town.last()?;
    assert_eq!(request.header("x-user-id"), Some("ann"));
    assert_eq!(request.header("x-roles"), Some("rider"));
    assert_eq!((request.header("x_user_id"), request.header("x-consumer")), (None, None));
    let post = ["-d", "{}"];
    assert_eq!(town.ask("api", "/v1/positions", &[&post[..], &["-H", &rider]].concat())?, 403);
    assert_eq!(town.ask("api", "/v1/positions", &[&post[..], &["-H", &driver]].concat())?, 200);
    // The burst of a rider is 20, of which one was used above, and another comes each second; drivers have more.
    let mut served = 0;
    while town.ask("api", "/v1/rides/7", &["-H", &rider])? == 200 {
        served += 1;
        ensure!(served < 500, "a rider may ask as often as he likes");
    }
    assert!(served >= 18, "{served}");
    assert_eq!(town.ask("api", "/v1/rides/7", &["-H", &driver])?, 200);
    gateway.stop()
}

#[test]
fn partners_sign_what_they_book() -> Result {
    let town = Town::new()?;
    let mut gateway = town.gateway()?;
    gateway.start()?;
    let body = r#"{"guest": "room 7"}"#;
    let book = |fields: &[String], body: &str| {
        town.ask("partners", "/v1/bookings", &[&headers(fields)[..], &["-d", body]].concat())
    };
    let post = ("POST", "/v1/bookings");
    let hotel = signed(&town.site, "grand-hotel-1", post, body, "booking-nonce-0001")?;
    assert_eq!(book(&hotel, body)?, 200);
    let request = town.last()?;
    assert_eq!(request.header("x-consumer"), Some("grand-hotel"));
    assert_eq!(book(&hotel, body)?, 401, "a replay");
    let other = signed(&town.site, "grand-hotel-1", post, body, "booking-nonce-0002")?;
    assert_eq!(book(&other, "{}")?, 401, "another body");
    assert_eq!(book(&[], body)?, 401);
    // A booking costs 5 of a burst of 10; the second one was the last, whichever key it is signed by.
    let second = signed(&town.site, "grand-hotel-2", post, body, "booking-nonce-0003")?;
    assert_eq!(book(&second, body)?, 200);
    let third = signed(&town.site, "grand-hotel-2", post, body, "booking-nonce-0004")?;
    assert_eq!(book(&third, body)?, 429);
    for number in 0..6 {
        let nonce = format!("airport-nonce-000{number}");
        let airport = signed(&town.site, "airport-1", post, body, &nonce)?;
        assert_eq!(book(&airport, body)?, 200, "the airport has a contract of its own");
    }
    gateway.stop()
}

#[test]
fn staff_come_by_their_certificates_and_explain_knows_everybody() -> Result {
    let town = Town::new()?;
    let dispatch = town.authority.issue("dispatch", &["dispatch.rides.example"])?;
    let support = town.authority.issue("support", &["support.rides.example"])?;
    let mut gateway = town.gateway()?;
    gateway.start()?;
    let by = |pair: &Pair, options: &[&str]| {
        let (cert, key) = (pair.cert.display().to_string(), pair.key.display().to_string());
        town.ask(
            "operations",
            "/drivers/7",
            &[&["--cert", &cert, "--key", &key][..], options].concat(),
        )
    };
    assert_eq!(by(&support, &[])?, 200);
    assert_eq!(town.last()?.header("x-roles"), Some("support"));
    assert_eq!(by(&support, &["-X", "DELETE"])?, 403);
    assert_eq!(by(&dispatch, &["-X", "DELETE"])?, 200);
    assert!(town.ask("operations", "/drivers/7", &[]).map_or(true, |status| status == 0));

    let config = gateway.config().display().to_string();
    let explain = |method: &str, url: &str, options: &[&str]| {
        let arguments = [&["explain", &config, method, url, "--json"][..], options].concat();
        gateway.cli(&arguments)?.ok()?.json()
    };
    let limits = |found: &Value| found["policies"].to_string();
    let token = format!("Authorization: Bearer {}", town.token("ann", "rider")?);
    let rider = explain("GET", "https://api.rides.example/v1/rides/7", &["-H", &token])?;
    assert_eq!(
        (&rider["caller"]["user"], &rider["caller"]["plan"]),
        (&json!("ann"), &json!("rider"))
    );
    assert!(limits(&rider).contains("rider-rate") && limits(&rider).contains("address"), "{rider}");
    assert!(!limits(&rider).contains("partner-rate"), "{rider}");
    let fields =
        signed(&town.site, "airport-1", ("GET", "/v1/bookings/1"), "", "explain-nonce-0001")?;
    let airport =
        explain("GET", "https://partners.rides.example/v1/bookings/1", &headers(&fields))?;
    assert_eq!(airport["caller"]["consumer"], "airport");
    assert!(limits(&airport).contains("airport-rate"), "{airport}");
    assert!(!limits(&airport).contains("partner-rate"), "{airport}");
    // A booking has a body, and credentials need not be on the command line.
    let files = tempfile::tempdir()?;
    let [body, fields] = ["body", "fields"].map(|name| files.path().join(name));
    fs::write(&body, "{}")?;
    let post = ("POST", "/v1/bookings");
    let hotel = signed(&town.site, "grand-hotel-1", post, "{}", "explain-nonce-0002")?;
    fs::write(&fields, hotel.join("\n"))?;
    let (fields, body) = (format!("@{}", fields.display()), body.display().to_string());
    let url = "https://partners.rides.example/v1/bookings";
    let hotel = explain("POST", url, &["-H", &fields, "--body", &body])?;
    assert_eq!(hotel["caller"]["consumer"], "grand-hotel", "{hotel}");
    assert!(limits(&hotel).contains("partner-rate"), "{hotel}");
    assert_eq!(explain("POST", url, &["-H", &fields])?["status"], 401, "of another body");
    let cert = dispatch.cert.display().to_string();
    let staff = explain("GET", "https://operations.rides.example/x", &["--cert", &cert])?;
    assert_eq!(staff["caller"]["roles"], json!(["dispatcher"]));
    assert!(limits(&staff).contains("address") && !limits(&staff).contains("partner"), "{staff}");
    let nobody = explain("POST", "https://partners.rides.example/v1/bookings", &[])?;
    assert_eq!(nobody["status"], 401);
    gateway.stop()
}
