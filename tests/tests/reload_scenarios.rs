//! A reload of many routes while requests and a WebSocket go on: whoever is connected notices nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use gateway::http::h1::upgrade::accept;
use harness::client::Client;
use harness::gateway::Gateway;
use harness::site::Site;
use harness::{Result, read_once, wait_for};
use serde_json::{Value, json};

/// As many as a build without optimization starts with in a few seconds.
const ROUTES: usize = 10_000;
const RELOADS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(60);
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Routes that answer with the `version` of the configuration, and one to a service.
fn config(listen: SocketAddr, service: SocketAddr, version: usize) -> Value {
    let route = |number: usize| {
        let path = format!("/users/{{id}}/things/{number}");
        json!({"match": {"path": path}, "respond": {"body": format!("{version}")}})
    };
    let mut routes: Vec<Value> = (0..ROUTES).map(route).collect();
    routes.push(json!({"match": {"path": "/{rest*}"}, "upstream": "service"}));
    json!({
        "listen": [{"address": listen.to_string()}],
        "workers": 2,
        "kernel": {"attach": "off"},
        "upstreams": {"service": {"endpoints": [service.to_string()]}},
        "routes": routes,
    })
}

/// A service that sends back what comes through a WebSocket, and answers everything else.
fn serve(mut stream: TcpStream) -> Result {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    loop {
        let head = read_head(&mut stream)?;
        if !head.contains("upgrade: websocket") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
            continue;
        }
        let accept = accept(KEY.as_bytes());
        stream.write_all(
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-accept: {accept}\r\n\r\n"
            )
            .as_bytes(),
        )?;
        let mut message = [0; 8];
        while stream.read_exact(&mut message).is_ok() {
            stream.write_all(&message)?;
        }
        return Ok(());
    }
}

fn read_head(stream: &mut TcpStream) -> Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(
            read_once(&mut *stream, &mut byte)? == 1,
            "closed after {}",
            String::from_utf8_lossy(&head)
        );
        head.push(byte[0]);
    }
    Ok(String::from_utf8(head)?)
}

/// What goes on until it is told to end: how often it did.
struct Load {
    ending: AtomicBool,
    answers: AtomicU64,
    echoes: AtomicU64,
}

impl Load {
    /// Does one part of it; nobody waits for what has failed.
    fn within(&self, work: impl FnOnce() -> Result) -> Result {
        let done = work();
        self.ending.store(true, Ordering::Relaxed);
        done
    }

    /// Requests over one connection.
    fn requests(&self, site: &Site, listen: SocketAddr) -> Result {
        let mut client = site.enter(|| Client::connect_here(None, listen, PATIENCE))??;
        while !self.ending.load(Ordering::Relaxed) {
            for path in ["/users/7/things/7", "/other"] {
                let answer = client.get(path)?;
                ensure!(answer.status == 200, "{path}: {}", answer.status);
                ensure!(answer.header("connection").is_none(), "{path}: the connection ends");
                self.answers.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Messages through one WebSocket.
    fn messages(&self, site: &Site, listen: SocketAddr) -> Result {
        let mut stream = site.enter(|| TcpStream::connect(listen))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        stream.write_all(
            format!(
                "GET /chat HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\r\n"
            )
            .as_bytes(),
        )?;
        ensure!(read_head(&mut stream)?.starts_with("HTTP/1.1 101 "), "no WebSocket");
        while !self.ending.load(Ordering::Relaxed) {
            let number = self.echoes.load(Ordering::Relaxed) + 1;
            stream.write_all(&number.to_be_bytes())?;
            let mut echo = [0; 8];
            stream.read_exact(&mut echo).context("the WebSocket ended")?;
            ensure!(echo == number.to_be_bytes(), "another message came back");
            self.echoes.store(number, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits until as much again has gone on on every side.
    fn goes_on(&self) -> Result {
        let seen = || (self.answers.load(Ordering::Relaxed), self.echoes.load(Ordering::Relaxed));
        let before = seen();
        wait_for("requests and messages", PATIENCE, || {
            let now = seen();
            let failed = self.ending.load(Ordering::Relaxed);
            Ok((failed || now.0 > before.0 + 10 && now.1 > before.1 + 10).then_some(()))
        })
    }
}

#[test]
fn a_reload_of_many_routes_fails_no_request_and_drops_no_websocket() -> Result {
    let site = Site::new()?;
    let service = site.enter(|| TcpListener::bind("127.0.0.1:0"))??;
    let address = service.local_addr()?;
    // It ends with the process.
    std::thread::spawn(move || {
        for stream in service.incoming().map_while(|stream| stream.ok()) {
            std::thread::spawn(move || drop(serve(stream)));
        }
    });
    let listen = site.free_address()?;
    let mut gateway = Gateway::unprivileged(site.namespace.as_ref(), config(listen, address, 0))?;
    gateway.start()?;
    let load = Load {
        ending: AtomicBool::new(false),
        answers: AtomicU64::new(0),
        echoes: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        let requests: Vec<_> =
            (0..4).map(|_| scope.spawn(|| load.within(|| load.requests(&site, listen)))).collect();
        let messages = scope.spawn(|| load.within(|| load.messages(&site, listen)));
        let reloaded = load.within(|| {
            load.goes_on()?;
            for version in 1..=RELOADS {
                gateway.write_config(config(listen, address, version))?;
                gateway.cli(&["reload"])?.ok()?;
                load.goes_on()?;
                let path = format!("/users/7/things/{}", ROUTES - 1);
                let answer = site.connect(None, listen)?.get(&path)?;
                ensure!(answer.text() == version.to_string(), "not in force: {answer:?}");
            }
            Ok(())
        });
        let joined = requests
            .into_iter()
            .chain([messages])
            .map(|load| load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect::<Result<Vec<()>>>()?;
        reloaded
    })?;
    let proxy = &gateway.status()?["proxy"];
    assert_eq!(proxy["requests"]["broken"], json!(0), "{proxy}");
    assert_eq!(proxy["requests"]["answered"]["5xx"], json!(0), "{proxy}");
    Ok(())
}
