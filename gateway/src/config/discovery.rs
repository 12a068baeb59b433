//! `discovery`: how endpoints that have names are looked up, and what such a name is. Looks nothing up.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Deserialize;

use super::at::At;
use super::tree::shorten;
use super::value::{count, interval, port_or, within_u32};

/// How names are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Who is asked; empty for those of the system.
    pub resolvers: Vec<SocketAddr>,
    /// Time for one question, all attempts together.
    pub timeout: Duration,
    /// How often a question is asked at most.
    pub attempts: u32,
    /// A name is looked up again no sooner, however short its TTL.
    pub min_interval: Duration,
    /// And no later, however long.
    pub max_interval: Duration,
    /// Addresses of one name.
    pub max_addresses: usize,
    /// Which addresses are asked for.
    pub family: Family,
}

/// Which addresses of a host are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Both.
    #[default]
    Any,
    /// A records.
    Ipv4,
    /// AAAA records.
    Ipv6,
}

/// What is looked up to find endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// A host with a port: each of its addresses is an endpoint.
    Host {
        /// In lower case; with a dot at its end no search list applies.
        host: String,
        /// The port of all of them.
        port: u16,
    },
    /// A service: its SRV records name hosts, ports and weights.
    Service(String),
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { host, port } => write!(formatter, "{host}:{port}"),
            Self::Service(name) => formatter.write_str(name),
        }
    }
}

/// As typed.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawDiscovery {
    resolvers: Vec<String>,
    timeout: String,
    attempts: u64,
    min_interval: String,
    max_interval: String,
    max_addresses: u64,
    family: Family,
}

impl Default for RawDiscovery {
    fn default() -> Self {
        Self {
            resolvers: Vec::new(),
            timeout: "3s".to_owned(),
            attempts: 2,
            min_interval: "5s".to_owned(),
            max_interval: "1h".to_owned(),
            max_addresses: 32,
            family: Family::Any,
        }
    }
}

const RESOLVERS_MAX: usize = 8;
const ATTEMPTS: RangeInclusive<u64> = 1..=5;
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
const INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const ADDRESSES: RangeInclusive<u64> = 1..=512;
/// Where resolvers listen (RFC 1035, section 4.2).
const PORT: u16 = 53;
/// A name and a label of it (RFC 1035, section 2.3.4).
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// The section as meant. What could not be read has been reported.
pub(super) fn discovery(raw: &RawDiscovery, at: At<'_>) -> Discovery {
    let time = |text: &str, bounds, key| interval(text, bounds, at.key(key)).unwrap_or_default();
    let min_interval = time(&raw.min_interval, INTERVALS, "min_interval");
    let max_interval = time(&raw.max_interval, INTERVALS, "max_interval");
    if max_interval < min_interval {
        at.key("max_interval").error_with_help(
            "`max_interval` is less than `min_interval`",
            "write a longer one, or a shorter `min_interval`",
        );
    }
    Discovery {
        resolvers: resolvers(&raw.resolvers, at.key("resolvers")),
        timeout: time(&raw.timeout, TIMEOUTS, "timeout"),
        attempts: within_u32(raw.attempts, ATTEMPTS, at.key("attempts")).unwrap_or(1),
        min_interval,
        max_interval,
        max_addresses: count(raw.max_addresses, ADDRESSES, at.key("max_addresses")).unwrap_or(1),
        family: raw.family,
    }
}

fn resolvers(texts: &[String], at: At<'_>) -> Vec<SocketAddr> {
    if texts.len() > RESOLVERS_MAX {
        at.on_key().error_with_help(
            format!("{} resolvers are more than {RESOLVERS_MAX}", texts.len()),
            "two or three are enough",
        );
    }
    let mut found = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let at = at.item(index);
        let Some(address) = port_or(text, PORT, at) else { continue };
        if found.contains(&address) {
            at.error_with_help(format!("`{text}` is given twice"), "remove one of the two");
        } else if address.ip().is_unspecified() || address.ip().is_multicast() {
            at.error_with_help(
                format!("`{text}` is the address of no single host"),
                "write the address of the resolver, such as 10.0.0.2",
            );
        } else {
            found.push(address);
        }
    }
    found
}

/// Whether a text is rather a name with a port than an address with one.
pub(super) fn is_name(text: &str) -> bool {
    let (host, _) = text.rsplit_once(':').unwrap_or((text, ""));
    // Colons are in IPv6 addresses, letters too.
    let letters = host.bytes().any(|byte| byte.is_ascii_alphabetic());
    letters && (!host.contains(':') || host.contains("//"))
}

/// `host:port`.
pub(super) fn host_and_port(text: &str, at: At<'_>) -> Option<Name> {
    let shown = shorten(text);
    if text.contains("//") {
        at.error_with_help(
            format!("`{shown}` is a URL"),
            "write host and port alone, such as api.internal:8080; `tls: {}` is for https",
        );
        return None;
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        at.error_with_help(
            format!("`{shown}` has no port"),
            format!("write the port too, such as {shown}:80"),
        );
        return None;
    };
    let host = host_name(host, at)?;
    match port.parse() {
        Ok(number @ 1..) if !port.starts_with('+') => Some(Name::Host { host, port: number }),
        _ => {
            at.error_with_help(
                format!("`{}` is no port", shorten(port)),
                "write a port from 1 to 65535",
            );
            None
        }
    }
}

/// `_service._proto.name` (RFC 2782).
pub(super) fn service(text: &str, at: At<'_>) -> Option<Name> {
    let lower = text.to_ascii_lowercase();
    let parts = lower.splitn(3, '.').collect::<Vec<_>>();
    let is_label = |label: &str| label.strip_prefix('_').is_some_and(is_label);
    match parts.as_slice() {
        [service, proto, rest] if is_label(service) && is_label(proto) => {
            host_name(rest, at)?;
            Some(Name::Service(lower))
        }
        _ => {
            at.error_with_help(
                format!("`{}` is no name of a service", shorten(text)),
                "write one such as _http._tcp.api.internal",
            );
            None
        }
    }
}

/// A name of a host (RFC 1123, section 2.1), in lower case.
fn host_name(text: &str, at: At<'_>) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let name = lower.strip_suffix('.').unwrap_or(&lower);
    let last = name.rsplit('.').next().unwrap_or_default();
    let help = if !name.split('.').all(is_label) {
        "write labels of letters, digits and `-`, each at most 63, such as api.internal"
    } else if last.bytes().all(|byte| byte.is_ascii_digit()) {
        "its last label must not be a number, for that is how addresses end"
    } else if name.len() > NAME_BYTES_MAX {
        "a name has at most 253 characters"
    } else {
        return Some(lower);
    };
    at.error_with_help(format!("`{}` is no name of a host", shorten(text)), help);
    None
}

fn is_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Target;
    use crate::config::tests::{only, with};

    fn target(endpoint: &str) -> Target {
        let text = format!("upstreams: {{a: {{endpoints: [{endpoint}]}}}}");
        with(&text).unwrap().upstreams[0].endpoints[0].target.clone()
    }

    #[test]
    fn endpoints_may_have_names() {
        let host = |host: &str, port| Target::Name(Name::Host { host: host.to_owned(), port });
        assert_eq!(target("API.internal:8080"), host("api.internal", 8080));
        assert_eq!(target("{address: 'users.:80', weight: 3}"), host("users.", 80));
        assert_eq!(target("1st.x-y.example:1"), host("1st.x-y.example", 1));
        let service = "_http._tcp.api.internal".to_owned();
        assert_eq!(target("{srv: _HTTP._tcp.api.internal}"), Target::Name(Name::Service(service)));
        assert_eq!(
            target("'[2001:db8::a]:80'"),
            Target::Address("[2001:db8::a]:80".parse().unwrap())
        );
    }

    #[test]
    fn names_that_cannot_be_are_pointed_at() {
        let wrong = |endpoint: &str, message: &str, pointed: &str| {
            only(&format!("upstreams: {{a: {{endpoints: [{endpoint}]}}}}"), message, pointed);
        };
        wrong("users", "`users` has no port", "users");
        wrong("'http://users:80'", "`http://users:80` is a URL", "'http://users:80'");
        wrong("a_b.internal:80", "`a_b.internal` is no name of a host", "a_b.internal:80");
        wrong("-a.internal:80", "`-a.internal` is no name of a host", "-a.internal:80");
        wrong("a..b:80", "`a..b` is no name of a host", "a..b:80");
        wrong("a.10:80", "`a.10` is no name of a host", "a.10:80");
        let long = format!("{}:80", vec!["a".repeat(60); 5].join("."));
        // As much of it as a line shows.
        wrong(&long, &format!("`{}...` is no name of a host", &long[..60]), &long[..72]);
        for port in ["0", "65536", "x", "+8"] {
            let text = format!("'users:{port}'");
            wrong(&text, &format!("`{port}` is no port"), &text);
        }
        wrong("{srv: api.internal}", "`api.internal` is no name of a service", "api.internal");
        wrong("{srv: _http._tcp.-a}", "`-a` is no name of a host", "_http._tcp.-a");
        wrong(
            "{srv: _h._tcp.a, weight: 2}",
            "the records of a service have weights of their own",
            "2",
        );
        let both = "{srv: _h._tcp.a, address: 'a:1'}";
        wrong(both, "an endpoint has either `address` or `srv`", "{");
        wrong("{zone: eu}", "an endpoint has either `address` or `srv`", "{");
        wrong("'a:1', 'A:1'", "`A:1` is given twice in upstream `a`", "'A:1'");
    }

    #[test]
    fn names_bring_at_most_as_many_endpoints_as_there_may_be() {
        let names = |count: usize| {
            let names: Vec<String> = (0..count).map(|index| format!("a{index}:80")).collect();
            format!("upstreams: {{a: {{endpoints: [{}]}}}}", names.join(", "))
        };
        assert_eq!(with(&names(16)).unwrap().upstreams[0].endpoints.len(), 16);
        only(&names(17), "upstream `a` may come to have 544 endpoints", "endpoints");
        assert!(with(&format!("discovery: {{max_addresses: 8}}\n{}", names(64))).is_ok());
    }

    #[test]
    fn certificates_must_have_the_name_unless_told_otherwise() {
        let name = |endpoints: &str, tls: &str| {
            let text = format!("upstreams: {{a: {{endpoints: [{endpoints}], tls: {tls}}}}}");
            let upstream = with(&text).unwrap().upstreams.remove(0);
            upstream.tls.unwrap().server_name
        };
        assert_eq!(name("'API.internal:443', 'api.internal:444'", "{}").unwrap(), "api.internal");
        assert_eq!(name("'api.internal.:443'", "{}").unwrap(), "api.internal");
        assert_eq!(name("'api.internal:443', '10.0.0.1:443'", "{server_name: b}").unwrap(), "b");
        assert_eq!(name("'10.0.0.1:443'", "{}"), None);
        let several = ["{srv: _h._tcp.a}", "'a:1', 'b:1'", "'a:1', '10.0.0.1:1'"];
        for endpoints in several {
            let text = format!("upstreams: {{a: {{endpoints: [{endpoints}], tls: {{}}}}}}");
            only(
                &text,
                "which name certificates must have does not follow from the endpoints",
                "tls",
            );
        }
    }

    #[test]
    fn the_section_has_bounds() {
        let defaults = with("").unwrap().discovery;
        assert_eq!((defaults.attempts, defaults.max_addresses), (2, 32));
        assert!(defaults.resolvers.is_empty() && defaults.family == Family::Any);
        let own = with("discovery: {resolvers: [10.0.0.2, '[::1]:5353', '::2'], family: ipv4}");
        let own = own.unwrap().discovery;
        let expected = ["10.0.0.2:53", "[::1]:5353", "[::2]:53"].map(|text| text.parse().unwrap());
        assert_eq!(own.resolvers, expected);
        assert_eq!(own.family, Family::Ipv4);
        let wrong = |keys: &str, message: &str, pointed: &str| {
            only(&format!("discovery: {{{keys}}}"), message, pointed);
        };
        wrong("resolvers: [dns]", "`dns` is no IP address", "dns");
        wrong("resolvers: ['10.0.0.2:0']", "`10.0.0.2:0` is no IP address", "'10.0.0.2:0'");
        wrong("resolvers: [10.0.0.2, 10.0.0.2]", "`10.0.0.2` is given twice", "10.0.0.2");
        wrong("resolvers: [0.0.0.0]", "`0.0.0.0` is the address of no single host", "0.0.0.0");
        wrong("timeout: 50ms", "`50ms` is out of bounds", "50ms");
        wrong("attempts: 6", "6 is out of bounds", "6");
        wrong("max_addresses: 513", "513 is out of bounds", "513");
        wrong("min_interval: 2h", "`max_interval` is less than `min_interval`", "discovery");
        wrong("family: ipv5", "expected `any` or `ipv4` or `ipv6`, found `ipv5`", "ipv5");
    }
}
