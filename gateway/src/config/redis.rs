//! `state.redis`: the Redis or Valkey that several gateways share, and how long they wait for it. Connects to nothing.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde::Deserialize;

use super::at::At;
use super::discovery::{Name, host_and_port, is_name};
use super::secret::{RawSecret, SecretSource, secret};
use super::tree::shorten;
use super::value::{file_path, interval, name, socket_address, within_u32};

/// Sentinels, or nodes of a cluster that are asked for the others.
const ADDRESSES_MAX: usize = 32;
/// Redis itself has 16 unless it is told otherwise.
const DATABASES_MAX: u64 = 1023;
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(1);
const CONNECT_TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(10);

/// The Redis or Valkey that several gateways share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// Where it is; of Sentinel and Cluster some of those that know the others. At least one.
    pub addresses: Vec<RedisAddress>,
    /// How it is built.
    pub mode: RedisMode,
    /// The database; 0 in a cluster.
    pub database: u32,
    /// Who the gateway is there; `None`: the default user, if there is a password.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<SecretSource>,
    /// `None`: plain TCP.
    pub tls: Option<RedisTls>,
    /// What every key begins with.
    pub prefix: String,
    /// What a request waits for one answer at most.
    pub timeout: Duration,
    /// Time to connect, agree on TLS and log in; no request waits for it.
    pub connect_timeout: Duration,
}

/// How it is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisMode {
    /// One server.
    Standalone,
    /// One of several, which Sentinels choose.
    Sentinel {
        /// What they call it.
        master: String,
        /// Who the gateway is to the Sentinels.
        user: Option<String>,
        /// Its password there; `None` for none.
        password: Option<SecretSource>,
    },
    /// Several, each with some of the keys.
    Cluster,
}

impl RedisMode {
    /// As it is written in the file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Sentinel { .. } => "sentinel",
            Self::Cluster => "cluster",
        }
    }
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisAddress {
    /// An address and port.
    Address(SocketAddr),
    /// A host that is looked up, and its port.
    Host(String, u16),
}

/// TLS to every server of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisTls {
    /// Whom alone to trust, as PEM; `None`: the authorities of the system.
    pub ca: Option<PathBuf>,
    /// The name that certificates must have; `None`: the host or address that is connected to.
    pub server_name: Option<String>,
}

/// `state.redis` as typed.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawRedis {
    /// `ip:port` or `host:port`.
    addresses: Vec<String>,
    mode: RawMode,
    /// Of Sentinel: what the master is called.
    master: Option<String>,
    sentinel_user: Option<String>,
    sentinel_password: Option<RawSecret>,
    database: u64,
    user: Option<String>,
    password: Option<RawSecret>,
    tls: Option<RawRedisTls>,
    prefix: String,
    timeout: String,
    connect_timeout: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawMode {
    #[default]
    Standalone,
    Sentinel,
    Cluster,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawRedisTls {
    ca: Option<String>,
    server_name: Option<String>,
}

impl Default for RawRedis {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            mode: RawMode::Standalone,
            master: None,
            sentinel_user: None,
            sentinel_password: None,
            database: 0,
            user: None,
            password: None,
            tls: None,
            prefix: "gateway".to_owned(),
            timeout: "10ms".to_owned(),
            connect_timeout: "1s".to_owned(),
        }
    }
}

/// The section as meant. What could not be read has been reported.
pub(super) fn redis(raw: &RawRedis, folder: &Path, at: At<'_>) -> Redis {
    let time = |text: &str, bounds, key| interval(text, bounds, at.key(key)).unwrap_or_default();
    let source = |raw: &Option<RawSecret>, key| {
        raw.as_ref().and_then(|raw| secret(raw, folder, at.key(key)))
    };
    if raw.user.is_some() && raw.password.is_none() {
        at.key("user").error_with_help(
            "a user needs a password here",
            "write `password: {file: PATH}` or `password: {env: NAME}`",
        );
    }
    // Braces would decide which node of a cluster has every key.
    let prefix = name(&raw.prefix, "what keys begin with", at.key("prefix"));
    Redis {
        addresses: addresses(raw, at),
        mode: mode(raw, source(&raw.sentinel_password, "sentinel_password"), at),
        database: within_u32(raw.database, 0..=DATABASES_MAX, at.key("database"))
            .unwrap_or_default(),
        user: raw.user.clone(),
        password: source(&raw.password, "password"),
        tls: raw.tls.as_ref().map(|raw| tls(raw, folder, at.key("tls"))),
        prefix: if prefix { raw.prefix.clone() } else { String::new() },
        timeout: time(&raw.timeout, TIMEOUTS, "timeout"),
        connect_timeout: time(&raw.connect_timeout, CONNECT_TIMEOUTS, "connect_timeout"),
    }
}

fn addresses(raw: &RawRedis, at: At<'_>) -> Vec<RedisAddress> {
    let at = at.key("addresses");
    let example = "write where it is, such as `addresses: [10.0.0.5:6379]`";
    match raw.addresses.len() {
        0 => at.error_with_help("there is no address of Redis", example),
        2.. if raw.mode == RawMode::Standalone => at.error_with_help(
            "several addresses are no `standalone`",
            "name one, or say `mode: sentinel` or `mode: cluster`",
        ),
        count if count > ADDRESSES_MAX => at.error_with_help(
            format!("{count} addresses are more than {ADDRESSES_MAX}"),
            "name a few: they know the others",
        ),
        _ => {}
    }
    let mut found: Vec<RedisAddress> = Vec::new();
    for (index, text) in raw.addresses.iter().enumerate() {
        let at = at.item(index);
        let address = if is_name(text) {
            host_and_port(text, at).and_then(|name| match name {
                Name::Host { host, port } => Some(RedisAddress::Host(host, port)),
                Name::Service(_) => None,
            })
        } else {
            socket_address(text, at).map(RedisAddress::Address)
        };
        let Some(address) = address else { continue };
        if found.contains(&address) {
            at.error_with_help(
                format!("`{}` is given twice", shorten(text)),
                "remove one of the two",
            );
        } else {
            found.push(address);
        }
    }
    found
}

fn mode(raw: &RawRedis, password: Option<SecretSource>, at: At<'_>) -> RedisMode {
    let of_sentinel = [
        ("master", raw.master.is_some()),
        ("sentinel_user", raw.sentinel_user.is_some()),
        ("sentinel_password", raw.sentinel_password.is_some()),
    ];
    if raw.mode != RawMode::Sentinel {
        for (key, _) in of_sentinel.into_iter().filter(|(_, given)| *given) {
            at.key(key).on_key().error_with_help(
                format!("`{key}` is for Sentinel"),
                "say `mode: sentinel` or remove it",
            );
        }
    }
    match raw.mode {
        RawMode::Standalone => RedisMode::Standalone,
        RawMode::Cluster => {
            if raw.database != 0 {
                at.key("database")
                    .error_with_help("a cluster has no database but 0", "remove `database`");
            }
            RedisMode::Cluster
        }
        RawMode::Sentinel => {
            let help = "write `master: NAME` as in `sentinel monitor NAME ...`";
            match &raw.master {
                None => at.error_with_help("which master Sentinel is asked for is not said", help),
                Some(master) => {
                    name(master, "a master", at.key("master"));
                }
            }
            if raw.sentinel_user.is_some() && raw.sentinel_password.is_none() {
                at.key("sentinel_user").error_with_help(
                    "a user needs a password here",
                    "write `sentinel_password: {file: PATH}` or {env: NAME}",
                );
            }
            let master = raw.master.clone().unwrap_or_default();
            RedisMode::Sentinel { master, user: raw.sentinel_user.clone(), password }
        }
    }
}

fn tls(raw: &RawRedisTls, folder: &Path, at: At<'_>) -> RedisTls {
    if let Some(name) = &raw.server_name
        && ServerName::try_from(name.as_str()).is_err()
    {
        at.key("server_name").error_with_help(
            format!("`{}` is no name in a certificate", shorten(name)),
            "write a name such as redis.internal, or an address",
        );
    }
    RedisTls {
        ca: raw.ca.as_ref().and_then(|path| file_path(path, folder, at.key("ca"))),
        server_name: raw.server_name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Errors, parse};
    use super::*;

    fn with(section: &str) -> Result<Redis, Errors> {
        let text = format!("listen: [{{address: 127.0.0.1:80}}]\nstate: {{redis: {section}}}");
        parse("/etc/gateway/a.yaml", &text).map(|config| config.state.redis.unwrap())
    }

    #[test]
    fn one_address_is_enough_and_the_rest_has_defaults() {
        let redis = with("{addresses: [10.0.0.5:6379]}").unwrap();
        assert_eq!(
            redis,
            Redis {
                addresses: vec![RedisAddress::Address("10.0.0.5:6379".parse().unwrap())],
                mode: RedisMode::Standalone,
                database: 0,
                user: None,
                password: None,
                tls: None,
                prefix: "gateway".to_owned(),
                timeout: Duration::from_millis(10),
                connect_timeout: Duration::from_secs(1),
            }
        );
        let without = parse("a.yaml", "listen: [{address: 127.0.0.1:80}]\nstate: {redis: null}");
        assert_eq!(without.unwrap().state.redis, None);
    }

    #[test]
    fn sentinel_tls_and_passwords_are_understood() {
        let redis = with(
            "{addresses: [a.internal:26379, '[::1]:26379'], mode: sentinel, master: main, \
             sentinel_password: {env: S}, user: gw, password: {file: redis.pw}, database: 3, \
             tls: {ca: ca.pem, server_name: redis.internal}, timeout: 5ms, prefix: edge}",
        )
        .unwrap();
        assert_eq!(redis.addresses[0], RedisAddress::Host("a.internal".to_owned(), 26379));
        let password = Some(SecretSource::Env("S".to_owned()));
        let master = "main".to_owned();
        assert_eq!(redis.mode, RedisMode::Sentinel { master, user: None, password });
        assert_eq!(redis.password, Some(SecretSource::File("/etc/gateway/redis.pw".into())));
        assert_eq!(redis.tls.unwrap().ca, Some("/etc/gateway/ca.pem".into()));
        assert_eq!((redis.database, redis.prefix.as_str()), (3, "edge"));
    }

    #[test]
    fn mistakes_are_named() {
        for (section, message) in [
            ("{}", "there is no address of Redis"),
            ("{addresses: ['10.0.0.5']}", "`10.0.0.5` has no port"),
            ("{addresses: ['redis://a:6379']}", "is a URL"),
            ("{addresses: ['a:1', 'b:1']}", "several addresses are no `standalone`"),
            ("{addresses: ['a:1', 'a:1'], mode: cluster}", "`a:1` is given twice"),
            ("{addresses: ['a:1'], mode: cluster, database: 1}", "no database but 0"),
            ("{addresses: ['a:1'], mode: sentinel}", "which master"),
            ("{addresses: ['a:1'], master: m}", "`master` is for Sentinel"),
            ("{addresses: ['a:1'], user: u}", "a user needs a password"),
            ("{addresses: ['a:1'], password: secret}", "a secret does not belong into this file"),
            ("{addresses: ['a:1'], timeout: 2s}", "out of bounds"),
            ("{addresses: ['a:1'], timeout: 100us}", "out of bounds"),
            ("{addresses: ['a:1'], prefix: '{x}'}", "is no name"),
            ("{addresses: ['a:1'], tls: {server_name: 'a b'}}", "no name in a certificate"),
            ("{addresses: ['a:1'], mode: clustr}", "found `clustr`"),
            ("{adresses: ['a:1']}", "did you mean `addresses`?"),
        ] {
            let errors = with(section).expect_err(section).to_string();
            assert!(errors.contains(message), "{section}: {errors}");
        }
    }
}
