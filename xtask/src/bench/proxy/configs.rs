//! What each subject and the origin are configured with: the same header work, the same access log, the same services.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::origins::BODY;

/// Where a subject listens.
#[derive(Clone, Copy)]
pub(in crate::bench) struct Places {
    pub(in crate::bench) plain: SocketAddr,
    pub(in crate::bench) tls: SocketAddr,
    pub(in crate::bench) h2c: SocketAddr,
}

/// What is behind the subjects.
pub(super) struct Origins {
    pub(super) origin: SocketAddr,
    pub(super) grpc: SocketAddr,
    pub(super) echo: SocketAddr,
}

const CERT: &str = "cert.pem";
const KEY: &str = "key.pem";
/// Certificate and key in one file, as HAProxy wants them.
const BOTH: &str = "both.pem";

/// Writes a certificate for all subjects: ECDSA P-256, the cheapest that all of them take.
pub(super) fn certificate(folder: &Path) -> anyhow::Result<()> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::write(folder.join(CERT), &cert)?;
    fs::write(folder.join(KEY), &key)?;
    fs::write(folder.join(BOTH), cert + &key)?;
    Ok(())
}

pub(super) fn gateway(name: &str, folder: &Path, places: &Places, behind: &Origins) -> Value {
    let certificate = json!({"cert": folder.join(CERT), "key": folder.join(KEY)});
    json!({
        "listen": [
            {"address": places.plain},
            {"address": places.tls, "tls": {"certificates": [certificate], "min_version": "1.3"}},
        ],
        "workers": 1,
        "state": {"dir": folder.join(format!("{name}.state"))},
        "admin": {"socket": folder.join(format!("{name}.sock"))},
        "access_log": {"path": folder.join(format!("{name}.access"))},
        "kernel": {"attach": "off"},
        // Whoever still has a WebSocket when a round is over does not keep the next one waiting.
        "bounds": {"body_bytes": "64MiB", "drain_timeout": "1s"},
        "upstreams": {
            "origin": {"endpoints": [behind.origin]},
            "grpc": {"endpoints": [behind.grpc], "protocol": "h2"},
            "echo": {"endpoints": [behind.echo]},
        },
        "routes": [
            {"match": {"path": "/grpc/{rest*}"}, "upstream": "grpc"},
            {"match": {"path": "/ws"}, "upstream": "echo"},
            {"match": {"path": "/{rest*}"}, "upstream": "origin"},
        ],
    })
}

/// The same with so many routes more.
pub(super) fn with_routes(mut config: Value, count: usize) -> Value {
    if let Some(routes) = config.pointer_mut("/routes").and_then(Value::as_array_mut) {
        routes.truncate(3);
        routes.extend((0..count).map(|number| {
            json!({"match": {"path": format!("/service-{number}/{{rest*}}")}, "upstream": "origin"})
        }));
    }
    config
}

const FIELDS: &str = "
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Request-Id $request_id;";

/// What the gateway writes of a request by itself, as the variables of nginx.
const NGINX_LINE: [(&str, &str); 20] = [
    ("time", "time_iso8601"),
    ("request_id", "request_id"),
    ("client", "remote_addr"),
    ("peer", "realip_remote_addr"),
    ("method", "request_method"),
    ("host", "http_host"),
    ("path", "uri"),
    ("protocol", "server_protocol"),
    ("status", "status"),
    ("route", "server_name"),
    ("upstream", "proxy_host"),
    ("endpoint", "upstream_addr"),
    ("upstream_status", "upstream_status"),
    ("connect", "upstream_connect_time"),
    ("response", "upstream_header_time"),
    ("first_byte", "upstream_response_time"),
    ("total", "request_time"),
    ("bytes_in", "request_length"),
    ("bytes_out", "body_bytes_sent"),
    ("complete", "request_completion"),
];

/// The same as HAProxy says it.
const HAPROXY_LINE: [(&str, &str); 20] = [
    ("time", "%tr"),
    ("request_id", "%ID"),
    ("client", "%[src]"),
    ("peer", "%ci"),
    ("method", "%HM"),
    ("host", "%[capture.req.hdr(0),json]"),
    ("path", "%[capture.req.uri,json]"),
    ("protocol", "%HV"),
    ("status", "%ST"),
    ("route", "%ft"),
    ("upstream", "%b"),
    ("endpoint", "%si:%sp"),
    ("attempts", "%rc"),
    ("wait", "%Tw"),
    ("connect", "%Tc"),
    ("response", "%Tr"),
    ("total", "%Ta"),
    ("bytes_in", "%U"),
    ("bytes_out", "%B"),
    ("complete", "%ts"),
];

/// A line of JSON with these fields.
fn line(fields: &[(&str, &str)], sigil: &str) -> String {
    let fields = fields.iter().map(|(name, value)| format!(r#""{name}":"{sigil}{value}""#));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

pub(super) fn nginx(folder: &Path, places: &Places, behind: &Origins) -> String {
    let Places { plain, tls, h2c } = places;
    let Origins { origin, grpc, echo } = behind;
    let folder = folder.display();
    let grpc_fields =
        FIELDS.replace("proxy_set", "grpc_set").replace("proxy_http_version 1.1;", "");
    let line = line(&NGINX_LINE, "$");
    nginx_config(&format!(
        "log_format line escape=json '{line}';
  access_log {folder}/nginx.access line buffer=64k flush=1s;
  ssl_certificate {folder}/{CERT}; ssl_certificate_key {folder}/{KEY}; ssl_protocols TLSv1.3;
  ssl_session_cache off; proxy_buffering on;
  upstream origin {{ server {origin}; keepalive 1024; keepalive_requests 1000000000; }}
  upstream grpc {{ server {grpc}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{ listen {plain} backlog=4096; listen {tls} ssl http2 backlog=4096; listen {h2c} http2;
    add_header X-Request-Id $request_id;
    location / {{ proxy_pass http://origin; proxy_set_header Connection '';{FIELDS} }}
    location /ws {{ proxy_pass http://{echo};
      proxy_set_header Connection upgrade; proxy_set_header Upgrade $http_upgrade;{FIELDS} }}
    location /grpc/ {{ grpc_pass grpc://grpc;{grpc_fields} }}
  }}"
    ))
}

pub(super) fn origin(files: &Path, address: SocketAddr) -> String {
    let fields = [
        ("host", "host"),
        ("for", "x_forwarded_for"),
        ("proto", "x_forwarded_proto"),
        ("forwarded_host", "x_forwarded_host"),
        ("id", "x_request_id"),
    ];
    let seen = fields.map(|(key, name)| format!(r#""{key}":"$http_{name}""#)).join(",");
    let files = files.display();
    nginx_config(&format!(
        "access_log off; sendfile on; server {{ listen {address} backlog=4096; root {files};
    location / {{ return 200 '{BODY}'; }}
    location = /64k {{ }}
    location = /10m {{ }}
    location = /seen {{ return 200 '{{{seen}}}'; }}
    location = /caller {{ return 200 '$http_x_consumer|$http_x_user_id'; }} }}"
    ))
}

fn nginx_config(rest: &str) -> String {
    format!(
        "daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit;
events {{ worker_connections 19000; }}
http {{
  tcp_nodelay on; default_type application/json;
  keepalive_timeout 1h; keepalive_requests 1000000000;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f;
  uwsgi_temp_path u; scgi_temp_path s;
  {rest}
}}
"
    )
}

pub(super) fn haproxy(folder: &Path, places: &Places, behind: &Origins) -> String {
    let Places { plain, tls, h2c } = places;
    let Origins { origin, grpc, echo } = behind;
    let folder = folder.display();
    let common = haproxy_config(
        "mode http
  log global
  option http-keep-alive
  timeout http-keep-alive 75s
  timeout tunnel 75s",
    );
    let line = line(&HAPROXY_LINE, "");
    format!(
        "{common}
frontend bench
  http-request capture req.hdr(host) len 64
  log-format '{line}'
  bind {plain} backlog 4096
  bind {tls} backlog 4096 ssl crt {folder}/{BOTH} alpn h2,http/1.1 ssl-min-ver TLSv1.3
  bind {h2c} proto h2
  option forwardfor
  unique-id-format %{{+X}}o%ci%cp%fi%fp%Ts%rt%pid
  unique-id-header X-Request-Id
  http-request set-header X-Forwarded-Proto http if !{{ ssl_fc }}
  http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-response set-header X-Request-Id %[unique-id]
  use_backend grpc if {{ path_beg /grpc/ }}
  use_backend echo if {{ path /ws }}
  default_backend origin
backend origin
  http-reuse always
  server origin {origin}
backend grpc
  http-reuse always
  server grpc {grpc} proto h2
backend echo
  server echo {echo}
"
    )
}

/// Everything to the origin but the upgrade, which nobody can tell who does not read.
pub(super) fn relay(places: &Places, behind: &Origins) -> String {
    let common = haproxy_config("mode tcp");
    let (plain, origin) = (places.plain, behind.origin);
    format!(
        "{common}
listen bench
  bind {plain} backlog 4096
  server origin {origin}
"
    )
}

fn haproxy_config(defaults: &str) -> String {
    format!(
        "global
  nbthread 1
  maxconn 9500
  log stdout format raw local0
defaults
  timeout connect 1s
  timeout client 75s
  timeout server 60s
  {defaults}"
    )
}
