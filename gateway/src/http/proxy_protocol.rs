//! The PROXY protocol, versions 1 and 2: how a header is told from what follows it, what it says, and how one is
//! written. Refused is everything that the specification does not allow, and what is longer than a bound.

use std::net::{IpAddr, SocketAddr};

use proxy_header::{ParseConfig, Protocol, ProxiedAddress, ProxyHeader};

/// Bytes of a header with all that it may carry. The usual ones have less than two hundred.
pub const HEADER_BYTES_MAX: usize = 2048;
/// Bytes of a header of version 1, the end of the line included (section 2.1 of the specification).
pub const LINE_BYTES_MAX: usize = 107;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const LINE: &[u8] = b"PROXY ";
/// `PROXY UNKNOWN`, the shortest of version 1; the shortest of version 2 has one byte more.
const SHORTEST_BYTES: usize = 15;
/// What stands before the addresses of version 2.
const FIXED_BYTES: usize = 16;
const CRC32C: u8 = 3;

/// Where a connection comes from and where it went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// The client's.
    pub source: SocketAddr,
    /// The one that the client connected to.
    pub destination: SocketAddr,
}

/// What is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// What of a header is still to come. Nothing behind the header is ever asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Nothing.
    Nothing,
    /// At least so many bytes.
    Bytes(usize),
    /// Everything up to the next line feed, which is within so many bytes.
    Line(usize),
}

/// What is missing behind `header`.
pub fn missing(header: &[u8]) -> Result<Missing, Invalid> {
    let begins = |with: &[u8]| header.iter().zip(with).all(|(one, other)| one == other);
    if !begins(SIGNATURE) && !begins(LINE) {
        return Err(Invalid);
    }
    if let Some(missing @ 1..) = SHORTEST_BYTES.checked_sub(header.len()) {
        return Ok(Missing::Bytes(missing));
    }
    if begins(LINE) {
        return match LINE_BYTES_MAX.checked_sub(header.len()) {
            _ if header.last() == Some(&b'\n') => Ok(Missing::Nothing),
            Some(room @ 1..) if !header.contains(&b'\n') => Ok(Missing::Line(room)),
            _ => Err(Invalid),
        };
    }
    let Some([high, low]) = header.get(FIXED_BYTES - 2..FIXED_BYTES) else {
        return Ok(Missing::Bytes(FIXED_BYTES - header.len()));
    };
    let whole = FIXED_BYTES + usize::from(u16::from_be_bytes([*high, *low]));
    match whole.checked_sub(header.len()) {
        _ if whole > HEADER_BYTES_MAX => Err(Invalid),
        Some(0) => Ok(Missing::Nothing),
        Some(missing) => Ok(Missing::Bytes(missing)),
        None => Err(Invalid),
    }
}

/// What a whole header says. `None`: the sender speaks for itself, or does not know.
pub fn parse(header: &[u8]) -> Result<Option<Addresses>, Invalid> {
    if missing(header)? != Missing::Nothing {
        return Err(Invalid);
    }
    let config = ParseConfig { include_tlvs: true, ..ParseConfig::default() };
    let (parsed, length) = ProxyHeader::parse(header, config).map_err(|_| Invalid)?;
    let whole = length == header.len() && parsed.tlvs().all(|field| field.is_ok());
    if !whole || !is_checksum_right(header) {
        return Err(Invalid);
    }
    match parsed.proxied_address() {
        Some(ProxiedAddress { protocol: Protocol::Datagram, .. }) => Err(Invalid),
        Some(ProxiedAddress { source, destination, .. }) => {
            Ok(Some(Addresses { source: canonical(*source), destination: canonical(*destination) }))
        }
        None => Ok(None),
    }
}

/// A header of version 2.
pub fn encode_v2(addresses: Addresses) -> Vec<u8> {
    let Addresses { source, destination } = addresses;
    let (source, destination) = match (canonical(source), canonical(destination)) {
        pair
        @ ((SocketAddr::V4(_), SocketAddr::V4(_)) | (SocketAddr::V6(_), SocketAddr::V6(_))) => pair,
        // One family for both.
        (source, destination) => (mapped(source), mapped(destination)),
    };
    let header = ProxyHeader::with_address(ProxiedAddress::stream(source, destination));
    let mut bytes = vec![0; FIXED_BYTES + 36];
    // There is room, and both are of one family.
    let length = header.encode_to_slice_v2(&mut bytes).unwrap_or_default();
    bytes.truncate(length);
    bytes
}

/// A header of version 2 that says that the connection is nobody's but the sender's own, as those of health checks are
/// (the specification of the protocol, section 2.2, command LOCAL).
pub const LOCAL_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Whether the checksum fits, if there is one. The parser leaves that to its callers.
fn is_checksum_right(header: &[u8]) -> bool {
    if !header.starts_with(SIGNATURE) {
        return true;
    }
    let addresses = match header.get(FIXED_BYTES - 3).map(|family| family >> 4) {
        Some(1) => 12,
        Some(2) => 36,
        Some(3) => 216,
        _ => 0,
    };
    let mut at = FIXED_BYTES + addresses;
    while let Some([kind, high, low]) = header.get(at..at + 3) {
        let value = at + 3;
        let end = value + usize::from(u16::from_be_bytes([*high, *low]));
        if *kind == CRC32C {
            let field = header.get(value..end).unwrap_or_default();
            let zeroed = header
                .iter()
                .enumerate()
                .map(|(index, byte)| if (value..end).contains(&index) { 0 } else { *byte });
            return field == crc32c(zeroed).to_be_bytes();
        }
        at = end;
    }
    true
}

/// CRC-32C (RFC 4960, appendix B).
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (REVERSED_POLYNOMIAL & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addresses(source: &str, destination: &str) -> Addresses {
        Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn version_1() {
        let tcp4 = addresses("192.0.2.1:56324", "198.51.100.1:443");
        let tcp6 = addresses("[2001:db8::1]:4", "[2001:db8::2]:443");
        for (line, said) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", Ok(Some(tcp4))),
            ("PROXY TCP6 2001:db8::1 2001:db8::2 4 443\r\n", Ok(Some(tcp6))),
            ("PROXY UNKNOWN\r\n", Ok(None)),
            ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Ok(None)),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n", Err(Invalid)),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 70000\r\n", Err(Invalid)),
            ("PROXY TCP4 2001:db8::1 198.51.100.1 56324 443\r\n", Err(Invalid)),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\nGET /\r\n", Err(Invalid)),
            ("PROXY  TCP4 192.0.2.1 198.51.100.1 1 2\r\n", Err(Invalid)),
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", Err(Invalid)),
        ] {
            assert_eq!(parse(line.as_bytes()), said, "{line}");
        }
        let long = format!("PROXY UNKNOWN {}", "f".repeat(100));
        assert_eq!(missing(long.as_bytes()), Err(Invalid));
    }

    #[test]
    fn what_is_missing_never_goes_beyond_the_header() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n";
        let v2 = encode_v2(addresses("192.0.2.1:1", "192.0.2.2:2"));
        for header in [&line[..], &v2] {
            for length in 0..header.len() {
                match missing(&header[..length]) {
                    Ok(Missing::Bytes(missing)) => assert!(length + missing <= header.len()),
                    Ok(Missing::Line(room)) => assert_eq!(room, LINE_BYTES_MAX - length),
                    other => panic!("{other:?} after {length} bytes"),
                }
            }
            assert_eq!(missing(header), Ok(Missing::Nothing));
        }
        assert_eq!(missing(b"PROXX"), Err(Invalid));
        assert_eq!(missing(b"\r\n\r\n\0\r\nQUIT\r"), Err(Invalid));
        assert_eq!(missing(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"), Err(Invalid));
    }

    #[test]
    fn version_2_with_fields() {
        let said = addresses("192.0.2.1:1", "192.0.2.2:2");
        let with = |fields: &[u8]| {
            let mut header = encode_v2(said);
            header.extend_from_slice(fields);
            let length = u16::try_from(header.len() - FIXED_BYTES).unwrap();
            header[14..16].copy_from_slice(&length.to_be_bytes());
            header
        };
        assert_eq!(parse(&with(&[])), Ok(Some(said)));
        assert_eq!(parse(&with(&[5, 0, 1, 7])), Ok(Some(said)));
        assert_eq!(parse(&with(&[5, 0, 9, 7])), Err(Invalid), "a field beyond the end");
        let mut summed = with(&[5, 0, 1, 7, CRC32C, 0, 4, 0, 0, 0, 0]);
        let crc = crc32c(summed.iter().copied());
        let end = summed.len();
        summed[end - 4..].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(parse(&summed), Ok(Some(said)));
        summed[20] ^= 1;
        assert_eq!(parse(&summed), Err(Invalid), "an address that the checksum does not fit");
        assert_eq!(parse(b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0"), Ok(None), "local");
        assert_eq!(parse(b"\r\n\r\n\0\r\nQUIT\n\x21\x00\0\0"), Ok(None), "unspecified");
        let mut datagram = with(&[]);
        datagram[13] = 0x12;
        assert_eq!(parse(&datagram), Err(Invalid));
    }

    #[test]
    fn the_checksum_is_the_one_of_the_standard() {
        assert_eq!(crc32c((*b"123456789").into_iter()), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(source: (IpAddr, u16), to: (IpAddr, u16)) {
            let said = Addresses { source: source.into(), destination: to.into() };
            let read = parse(&encode_v2(said)).unwrap().unwrap();
            prop_assert_eq!(read.source, canonical(said.source));
            prop_assert_eq!(read.destination, canonical(said.destination));
        }
    }
}
