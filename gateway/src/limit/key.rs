//! Whose requests are counted together: the parts of a key, and the hash by which it is found.
//!
//! The hash is seeded anew in each process, so nobody outside can choose keys that crowd one place of a table.

use std::net::IpAddr;

use aws_lc_rs::digest::{Context, SHA256};
use http::HeaderMap;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::auth::Identity;
use crate::base::random::mix;
use crate::config::Per;

/// Who asks for what, as the request itself says.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Whom it comes from.
    pub client: IpAddr,
    /// Its header fields.
    pub headers: &'a HeaderMap,
    /// The number of its route, and the name.
    pub route: (usize, &'a str),
    /// The service that it goes to, if it goes to one.
    pub upstream: Option<&'a str>,
}

/// The same, and who it is.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) caller: &'a Caller<'a>,
    pub(super) identity: Option<&'a Identity>,
}

/// Makes the hash of a key from its parts. Each part has a kind, so that no text of one kind is taken for another's,
/// and no two parts for one.
#[derive(Clone, Copy, Debug)]
pub struct KeyHash {
    hash: u128,
    /// By SHA-256.
    is_digest: bool,
}

const CONSUMER: u8 = 1;
const USER: u8 = 2;
const KEY: u8 = 3;
const TENANT: u8 = 4;
const ADDRESS: u8 = 5;
const HEADER: u8 = 6;
const ROUTE: u8 = 7;
const UPSTREAM: u8 = 8;
const AUTHENTICATOR: u8 = 9;

impl Asked<'_> {
    /// The same for all gateways, so that they count together: nobody can find two keys that have the same.
    pub(super) fn digest(&self, per: &[Per], ipv6_prefix: u8) -> [u8; 16] {
        let digest = KeyHash { hash: 0, is_digest: true };
        per.iter().fold(digest, |hash, per| self.part(hash, per, ipv6_prefix)).hash.to_be_bytes()
    }

    /// The hash of the key that the request has for a limit of these parts.
    pub(super) fn hash(&self, per: &[Per], seed: u64, ipv6_prefix: u8) -> u128 {
        let hash = KeyHash::new(seed);
        per.iter().fold(hash, |hash, per| self.part(hash, per, ipv6_prefix)).hash()
    }

    /// A part that the request does not have is that of the caller that comes closest to it, in the end its address: so
    /// nobody escapes a limit by leaving something out.
    fn part(&self, hash: KeyHash, per: &Per, ipv6_prefix: u8) -> KeyHash {
        let caller = self.caller;
        let found = match per {
            Per::Global => return hash,
            Per::ClientAddress => None,
            Per::Route => return hash.part(ROUTE, caller.route.1.as_bytes()),
            Per::Upstream => {
                return hash.part(UPSTREAM, caller.upstream.unwrap_or_default().as_bytes());
            }
            Per::Header(name) => {
                caller.headers.get(name).map(|value| hash.part(HEADER, value.as_bytes()))
            }
            Per::Consumer => self.of_identity(hash, [CONSUMER, USER, KEY]),
            Per::User => self.of_identity(hash, [USER, CONSUMER, KEY]),
            Per::Key => self.of_identity(hash, [KEY, CONSUMER, USER]),
            Per::Tenant => self.of_identity(hash, [TENANT, CONSUMER, USER]),
        };
        found.unwrap_or_else(|| address(hash, caller.client, ipv6_prefix))
    }

    /// The first of these that the caller has.
    fn of_identity(&self, hash: KeyHash, kinds: [u8; 3]) -> Option<KeyHash> {
        let identity = self.identity?;
        kinds.into_iter().find_map(|kind| {
            let text = match kind {
                CONSUMER => &identity.consumer,
                USER => &identity.user,
                KEY => &identity.key,
                _ => &identity.tenant,
            };
            let hash = hash.part(kind, text.as_ref()?.as_bytes());
            // Two issuers may give one name to two people.
            let is_own = matches!(kind, USER | KEY);
            let authenticator = identity.authenticator.as_bytes();
            Some(if is_own { hash.part(AUTHENTICATOR, authenticator) } else { hash })
        })
    }
}

fn address(hash: KeyHash, client: IpAddr, ipv6_prefix: u8) -> KeyHash {
    match client {
        IpAddr::V4(address) => hash.part(ADDRESS, &address.octets()),
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(ipv6_prefix.min(128)));
            let network = address.to_bits() & mask.unwrap_or_default();
            hash.part(ADDRESS, &network.to_be_bytes())
        }
    }
}

impl KeyHash {
    /// The key without parts.
    pub fn new(seed: u64) -> Self {
        Self { hash: u128::from(mix(seed)), is_digest: false }
    }

    /// With one more part.
    #[must_use]
    pub fn part(self, kind: u8, bytes: &[u8]) -> Self {
        if self.is_digest {
            return self.digested(kind, bytes);
        }
        let [low, high] = [self.hash, self.hash >> 64].map(|half| half as u64);
        let seed = low ^ high.rotate_left(32) ^ u64::from(kind).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { hash: xxh3_128_with_seed(bytes, seed), is_digest: false }
    }

    fn digested(self, kind: u8, bytes: &[u8]) -> Self {
        let mut whole = Context::new(&SHA256);
        whole.update(&self.hash.to_be_bytes());
        whole.update(&[kind]);
        whole.update(bytes);
        let half = whole.finish();
        let half = half.as_ref().first_chunk().copied().unwrap_or_default();
        Self { hash: u128::from_be_bytes(half), is_digest: true }
    }

    /// The hash, of which each half is as good as a hash of its own.
    pub fn hash(self) -> u128 {
        // A key without parts has not been hashed yet.
        if self.hash >> 64 == 0 { self.part(0, &[]).hash } else { self.hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;
    use std::collections::HashSet;

    #[test]
    fn parts_are_told_from_each_other() {
        let new = || KeyHash::new(7);
        let hashes = [
            new().hash(),
            new().part(1, b"ab").hash(),
            KeyHash::new(8).part(1, b"ab").hash(),
            new().part(2, b"ab").hash(),
            new().part(1, b"a").part(1, b"b").hash(),
            new().part(1, b"").part(1, b"ab").hash(),
            new().part(1, b"ab").part(1, b"").hash(),
            new().part(1, b"b").part(1, b"a").hash(),
        ];
        assert_eq!(HashSet::from(hashes).len(), hashes.len());
        assert_eq!(new().part(1, b"ab").hash(), new().part(1, b"ab").hash());
    }

    #[test]
    fn whoever_leaves_a_part_out_is_counted_by_what_comes_closest() {
        let headers = HeaderMap::new();
        let caller = |client: &str| Caller {
            client: client.parse().unwrap(),
            headers: &headers,
            route: (0, "r"),
            upstream: None,
        };
        let hash = |client: &str, identity: Option<&Identity>, per: Per| {
            Asked { caller: &caller(client), identity }.hash(&[per], 1, 64)
        };
        let (one, other) = ("192.0.2.1", "192.0.2.2");
        let header = || Per::Header(HeaderName::from_static("x-app"));
        for per in [Per::Consumer, Per::User, Per::Key, Per::Tenant, header()] {
            assert_eq!(hash(one, None, per.clone()), hash(one, None, Per::ClientAddress));
            assert_ne!(hash(one, None, per.clone()), hash(other, None, per));
        }
        let user = |authenticator: &str| Identity {
            authenticator: authenticator.into(),
            user: Some("ann".into()),
            ..Identity::default()
        };
        let ann = user("staff");
        assert_eq!(hash(one, Some(&ann), Per::Tenant), hash(other, Some(&ann), Per::User));
        assert_ne!(hash(one, Some(&ann), Per::User), hash(one, Some(&user("x")), Per::User));
        let named = Identity { user: Some(one.into()), ..Identity::default() };
        assert_ne!(hash(one, Some(&named), Per::User), hash(one, None, Per::User));
    }

    #[test]
    fn clients_of_ipv6_are_networks() {
        let headers = HeaderMap::new();
        let hash = |client: &str, prefix| {
            let client = client.parse().unwrap();
            let caller = Caller { client, headers: &headers, route: (0, "r"), upstream: None };
            Asked { caller: &caller, identity: None }.hash(&[Per::ClientAddress], 1, prefix)
        };
        assert_eq!(hash("2001:db8::1", 64), hash("2001:db8::ffff:1", 64));
        assert_ne!(hash("2001:db8::1", 64), hash("2001:db8:0:1::1", 64));
        assert_eq!(hash("2001:db8::1", 48), hash("2001:db8:0:1::1", 48));
        assert_ne!(hash("2001:db8::1", 128), hash("2001:db8::2", 128));
    }
}
