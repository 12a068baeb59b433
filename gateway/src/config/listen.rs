//! `listen`: where clients connect, and `metrics`: where Prometheus does.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use ipnet::IpNet;

use super::at::At;
use super::kernel::somebody;
use super::raw::{RawHttpsRedirect, RawListener, RawMetrics, RawProxyProtocol};
use super::tls::tls;
use super::tree::shorten;
use super::value::{count, ports, socket_address};
use super::{Listener, Metrics};

pub(super) fn listeners(raw: &[RawListener], folder: &Path, at: At<'_>) -> Vec<Listener> {
    if raw.is_empty() {
        at.on_key().error_with_help(
            "the gateway listens nowhere",
            "add a listener, such as: listen: [{address: 127.0.0.1:8080}]",
        );
    }
    let mut found: Vec<(Listener, usize)> = Vec::new();
    for (index, listener) in raw.iter().enumerate() {
        let whole = at.item(index);
        let tls = listener.tls.as_ref().map(|raw| tls(raw, folder, whole.key("tls")));
        let from = senders(listener.proxy_protocol.as_ref(), whole.key("proxy_protocol"));
        let redirect = redirect(listener, whole.key("redirect"));
        let at = whole.key("address");
        let Some(address) = socket_address(&listener.address, at) else { continue };
        let other = found.iter().find(|(other, _)| conflict(other.address, address));
        match other {
            Some((other, line)) => at.error_with_help(
                format!("`{address}` is taken by the listener {}", other.address),
                format!("the other is in line {line}: remove one or choose another port"),
            ),
            None => {
                let listener = Listener { address, tls, proxy_protocol_from: from, redirect };
                found.push((listener, at.line()));
            }
        }
    }
    found.into_iter().map(|(listener, _)| listener).collect()
}

fn senders(raw: Option<&RawProxyProtocol>, at: At<'_>) -> Vec<IpNet> {
    let Some(raw) = raw else { return Vec::new() };
    if raw.from.is_empty() {
        at.key("from")
            .on_key()
            .error_with_help("nobody may connect", "name the addresses of your load balancers");
    }
    let senders = somebody(
        &raw.from,
        at.key("from"),
        "lets anybody forge the address that a connection comes from",
        "name the addresses of your load balancers",
    );
    senders.into_iter().map(|(net, _)| net).collect()
}

fn redirect(raw: &RawListener, at: At<'_>) -> Option<u16> {
    /// Of https (RFC 9110, section 4.2.2).
    const PORT: u16 = 443;
    let port = match raw.redirect.as_ref()? {
        RawHttpsRedirect::Text(text) if text == "https" => PORT,
        RawHttpsRedirect::Text(text) => {
            at.error_with_help(
                format!("`{}` is nowhere to be sent to", shorten(text)),
                "write https, or {port: 8443} for another port of https",
            );
            return None;
        }
        RawHttpsRedirect::Section(section) => {
            ports(&[section.port], at.key("port")).first().copied()?
        }
    };
    if raw.tls.is_some() {
        at.on_key().error_with_help(
            "clients of this listener speak https already",
            "put `redirect` on the listener of plain HTTP",
        );
    }
    Some(port)
}

/// Where metrics are served, and how many there may be.
pub(super) fn metrics(raw: &RawMetrics, listeners: &[Listener], at: At<'_>) -> Metrics {
    let max_names = count(raw.max_names, 0..=100_000, at.key("max_names"));
    Metrics {
        listen: metrics_address(raw, listeners, at.key("listen")),
        max_names: max_names.unwrap_or_default(),
    }
}

/// Refuses the address of a listener.
fn metrics_address(raw: &RawMetrics, listeners: &[Listener], at: At<'_>) -> Option<SocketAddr> {
    let address = socket_address(raw.listen.as_ref()?, at)?;
    if let Some(other) = listeners.iter().find(|other| conflict(other.address, address)) {
        at.error_with_help(
            format!("`{address}` is taken by the listener {}", other.address),
            "choose another port, such as 9100, on an address that only Prometheus reaches",
        );
    }
    Some(address)
}

/// Whether a connection to one could as well be for the other.
fn conflict(one: SocketAddr, other: SocketAddr) -> bool {
    let same_family = one.is_ipv4() == other.is_ipv4();
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (one.ip() == other.ip() || (same_family && any))
}

/// Whether a connection to `address` from this host ends at one of the listeners, as far as the file tells.
pub(super) fn is_own(listeners: &[Listener], address: SocketAddr) -> bool {
    let local = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    listeners.iter().any(|listener| {
        let own = listener.address;
        let here = own.ip() == address.ip()
            || (own.ip().is_unspecified() && local(address.ip()))
            || (address.ip().is_unspecified() && own.ip().is_loopback());
        own.port() == address.port() && here
    })
}
