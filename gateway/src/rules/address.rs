//! Addresses and prefixes as most lists write them, read without a detour through text. What is unusual is left to
//! [`crate::base::prefix::parse`], and so is what is wrong, for it says why.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// 16-bit groups of an IPv6 address.
const GROUPS: u32 = 8;

/// A prefix in one of the usual forms; `None` for anything else.
pub(super) fn read(bytes: &[u8]) -> Option<IpNet> {
    match begin(bytes)? {
        (prefix, []) => Some(prefix),
        _ => None,
    }
}

/// The same at the beginning of these bytes, and what follows it.
pub(super) fn begin(bytes: &[u8]) -> Option<(IpNet, &[u8])> {
    dotted_quad(bytes).or_else(|| colon_groups(bytes))
}

/// `192.0.2.1` and `192.0.2.0/24`.
fn dotted_quad(bytes: &[u8]) -> Option<(IpNet, &[u8])> {
    let mut rest = bytes;
    let mut address = 0;
    for index in 0..4 {
        if index > 0 {
            rest = rest.strip_prefix(b".")?;
        }
        let (octet, after) = number(rest, 255)?;
        address = address << 8 | octet;
        rest = after;
    }
    let (length, rest) = length(rest, 32)?;
    if address & u32::MAX.checked_shr(length.into()).unwrap_or(0) != 0 {
        return None;
    }
    let prefix = Ipv4Net::new(Ipv4Addr::from_bits(address), length).ok()?;
    Some((IpNet::V4(prefix), rest))
}

/// `2001:db8::1` and `2001:db8::/32`, but not IPv4 in it.
fn colon_groups(bytes: &[u8]) -> Option<(IpNet, &[u8])> {
    let (mut bits, mut count) = (0u128, 0);
    let (mut gap, mut rest) = match bytes {
        [b':', b':', rest @ ..] => (Some(0), rest),
        _ => (None, bytes),
    };
    loop {
        let Some((group, after)) = group(rest) else {
            // Behind a gap there may be nothing.
            if gap == Some(count) {
                break;
            }
            return None;
        };
        bits = bits << 16 | u128::from(group);
        count += 1;
        rest = match after {
            [b':', b':', after @ ..] if gap.is_none() => {
                gap = Some(count);
                after
            }
            [b':', after @ ..] => after,
            _ => {
                rest = after;
                break;
            }
        };
        if count == GROUPS {
            return None;
        }
    }
    let address = match gap {
        None if count == GROUPS => bits,
        Some(gap) if count < GROUPS => {
            let below = (1 << (16 * (count - gap))) - 1;
            let above = (bits & !below).checked_shl(16 * (GROUPS - count)).unwrap_or(0);
            above | bits & below
        }
        _ => return None,
    };
    let (length, rest) = length(rest, 128)?;
    if address & u128::MAX.checked_shr(length.into()).unwrap_or(0) != 0 {
        return None;
    }
    let address = Ipv6Addr::from_bits(address);
    match address.to_ipv4_mapped() {
        Some(_) => None,
        None => Some((IpNet::V6(Ipv6Net::new(address, length).ok()?), rest)),
    }
}

/// The length behind an address, all of it if there is none, and what follows.
fn length(rest: &[u8], max: u32) -> Option<(u8, &[u8])> {
    let (length, rest) = match rest {
        [b'/', digits @ ..] => number(digits, max)?,
        _ => (max, rest),
    };
    Some((u8::try_from(length).ok()?, rest))
}

/// One to four hexadecimal digits, and what follows.
fn group(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (mut value, mut rest) = (0, bytes);
    for _ in 0..4 {
        let Some((digit, after)) = rest.split_first() else { break };
        let Some(digit) = char::from(*digit).to_digit(16) else { break };
        value = value << 4 | u16::try_from(digit).ok()?;
        rest = after;
    }
    (rest.len() < bytes.len()).then_some((value, rest))
}

/// Up to three digits without a leading zero, and what follows.
fn number(bytes: &[u8], max: u32) -> Option<(u32, &[u8])> {
    let (mut value, mut rest) = match bytes {
        [digit @ b'0'..=b'9', rest @ ..] => (u32::from(digit - b'0'), rest),
        _ => return None,
    };
    while value > 0
        && let [digit @ b'0'..=b'9', after @ ..] = rest
    {
        value = value * 10 + u32::from(digit - b'0');
        rest = after;
        if value > max {
            return None;
        }
    }
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prefix::{self, display};
    use proptest::prelude::*;

    /// What is read at all is read as by the standard library.
    fn agrees(text: &str) -> Result<(), TestCaseError> {
        if let Some(fast) = read(text.as_bytes()) {
            prop_assert_eq!(Ok(fast), prefix::parse(text));
        }
        Ok(())
    }

    #[test]
    fn the_usual_forms_are_read() {
        for text in ["::", "::1", "1::", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"] {
            assert_eq!(read(text.as_bytes()), prefix::parse(text).ok(), "{text}");
            assert!(read(text.as_bytes()).is_some(), "{text}");
        }
        let wrong = ["", ":", ":::", "1:", ":1", "1::2::3", "1:2:3:4:5:6:7:8:9", "12345::"];
        let more =
            ["1:2:3:4:5:6:7:8::", "::/", "::/129", "2001:db8::1/64", "::/08", "1:2/16", "g::"];
        for text in wrong.into_iter().chain(more) {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
        assert_eq!(read(b"::ffff:192.0.2.1"), None, "left to the other");
        assert_eq!(read(b"::ffff:c000:201"), None, "left to the other");
    }

    proptest! {
        #[test]
        fn every_prefix_is_read_as_it_is_displayed(address: std::net::IpAddr, length in 0u8..=128) {
            let length = if address.is_ipv4() { length % 33 } else { length };
            let prefix = IpNet::new(address, length).unwrap().trunc();
            let mapped = matches!(prefix, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some());
            let expected = if mapped { None } else { Some(prefix) };
            prop_assert_eq!(read(display(&prefix).as_bytes()), expected);
        }

        #[test]
        fn unusual_spellings_are_read_as_ever(
            v4 in "[0-9]{1,3}(\\.[0-9]{1,3}){2,4}(/[0-9]{1,3})?",
            v6 in "[0-9a-fA-F:]{0,12}(:{1,3}[0-9a-f]{0,5}){0,8}(/[0-9]{1,3})?",
        ) {
            agrees(&v4)?;
            agrees(&v6)?;
            let usual = v6.parse::<Ipv6Addr>().is_ok_and(|v6| v6.to_ipv4_mapped().is_none());
            prop_assert!(!usual || read(v6.as_bytes()).is_some());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, text in "[0-9a-f:./]{0,60}") {
            read(&bytes);
            agrees(&text)?;
        }
    }
}
