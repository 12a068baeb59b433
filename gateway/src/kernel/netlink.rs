//! Asks the kernel which XDP program an interface runs, and in which mode. What was wished for is not what is shown.
//! And listens for interfaces that come and go.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram as Datagrams;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use tokio::net::UnixDatagram;

use crate::base::netlink::{ACKNOWLEDGED, ONE, ask, attribute, message, u32_at, with_attribute};

/// How an interface runs an XDP program (`XDP_ATTACHED_*` of linux/if_link.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In the driver, before a socket buffer exists.
    Native,
    /// In the network stack, for drivers that cannot.
    Generic,
    /// On the card.
    Offload,
    /// Several programs in several modes.
    Multiple,
}

impl Mode {
    /// The name in listings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
            Self::Multiple => "multiple",
        }
    }
}

/// The XDP program of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// How it runs.
    pub mode: Mode,
    /// The kernel's id of the program.
    pub program: u32,
}

/// The XDP program of the interface with this index, if it has one.
pub fn xdp(index: u32) -> io::Result<Option<Running>> {
    // `ifinfomsg` of rtnetlink(7): the index is its third field.
    let mut question = [0; LINK_BYTES];
    question[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut running = None;
    let request = message(RTM_GETLINK, ONE, &question);
    ask(SockProtocol::NetlinkRoute, &request, RTM_NEWLINK, |link| running = parse(link))?;
    Ok(running)
}

/// Whether another network namespace has an interface of this name. That is asked for from here, by the number that
/// the namespace has here and keeps, so that nobody needs the right to enter it.
pub fn has_interface(namespace: &File, name: &str) -> io::Result<bool> {
    const IFLA_IFNAME: u16 = 3;
    const IFLA_TARGET_NETNSID: u16 = 46;
    let number = number_here(namespace)?;
    let mut question = vec![0; LINK_BYTES];
    with_attribute(&mut question, IFLA_TARGET_NETNSID, &number.to_ne_bytes());
    with_attribute(&mut question, IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
    let mut found = false;
    let request = message(RTM_GETLINK, ONE, &question);
    match ask(SockProtocol::NetlinkRoute, &request, RTM_NEWLINK, |_| found = true) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        asked => asked.map(|()| found),
    }
}

/// The number of another network namespace in this one (net/core/net_namespace.c of the kernel).
fn number_here(namespace: &File) -> io::Result<i32> {
    const RTM_NEWNSID: u16 = 88;
    const RTM_GETNSID: u16 = 90;
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
    /// None yet, or whichever is free.
    const NONE: i32 = -1;
    let mut question = vec![0; NAMESPACE_BYTES];
    with_attribute(&mut question, NETNSA_FD, &namespace.as_raw_fd().to_ne_bytes());
    let number = || {
        let mut number = NONE;
        ask(
            SockProtocol::NetlinkRoute,
            &message(RTM_GETNSID, ONE, &question),
            RTM_NEWNSID,
            |told| {
                let told =
                    told.get(NAMESPACE_BYTES..).and_then(|told| attribute(told, NETNSA_NSID));
                number = told.and_then(|told| u32_at(told, 0)).map_or(NONE, u32::cast_signed);
            },
        )?;
        Ok(number)
    };
    match number()? {
        NONE => {
            let mut give = question.clone();
            with_attribute(&mut give, NETNSA_NSID, &NONE.to_ne_bytes());
            let give = message(RTM_NEWNSID, ACKNOWLEDGED, &give);
            ask(SockProtocol::NetlinkRoute, &give, RTM_NEWNSID, |_| ())?;
            number()
        }
        number => Ok(number),
    }
}

/// The kernel's news of interfaces (rtnetlink(7)). News may be lost when many come at once, and what they say is not
/// read: they are a reason to look.
#[derive(Debug)]
pub struct Links(UnixDatagram);

impl Links {
    /// Listens from now on. Runs inside of a runtime.
    pub fn listen() -> io::Result<Self> {
        const RTMGRP_LINK: u32 = 1;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_LINK))?;
        // To whoever only receives, one socket of datagrams is as good as another.
        UnixDatagram::from_std(Datagrams::from(socket)).map(Self)
    }

    /// Waits until something may have changed.
    pub async fn changed(&self) {
        const NEWS_MAX: usize = 1024;
        const PAUSE: Duration = Duration::from_secs(1);
        let mut start = [0; LINK_BYTES];
        match self.0.recv(&mut start).await {
            Ok(_) => {}
            // Some were lost, which is news, too.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
        // All that has come meanwhile is one reason.
        for _ in 0..NEWS_MAX {
            if self.0.try_recv(&mut start).is_err() {
                return;
            }
        }
    }
}

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
/// Bytes of an `ifinfomsg`.
const LINK_BYTES: usize = 16;
/// Bytes of an `rtgenmsg`, up to the attributes.
const NAMESPACE_BYTES: usize = 4;

fn parse(link: &[u8]) -> Option<Running> {
    const IFLA_XDP: u16 = 43;
    const IFLA_XDP_ATTACHED: u16 = 2;
    const IFLA_XDP_PROG_ID: u16 = 4;
    const IFLA_XDP_DRV_PROG_ID: u16 = 5;

    let xdp = attribute(link.get(LINK_BYTES..)?, IFLA_XDP)?;
    let mode = match attribute(xdp, IFLA_XDP_ATTACHED)?.first()? {
        0 => return None,
        1 => Mode::Native,
        2 => Mode::Generic,
        3 => Mode::Offload,
        _ => Mode::Multiple,
    };
    let program = attribute(xdp, IFLA_XDP_PROG_ID)
        .or_else(|| attribute(xdp, IFLA_XDP_DRV_PROG_ID))
        .and_then(|value| u32_at(value, 0))
        .unwrap_or(0);
    Some(Running { mode, program })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute_bytes(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        with_attribute(&mut bytes, kind, value);
        bytes
    }

    fn link(xdp: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; LINK_BYTES];
        bytes.extend(attribute_bytes(3, b"lo\0"));
        bytes.extend(attribute_bytes(43 | 0x8000, xdp));
        bytes
    }

    #[test]
    fn mode_and_program_are_found_among_other_attributes() {
        let xdp = [attribute_bytes(2, &[2]), attribute_bytes(4, &7u32.to_ne_bytes())].concat();
        let running = parse(&link(&xdp)).unwrap();
        assert_eq!(running, Running { mode: Mode::Generic, program: 7 });
        assert_eq!(parse(&link(&attribute_bytes(2, &[0]))), None);
    }

    #[test]
    fn every_interface_can_be_asked() {
        let loopback = nix::net::if_::if_nametoindex("lo").unwrap();
        xdp(loopback).unwrap();
        assert!(xdp(u32::MAX >> 1).is_err(), "there is no such interface");
    }
}
