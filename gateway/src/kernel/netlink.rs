//! Asks the kernel which XDP program an interface runs, and in which mode. What was wished for is not what is shown.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

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
    const ANSWER_MAX_BYTES: usize = 64 * 1024;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(2, 0))?;
    send(socket.as_raw_fd(), &request(index), MsgFlags::empty())?;
    let mut answer = vec![0; ANSWER_MAX_BYTES];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    parse(answer.get(..length).unwrap_or_default())
}

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const HEADER_BYTES: usize = 16;
const LINK_BYTES: usize = 16;

/// An RTM_GETLINK request: netlink header and `ifinfomsg`, in host byte order (rtnetlink(7)).
fn request(index: u32) -> [u8; HEADER_BYTES + LINK_BYTES] {
    let mut message = [0; HEADER_BYTES + LINK_BYTES];
    let length = (HEADER_BYTES + LINK_BYTES) as u32;
    message[0..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message[20..24].copy_from_slice(&index.to_ne_bytes());
    message
}

fn parse(answer: &[u8]) -> io::Result<Option<Running>> {
    const IFLA_XDP: u16 = 43;
    const IFLA_XDP_ATTACHED: u16 = 2;
    const IFLA_XDP_PROG_ID: u16 = 4;
    const IFLA_XDP_DRV_PROG_ID: u16 = 5;

    let truncated = || io::Error::new(io::ErrorKind::InvalidData, "truncated netlink answer");
    match u16_at(answer, 4).ok_or_else(truncated)? {
        NLMSG_ERROR => {
            let code = u32_at(answer, HEADER_BYTES).ok_or_else(truncated)?;
            return Err(io::Error::from_raw_os_error((code as i32).wrapping_neg()));
        }
        RTM_NEWLINK => {}
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "unexpected netlink answer")),
    }
    let attributes = answer.get(HEADER_BYTES + LINK_BYTES..).ok_or_else(truncated)?;
    let Some(xdp) = attribute(attributes, IFLA_XDP) else { return Ok(None) };
    let mode = match attribute(xdp, IFLA_XDP_ATTACHED).and_then(|value| value.first().copied()) {
        None | Some(0) => return Ok(None),
        Some(1) => Mode::Native,
        Some(2) => Mode::Generic,
        Some(3) => Mode::Offload,
        Some(_) => Mode::Multiple,
    };
    let program = attribute(xdp, IFLA_XDP_PROG_ID)
        .or_else(|| attribute(xdp, IFLA_XDP_DRV_PROG_ID))
        .and_then(|value| u32_at(value, 0))
        .unwrap_or(0);
    Ok(Some(Running { mode, program }))
}

/// The value of the first attribute of this type; the two flag bits of a type are masked (`NLA_TYPE_MASK`).
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const ATTRIBUTE_HEADER_BYTES: usize = 4;
    const TYPE_MASK: u16 = 0x3fff;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)? & TYPE_MASK;
        let value = attributes.get(ATTRIBUTE_HEADER_BYTES..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute_bytes(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn answer(xdp: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES + LINK_BYTES];
        bytes[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        bytes.extend(attribute_bytes(3, b"lo\0"));
        bytes.extend(attribute_bytes(43 | 0x8000, xdp));
        bytes
    }

    #[test]
    fn mode_and_program_are_found_among_other_attributes() {
        let xdp = [attribute_bytes(2, &[2]), attribute_bytes(4, &7u32.to_ne_bytes())].concat();
        let running = parse(&answer(&xdp)).unwrap().unwrap();
        assert_eq!(running, Running { mode: Mode::Generic, program: 7 });
        assert_eq!(parse(&answer(&attribute_bytes(2, &[0]))).unwrap(), None);
    }

    #[test]
    fn an_error_of_the_kernel_is_its_error() {
        let mut bytes = vec![0; 36];
        bytes[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        bytes[16..20].copy_from_slice(&(-19i32).to_ne_bytes());
        assert_eq!(parse(&bytes).unwrap_err().raw_os_error(), Some(19));
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn every_interface_can_be_asked() {
        let loopback = nix::net::if_::if_nametoindex("lo").unwrap();
        xdp(loopback).unwrap();
        assert!(xdp(u32::MAX >> 1).is_err(), "there is no such interface");
    }
}
