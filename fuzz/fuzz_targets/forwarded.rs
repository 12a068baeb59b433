//! Whatever forwarded fields say, a peer that is not believed is the client, and what a client claims to the left of
//! the address that a trusted proxy has seen changes nothing.
#![no_main]

use gateway::base::address::ClientAddr;
use gateway::http::forwarded::{client, is_trusted};
use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: ([u8; 4], &[u8], Vec<&[u8]>)| {
    let (peer, claimed, lines) = input;
    let trusted: [IpNet; 2] =
        ["10.0.0.0/8", "::/1"].map(|prefix| prefix.parse().expect("a prefix"));
    let with = |lines: &[&[u8]]| {
        let mut headers = HeaderMap::new();
        for line in lines {
            if let Ok(line) = HeaderValue::from_bytes(line) {
                headers.append("x-forwarded-for", line);
            }
        }
        client(ClientAddr::believed(peer.into()), &trusted, &headers)
    };
    let lines = &lines[..lines.len().min(16)];
    let found = with(lines).ip();
    if !is_trusted(&trusted, peer.into()) {
        assert_eq!(found, std::net::IpAddr::from(peer));
    }
    if !is_trusted(&trusted, found) {
        assert_eq!(with(&[&[claimed], lines].concat()).ip(), found);
    }
});
