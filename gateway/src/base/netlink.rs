//! What netlink messages are made of (netlink(7)): questions to the kernel, and the attributes in its answers.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

/// Bytes of a message's header.
pub const HEADER_BYTES: usize = 16;
const ANSWER_MAX_BYTES: usize = 64 * 1024;
const ANSWER_MAX_SECONDS: i64 = 2;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// A request that is answered by one message.
pub const ONE: u16 = 0x001;
/// A request that is answered by whether it was carried out (`NLM_F_REQUEST | NLM_F_ACK`).
pub const ACKNOWLEDGED: u16 = 0x005;
/// A request that is answered by as many as there are (`NLM_F_REQUEST | NLM_F_DUMP`).
pub const ALL: u16 = 0x301;

/// A message: its header and `body`, in host byte order.
pub fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Puts an attribute behind what a message has.
pub fn with_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Asks, and hands each answer of type `wanted` to `take`, without its header.
pub fn ask(
    protocol: SockProtocol,
    request: &[u8],
    wanted: u16,
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_MAX_SECONDS, 0))?;
    send(socket.as_raw_fd(), request, MsgFlags::empty())?;
    let many = u16_at(request, 6) == Some(ALL);
    let mut answer = vec![0; ANSWER_MAX_BYTES];
    loop {
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        if read(answer.get(..length).unwrap_or_default(), wanted, &mut take)? || !many {
            return Ok(());
        }
    }
}

/// Reads the messages of one datagram. Answers whether the last one said that it was.
fn read(mut messages: &[u8], wanted: u16, take: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    let truncated = || io::Error::new(io::ErrorKind::InvalidData, "truncated netlink answer");
    while !messages.is_empty() {
        let length = u32_at(messages, 0).ok_or_else(truncated)? as usize;
        let body = messages.get(HEADER_BYTES..length).ok_or_else(truncated)?;
        match u16_at(messages, 4) {
            Some(ERROR) => {
                let code = u32_at(body, 0).ok_or_else(truncated)?;
                // Of that number it says that the request was carried out.
                if code == 0 {
                    return Ok(true);
                }
                return Err(io::Error::from_raw_os_error((code as i32).wrapping_neg()));
            }
            Some(DONE) => return Ok(true),
            Some(kind) if kind == wanted => take(body),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "unexpected answer")),
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The value of the first attribute of this type; the two flag bits of a type are masked (`NLA_TYPE_MASK`).
pub fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
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

/// Two bytes in host order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Four bytes in host order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_error_of_the_kernel_is_its_error() {
        let answer = message(ERROR, 0, &(-19i32).to_ne_bytes());
        let error = read(&answer, 16, &mut |_| {}).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(19));
        assert!(read(&message(ERROR, 0, &[0; 4]), 16, &mut |_| {}).unwrap(), "it was carried out");
    }

    #[test]
    fn several_messages_are_taken_until_the_last() {
        let answer =
            [message(20, 0, &[1, 2, 3, 4]), message(20, 0, &[5; 4]), message(DONE, 0, &[0; 4])];
        let mut taken = Vec::new();
        assert!(read(&answer.concat(), 20, &mut |body| taken.push(body.to_vec())).unwrap());
        assert_eq!(taken, [vec![1, 2, 3, 4], vec![5; 4]]);
        assert!(!read(&answer[0], 20, &mut |_| {}).unwrap());
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(answer: Vec<u8>, kind: u16) {
            let mut attributes = 0;
            let mut take = |body: &[u8]| attributes += usize::from(attribute(body, kind).is_some());
            read(&answer, kind, &mut take).ok();
            prop_assert!(attributes <= answer.len());
        }
    }
}
