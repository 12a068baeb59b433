//! Four hosts: client, attacker and upstream, each joined to the gateway by a veth pair with both address families.
//!
//! ```text
//!   client   10.0.1.2 fd00:1::2 ── to_client   ┐
//!   attacker 10.0.2.2 fd00:2::2 ── to_attacker ├ gateway 10.0.N.1 fd00:N::1
//!   upstream 10.0.3.2 fd00:3::2 ── to_upstream ┘
//! ```
//!
//! The attacker's link also carries 198.18.0.0/15 and fd00:bad::/32, so that it can send from many sources.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::namespace::Namespace;
use crate::{Result, wait_for};

const LINK: Duration = Duration::from_secs(10);

/// Where the gateway serves.
pub const PORT: u16 = 8080;

/// A host beside the gateway, and its link.
#[derive(Debug)]
pub struct Host {
    /// The host itself. Its end of the link is `eth0`.
    pub namespace: Namespace,
    /// The gateway's end of the link.
    pub gateway_interface: &'static str,
    number: u8,
}

impl Host {
    /// Its IPv4 address.
    pub fn v4(&self) -> IpAddr {
        Ipv4Addr::new(10, 0, self.number, 2).into()
    }

    /// Another IPv4 address on its link.
    pub fn v4_at(&self, host: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, self.number, host).into()
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> IpAddr {
        Ipv6Addr::new(0xfd00, self.number.into(), 0, 0, 0, 0, 0, 2).into()
    }

    /// The gateway's IPv4 address on this link.
    pub fn gateway_v4(&self) -> IpAddr {
        Ipv4Addr::new(10, 0, self.number, 1).into()
    }

    /// The gateway's IPv6 address on this link.
    pub fn gateway_v6(&self) -> IpAddr {
        Ipv6Addr::new(0xfd00, self.number.into(), 0, 0, 0, 0, 0, 1).into()
    }

    /// Where this host reaches the gateway.
    pub fn target(&self) -> SocketAddr {
        SocketAddr::new(self.gateway_v4(), PORT)
    }

    /// The gateway's address on this link, of the family of `address`.
    pub fn gateway_for(&self, address: IpAddr) -> IpAddr {
        if address.is_ipv4() { self.gateway_v4() } else { self.gateway_v6() }
    }

    /// The hardware address of its `eth0`.
    pub fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, self.number, 2]
    }

    /// The hardware address of the gateway's end.
    pub fn gateway_mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, self.number, 1]
    }

    /// Gives the host another address on its link, to connect from.
    pub fn add_v4(&self, host: u8) -> Result<IpAddr> {
        let address = self.v4_at(host);
        self.namespace.ip(&format!("address add {address}/24 dev eth0"))?;
        Ok(address)
    }

    /// A host that has no link to a gateway yet. `number` is the third byte of its addresses; 1 to 3 are taken where
    /// there is a [`Topology`].
    pub fn new(role: &str, interface: &'static str, number: u8) -> Result<Self> {
        Ok(Self { namespace: Namespace::new(role)?, gateway_interface: interface, number })
    }

    /// Makes the link. The gateway's end is down.
    pub fn link(&self, gateway: &Namespace) -> Result {
        let interface = self.gateway_interface;
        let (outer, inner) = (mac_text(self.mac()), mac_text(self.gateway_mac()));
        gateway.ip(&format!(
            "link add {interface} address {inner} type veth \
             peer name eth0 address {outer} netns {peer}\n\
             address add {v4}/24 dev {interface}\n\
             address add {v6}/64 dev {interface} nodad",
            peer = self.namespace.name(),
            v4 = self.gateway_v4(),
            v6 = self.gateway_v6(),
        ))?;
        self.namespace.ip(&format!(
            "address add {v4}/24 dev eth0\n\
             address add {v6}/64 dev eth0 nodad\n\
             link set eth0 up",
            v4 = self.v4(),
            v6 = self.v6(),
        ))
    }

    /// Lets packets through the link, and waits until both ends send: before, the kernel drops what is sent.
    pub fn up(&self, gateway: &Namespace) -> Result {
        gateway.ip(&format!("link set {} up", self.gateway_interface))?;
        self.namespace.ip(&format!(
            "route add default via {}\nroute add ::/0 via {}",
            self.gateway_v4(),
            self.gateway_v6(),
        ))?;
        for (namespace, interface) in [(&self.namespace, "eth0"), (gateway, self.gateway_interface)]
        {
            wait_for("the link", LINK, || Ok(is_up(namespace, interface)?.then_some(())))?;
        }
        Ok(())
    }

    fn join(gateway: &Namespace, role: &str, interface: &'static str, number: u8) -> Result<Self> {
        let host = Self::new(role, interface, number)?;
        host.link(gateway)?;
        host.up(gateway)?;
        Ok(host)
    }
}

/// The four hosts.
#[derive(Debug)]
pub struct Topology {
    /// Where the gateway runs.
    pub gateway: Namespace,
    /// Sends ordinary requests.
    pub client: Host,
    /// Sends what it likes.
    pub attacker: Host,
    /// Serves.
    pub upstream: Host,
}

impl Topology {
    /// Builds them.
    pub fn new() -> Result<Self> {
        let gateway = Namespace::new("gateway")?;
        let client = Host::join(&gateway, "client", "to_client", 1)?;
        let attacker = Host::join(&gateway, "attacker", "to_attacker", 2)?;
        let upstream = Host::join(&gateway, "upstream", "to_upstream", 3)?;
        gateway.ip(&format!(
            "route add 198.18.0.0/15 via {}\nroute add fd00:bad::/32 via {}",
            attacker.v4(),
            attacker.v6()
        ))?;
        Ok(Self { gateway, client, attacker, upstream })
    }

    /// An ordinary configuration for the gateway here: it serves [`PORT`] on all addresses, sends every request to
    /// `origin`, and opens the kernel door in native mode on the interfaces that face outside.
    pub fn config(&self, origin: SocketAddr) -> Value {
        json!({
            "listen": [{"address": format!("0.0.0.0:{PORT}")}, {"address": format!("[::]:{PORT}")}],
            "kernel": {
                "interfaces": [self.client.gateway_interface, self.attacker.gateway_interface],
                "attach": "native",
            },
            "upstreams": {"origin": {"endpoints": [origin.to_string()]}},
            "routes": [{"match": {"path": "/{rest*}"}, "upstream": "origin"}],
        })
    }
}

fn is_up(namespace: &Namespace, interface: &str) -> Result<bool> {
    let listing =
        namespace.output(Command::new("ip").args(["-json", "link", "show", "dev", interface]))?;
    let links: Value = serde_json::from_slice(&listing.stdout)?;
    Ok(links.pointer("/0/operstate").and_then(Value::as_str) == Some("UP"))
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
