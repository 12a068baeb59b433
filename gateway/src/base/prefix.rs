//! Prefixes as people write them: `192.0.2.0/24`, `2001:db8::/32`, or an address alone.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

/// Why a text is no prefix. Each message says what to write instead.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PrefixError {
    /// Not an address at all.
    #[error("`{0}` is no address or prefix: write 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32")]
    Syntax(String),
    /// A length that the family does not have.
    #[error("the length of `{text}` is out of range: {family} has 0 to {max}")]
    Length {
        /// What was written.
        text: String,
        /// IPv4 or IPv6.
        family: &'static str,
        /// The longest length of the family.
        max: u8,
    },
    /// Bits beyond the length.
    #[error(
        "`{text}` has host bits set: write {network} for the network or {address} for the host"
    )]
    HostBits {
        /// What was written.
        text: String,
        /// The network that it lies in.
        network: IpNet,
        /// The address alone.
        address: IpAddr,
    },
}

/// Reads a prefix. Host bits must be zero; an IPv4-mapped IPv6 prefix of at least 96 bits is the IPv4 prefix that
/// its packets carry.
pub fn parse(text: &str) -> Result<IpNet, PrefixError> {
    let text = text.trim();
    let syntax = || PrefixError::Syntax(text.to_owned());
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| syntax())?;
    let (family, max) = if address.is_ipv4() { ("IPv4", 32) } else { ("IPv6", 128) };
    let length = match length {
        None => max,
        // `+8` is a number to the standard library and a typing mistake to everybody else.
        Some(digits) if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err(syntax());
        }
        Some(digits) => digits
            .parse::<u8>()
            .ok()
            .filter(|length| *length <= max)
            .ok_or_else(|| PrefixError::Length { text: text.to_owned(), family, max })?,
    };
    let prefix = IpNet::new(address, length).map_err(|_| syntax())?;
    if prefix.network() != address {
        return Err(PrefixError::HostBits {
            text: text.to_owned(),
            network: prefix.trunc(),
            address,
        });
    }
    Ok(canonical(prefix))
}

/// The prefix as packets carry it: an IPv4-mapped IPv6 prefix becomes IPv4.
pub fn canonical(prefix: IpNet) -> IpNet {
    if let IpNet::V6(v6) = prefix
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(length) = v6.prefix_len().checked_sub(96)
        && let Ok(net) = Ipv4Net::new(v4, length)
    {
        return IpNet::V4(net);
    }
    prefix
}

/// Whether one of the two contains the other.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Prefixes, to be asked whether another one lies in any of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cover {
    /// Those that lie in no other one, in their order.
    outermost: Vec<IpNet>,
}

impl FromIterator<IpNet> for Cover {
    fn from_iter<T: IntoIterator<Item = IpNet>>(prefixes: T) -> Self {
        let mut outermost: Vec<IpNet> = prefixes.into_iter().map(|prefix| prefix.trunc()).collect();
        outermost.sort_unstable();
        outermost.dedup_by(|inner, outer| outer.contains(&*inner));
        Self { outermost }
    }
}

impl Cover {
    /// The prefix that `prefix` lies in, or is.
    pub fn covering(&self, prefix: &IpNet) -> Option<&IpNet> {
        let place = self.outermost.partition_point(|other| other.addr() <= prefix.addr());
        self.outermost.get(place.checked_sub(1)?).filter(|found| found.contains(prefix))
    }

    /// The prefixes, those left out that lie in another one.
    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.outermost.iter()
    }
}

/// The prefix as people write it: an address alone without its length.
pub fn display(prefix: &IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_and_prefixes() {
        assert_eq!(parse("192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
        assert_eq!(parse(" 192.0.2.0/24 ").unwrap().to_string(), "192.0.2.0/24");
        assert_eq!(parse("::/0").unwrap().to_string(), "::/0");
        assert_eq!(parse("::ffff:192.0.2.0/120").unwrap().to_string(), "192.0.2.0/24");
    }

    #[test]
    fn what_is_wrong_is_said_with_a_way_out() {
        let message = |text| parse(text).unwrap_err().to_string();
        assert_eq!(
            message("203.0.113.7/24"),
            "`203.0.113.7/24` has host bits set: \
             write 203.0.113.0/24 for the network or 203.0.113.7 for the host"
        );
        assert!(message("1.2.3.0/33").contains("IPv4 has 0 to 32"));
        for text in ["", "/8", "1.2.3", "1.2.3.4/", "1.2.3.4/+8", "host", "1.2.3.4/8/8"] {
            assert!(message(text).contains("no address or prefix"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_displayed_is_read_again(address: IpAddr, length in 0u8..=128) {
            let length = if address.is_ipv4() { length % 33 } else { length };
            let prefix = canonical(IpNet::new(address, length).unwrap().trunc());
            prop_assert_eq!(parse(&display(&prefix)).unwrap(), prefix);
        }

        #[test]
        fn a_cover_finds_what_a_search_finds(
            nets in proptest::collection::vec((0u32..64, 0u8..=32), 0..20),
            six: bool,
            wanted in (0u32..64, 0u8..=32),
        ) {
            let net = |(bits, length): (u32, u8)| match six {
                false => {
                    let address = IpAddr::V4((bits << 26 | bits).into());
                    IpNet::new(address, length).unwrap().trunc()
                }
                true => {
                    let bits = u128::from(bits);
                    IpNet::new(IpAddr::V6((bits << 122 | bits).into()), 4 * length).unwrap().trunc()
                }
            };
            let nets: Vec<IpNet> = nets.into_iter().map(net).collect();
            let cover: Cover = nets.iter().copied().collect();
            let wanted = net(wanted);
            let found = nets.iter().any(|other| other.contains(&wanted));
            prop_assert_eq!(cover.covering(&wanted).is_some(), found);
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            drop(parse(&text));
        }
    }
}
