//! Hosts: `api.example.com`, `*.example.com`, `[2001:db8::1]`.

use std::fmt;
use std::net::Ipv6Addr;

use super::HostPattern;
use crate::config::at::At;
use crate::config::tree::shorten;

impl fmt::Display for HostPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => Ok(()),
            Self::Exact(host) => formatter.write_str(host),
            Self::Wildcard(suffix) => write!(formatter, "*{suffix}"),
        }
    }
}

/// A host in lower case, without a port or a final dot.
pub(super) fn host(text: &str, at: At<'_>) -> Option<HostPattern> {
    let host = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bracketed.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()) {
        return Some(HostPattern::Exact(host));
    }
    let (wildcard, name) = match host.strip_prefix("*.") {
        Some(name) => (true, name),
        None => (false, host.as_str()),
    };
    let label = |label: &str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(good)
    };
    if host.len() <= 253 && name.split('.').all(label) {
        return Some(match wildcard {
            true => HostPattern::Wildcard(format!(".{name}")),
            false => HostPattern::Exact(host),
        });
    }
    let help = if host == "*" {
        "leave `host` out for any host".to_owned()
    } else if host.contains('*') {
        "a wildcard stands alone before the first dot, such as *.example.com".to_owned()
    } else if let Some((name, _)) = host.split_once("://") {
        format!("write the host alone, without `{name}://` and path")
    } else if let Some((name, _)) = host.split_once(':').filter(|(name, _)| !name.is_empty()) {
        format!("write it without the port: {}", shorten(name))
    } else {
        "write a host name such as api.example.com, other alphabets in punycode".to_owned()
    };
    at.error_with_help(format!("`{}` is no host", shorten(text)), help);
    None
}
