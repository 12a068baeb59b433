//! Who the client is: the peer, or whoever trusted proxies say it is.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

use crate::base::address::ClientAddr;
use crate::http::headers::X_FORWARDED_FOR;

/// Whether `address` is a proxy that is believed.
pub fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    trusted.iter().any(|prefix| prefix.contains(&address))
}

/// The client of a request over a connection from `client`: from the right, the first address in `X-Forwarded-For` that
/// is no trusted proxy. Each proxy appends whom it saw, so everything to the left of that address is only what the
/// client claims. What is no address ends the walk at the last one that was believed.
pub fn client(mut client: ClientAddr, trusted: &[IpNet], headers: &HeaderMap) -> ClientAddr {
    if !is_trusted(trusted, client.ip()) {
        return client;
    }
    let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
    for entry in lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')) {
        let Some(address) = address(entry) else { break };
        client = ClientAddr::believed(address);
        if !is_trusted(trusted, client.ip()) {
            break;
        }
    }
    client
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(entry).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok();
    address.or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn found(peer: &str, lines: &[&str]) -> String {
        let trusted: Vec<IpNet> =
            ["10.0.0.0/8", "2001:db8::/32"].map(|prefix| prefix.parse().unwrap()).into();
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        let peer = ClientAddr::believed(peer.parse().unwrap());
        client(peer, &trusted, &headers).to_string()
    }

    #[test]
    fn a_peer_that_is_no_trusted_proxy_is_the_client() {
        assert_eq!(found("192.0.2.1", &["198.51.100.1"]), "192.0.2.1");
    }

    #[test]
    fn the_rightmost_address_that_is_not_trusted_is_the_client() {
        assert_eq!(found("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(found("10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(found("10.0.0.1", &["1.1.1.1, 198.51.100.1 ,10.0.0.2"]), "198.51.100.1");
        assert_eq!(found("10.0.0.1", &["1.1.1.1", "198.51.100.1", "10.0.0.2"]), "198.51.100.1");
        assert_eq!(found("10.0.0.1", &["10.0.0.3, 10.0.0.2"]), "10.0.0.3");
    }

    #[test]
    fn garbage_ends_the_walk_at_the_last_address_believed() {
        assert_eq!(found("10.0.0.1", &["198.51.100.1, unknown, 10.0.0.2"]), "10.0.0.2");
        for garbage in
            ["", ",", "_hidden", "1.2.3", "1.2.3.4:99999", "[::1", "1.1.1.1 2.2.2.2", "\u{e9}"]
        {
            assert_eq!(found("10.0.0.1", &[garbage]), "10.0.0.1", "{garbage}");
        }
    }

    #[test]
    fn every_way_to_write_an_address() {
        assert_eq!(found("10.0.0.1", &["198.51.100.1:4711"]), "198.51.100.1");
        assert_eq!(found("2001:db8::1", &["[2001:db9::1]:80"]), "2001:db9::1");
        assert_eq!(found("2001:db8::1", &["[2001:db9::1]"]), "2001:db9::1");
        assert_eq!(found("2001:db8::1", &["::ffff:198.51.100.1"]), "198.51.100.1");
    }
}
