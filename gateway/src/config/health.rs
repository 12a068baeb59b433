//! `upstreams.NAME.health`: how the gateway asks an endpoint whether it is well. Says nothing of when it is believed.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery};
use serde::Deserialize;

use super::Protocol;
use super::at::At;
use super::tree::shorten;
use super::value::{count, interval};

/// How endpoints are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What is asked.
    pub probe: Probe,
    /// Time between two checks of an endpoint.
    pub interval: Duration,
    /// Time that a check may take.
    pub timeout: Duration,
    /// Checks in a row that must pass before a sick endpoint is taken for well.
    pub healthy_after: u32,
    /// Checks in a row that must fail before a well endpoint is taken for sick.
    pub unhealthy_after: u32,
    /// The port to ask; `None` for the endpoint's own.
    pub port: Option<u16>,
    /// Whether over TLS, as the upstream has it.
    pub tls: bool,
    /// Whether a header of the PROXY protocol goes before.
    pub proxy_protocol: bool,
    /// What is spoken.
    pub protocol: Protocol,
}

/// What of an upstream its checks have to go by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) tls: bool,
    pub(super) proxy_protocol: bool,
    pub(super) protocol: Protocol,
}

/// What is asked of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// That it takes a connection.
    Tcp,
    /// That it answers a GET with one of these statuses.
    Http {
        /// Path and query.
        path: PathAndQuery,
        /// The header `Host`; `None` for the address.
        host: Option<Authority>,
        /// Good answers.
        status: Vec<RangeInclusive<u16>>,
    },
    /// That it answers `grpc.health.v1.Health/Check` with SERVING.
    Grpc {
        /// The authority; `None` for the address.
        host: Option<Authority>,
        /// Whose health; empty for that of the server.
        service: String,
    },
}

/// As typed.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawHealth {
    r#type: RawType,
    path: Option<String>,
    host: Option<String>,
    service: Option<String>,
    status: Option<Vec<String>>,
    port: Option<u16>,
    tls: Option<bool>,
    interval: String,
    timeout: String,
    healthy_after: u64,
    unhealthy_after: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawType {
    Http,
    Tcp,
    Grpc,
}

impl Default for RawHealth {
    fn default() -> Self {
        Self {
            r#type: RawType::Http,
            path: None,
            host: None,
            service: None,
            status: None,
            port: None,
            tls: None,
            interval: "5s".to_owned(),
            timeout: "2s".to_owned(),
            healthy_after: 2,
            unhealthy_after: 3,
        }
    }
}

const INTERVALS: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
const CHECKS: RangeInclusive<u64> = 1..=100;
const SERVICE_BYTES_MAX: usize = 256;

/// The section as meant.
pub(super) fn health(raw: &RawHealth, asked: Asked, at: At<'_>) -> Option<Health> {
    let time = |text: &str, key| interval(text, INTERVALS, at.key(key));
    let checks = |number, key| {
        let number = count(number, CHECKS, at.key(key));
        number.and_then(|number| u32::try_from(number).ok())
    };
    for (key, is_given, kinds) in [
        ("path", raw.path.is_some(), &[RawType::Http][..]),
        ("status", raw.status.is_some(), &[RawType::Http]),
        ("host", raw.host.is_some(), &[RawType::Http, RawType::Grpc]),
        ("service", raw.service.is_some(), &[RawType::Grpc]),
        ("tls", raw.tls.is_some(), &[RawType::Http, RawType::Grpc]),
    ] {
        if is_given && !kinds.contains(&raw.r#type) {
            at.key(key).error_with_help(
                format!("`{key}` means nothing to a check of this type"),
                "remove it, or choose another type",
            );
        }
    }
    if raw.port == Some(0) {
        at.key("port").error_with_help("there is no port 0", "write a port from 1 to 65535");
    }
    // What listens at another port is another server: nothing is taken for granted about it.
    let is_own = raw.port.is_none();
    let tls = raw.tls.unwrap_or(asked.tls && is_own);
    if tls && !asked.tls {
        at.key("tls").error_with_help(
            "this upstream says nothing about TLS, so that checks have none either",
            "add `tls` to the upstream, or take it out here",
        );
    }
    let protocol = match (raw.r#type, tls) {
        (RawType::Grpc, _) => Protocol::Http2,
        _ if is_own && tls == asked.tls => asked.protocol,
        (_, true) => Protocol::Auto,
        (_, false) => Protocol::Http1,
    };
    Some(Health {
        tls,
        proxy_protocol: asked.proxy_protocol && is_own,
        protocol,
        probe: probe(raw, at)?,
        interval: time(&raw.interval, "interval")?,
        timeout: time(&raw.timeout, "timeout")?,
        healthy_after: checks(raw.healthy_after, "healthy_after")?,
        unhealthy_after: checks(raw.unhealthy_after, "unhealthy_after")?,
        port: raw.port,
    })
}

fn probe(raw: &RawHealth, at: At<'_>) -> Option<Probe> {
    let host = match &raw.host {
        None => None,
        Some(host) => {
            let parsed = host.parse::<Authority>().ok().filter(|host| !host.as_str().contains('@'));
            if parsed.is_none() {
                at.key("host").error_with_help(
                    format!("`{}` is no host", shorten(host)),
                    "write one such as users.example.com",
                );
            }
            Some(parsed?)
        }
    };
    match raw.r#type {
        RawType::Tcp => Some(Probe::Tcp),
        RawType::Grpc => {
            let service = raw.service.clone().unwrap_or_default();
            if service.len() > SERVICE_BYTES_MAX {
                let help = format!("at most {SERVICE_BYTES_MAX} bytes");
                at.key("service").error_with_help("the name of the service is too long", help);
            }
            Some(Probe::Grpc { host, service })
        }
        RawType::Http => {
            let path = raw.path.as_deref().unwrap_or("/");
            let parsed = path.parse::<PathAndQuery>().ok().filter(|_| path.starts_with('/'));
            if parsed.is_none() {
                at.key("path").error_with_help(
                    format!("`{}` is no path", shorten(path)),
                    "write one from `/` on, such as /health",
                );
            }
            let status = match &raw.status {
                None => vec![200..=299],
                Some(texts) => statuses(texts, at.key("status")),
            };
            Some(Probe::Http { path: parsed?, host, status })
        }
    }
}

fn statuses(texts: &[String], at: At<'_>) -> Vec<RangeInclusive<u16>> {
    if texts.is_empty() {
        at.error_with_help("no status is a good one", "write some, such as [200-299]");
    }
    let read = |(index, text): (usize, &String)| {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let status = |text: &str| text.trim().parse().ok().filter(|one| (100..=599).contains(one));
        match (status(from), status(to)) {
            (Some(from), Some(to)) if from <= to => Some(from..=to),
            _ => {
                at.item(index).error_with_help(
                    format!("`{}` is no range of statuses", shorten(text)),
                    "write 200, or 200-299",
                );
                None
            }
        }
    };
    texts.iter().enumerate().filter_map(read).collect()
}
