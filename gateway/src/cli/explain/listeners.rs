//! The listeners that a request may come by, and what they make of it before any route is asked.

use http::header::HOST;
use http::request::Parts;

use super::policies::{Policy, policy};
use crate::config::{Config, Listener, Tls};

/// Those that speak the scheme of the URL, and of these the ones on its port if there are any: the port that clients
/// know may be mapped to another one.
pub(super) fn of<'a>(config: &'a Config, scheme: &str, head: &Parts) -> Vec<&'a Listener> {
    let is_https = scheme == "https";
    let host = head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let port = host.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let port = port.unwrap_or(if is_https { 443 } else { 80 });
    let mut found: Vec<_> =
        config.listen.iter().filter(|listener| listener.tls.is_some() == is_https).collect();
    if found.iter().any(|listener| listener.address.port() == port) {
        found.retain(|listener| listener.address.port() == port);
    }
    found
}

/// The port of https that every request is sent to, by whichever of them it comes.
pub(super) fn redirect(listeners: &[&Listener]) -> Option<u16> {
    let port = listeners.first()?.redirect?;
    listeners.iter().all(|listener| listener.redirect.is_some()).then_some(port)
}

/// What is agreed on with clients, listener by listener.
pub(super) fn policies(listeners: &[&Listener]) -> Vec<Policy> {
    listeners.iter().map(|listener| policy("listen", described(listener))).collect()
}

fn described(listener: &Listener) -> String {
    let Listener { address, tls, proxy_protocol_from, redirect } = listener;
    let mut text = address.to_string();
    let mut add = |more: &str| {
        text.push_str(", ");
        text.push_str(more);
    };
    if let Some(Tls { tls12, client_certificates, hsts, .. }) = tls {
        add(if *tls12 { "TLS 1.2 or 1.3" } else { "TLS 1.3" });
        if let Some(clients) = client_certificates {
            let mode = if clients.optional { "optional" } else { "required" };
            add(&format!("client certificates {mode}"));
        }
        hsts.iter().for_each(|hsts| add(&format!("HSTS {hsts}")));
    }
    if !proxy_protocol_from.is_empty() {
        add("PROXY protocol");
    }
    redirect.iter().for_each(|port| add(&format!("every request sent to https, port {port}")));
    text
}
