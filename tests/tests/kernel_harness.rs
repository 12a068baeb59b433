//! The harness itself: hosts reach each other, frames arrive as sent, and nothing stays behind.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use harness::client::{Client, get};
use harness::frames::{self, Sender};
use harness::origin::{Origin, Reply, Request};
use harness::topology::Topology;
use harness::{Result, require_root};

#[test]
fn hosts_reach_the_gateway_in_both_families_from_the_address_they_choose() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let echo_peer = |_: &Request| Reply::Answer(200, "here");
    let any: SocketAddr = "[::]:8080".parse()?;
    let origin = Origin::start(Some(&hosts.gateway), any, echo_peer)?;
    for host in [&hosts.client, &hosts.attacker, &hosts.upstream] {
        for address in [host.gateway_v4(), host.gateway_v6()] {
            let target = SocketAddr::new(address, 8080);
            assert_eq!(get(&host.namespace, None, target)?.text(), "here");
        }
    }
    let other = hosts.attacker.add_v4(77)?;
    let target = SocketAddr::new(hosts.attacker.gateway_v4(), 8080);
    let patience = Duration::from_secs(2);
    let mut client = Client::connect(&hosts.attacker.namespace, Some(other), target, patience)?;
    assert_eq!(client.get("/one")?.status, 200);
    assert_eq!(client.get("/two")?.status, 200);
    assert_eq!(
        origin.requests().last().map(|request| request.line.as_str()),
        Some("GET /two HTTP/1.1")
    );
    Ok(())
}

#[test]
fn raw_frames_arrive_from_the_source_that_they_claim() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let socket = hosts.gateway.enter(|| UdpSocket::bind("[::]:9000"))??;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let sender = Sender::new(&hosts.attacker)?;
    let v4: IpAddr = "198.18.7.7".parse()?;
    let v6: IpAddr = "fd00:bad::7".parse()?;
    let received = || -> Result<(String, Vec<u8>)> {
        let mut buffer = [0; 2048];
        let (length, from) = socket.recv_from(&mut buffer)?;
        Ok((from.ip().to_canonical().to_string(), buffer[..length].to_vec()))
    };
    let path = frames::Path::new(&hosts.attacker, v4);
    sender.send(&path.udp(9000, b"plain")?)?;
    assert_eq!(received()?, ("198.18.7.7".to_owned(), b"plain".to_vec()));
    for fragment in path.udp_fragments(9000, &[7; 64])? {
        sender.send(&fragment)?;
    }
    assert_eq!(received()?, ("198.18.7.7".to_owned(), vec![7; 64]));
    let path = frames::Path::new(&hosts.attacker, v6);
    sender.send(&path.udp_behind_extension_headers(9000, b"behind")?)?;
    assert_eq!(received()?, ("fd00:bad::7".to_owned(), b"behind".to_vec()));
    Ok(())
}

#[test]
fn nothing_stays_behind() -> Result {
    require_root()?;
    let hosts = Topology::new()?;
    let name = Path::new("/run/netns").join(hosts.gateway.name());
    assert!(name.exists());
    let mut sleeper = hosts.gateway.spawn(std::process::Command::new("sleep").arg("60"))?;
    drop(hosts);
    assert!(!name.exists());
    assert!(!sleeper.wait()?.success());
    Ok(())
}
