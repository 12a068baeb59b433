//! Which certificate a client is shown: by the host that it names, then by the signatures that it understands.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureAlgorithm;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::pair::Pair;
use crate::config::UnknownSni;

/// The certificates of a listener.
#[derive(Debug)]
pub(super) struct Names {
    exact: HashMap<String, Keys>,
    /// By what follows the first label of `*.example.com`.
    wildcard: HashMap<String, Keys>,
    default: Keys,
    unknown_sni: UnknownSni,
}

/// Of one name, the cheaper to sign with first.
type Keys = Vec<Arc<CertifiedKey>>;

impl Names {
    /// `pairs` in the order of the file, the index of the default, and what those get that name another host.
    pub(super) fn new(pairs: &[Arc<Pair>], default: usize, unknown_sni: UnknownSni) -> Self {
        let mut exact: HashMap<String, Vec<&Pair>> = HashMap::new();
        let mut wildcard: HashMap<String, Vec<&Pair>> = HashMap::new();
        for pair in pairs {
            for name in &pair.names {
                match name.strip_prefix("*.") {
                    Some(parent) => wildcard.entry(parent.to_owned()).or_default().push(pair),
                    None => exact.entry(name.clone()).or_default().push(pair),
                }
            }
        }
        // A second certificate for the same names, with another kind of key, is as good a default.
        let first = pairs.get(default);
        let same = |pair: &&Arc<Pair>| first.is_some_and(|first| first.names == pair.names);
        let others = pairs.iter().filter(same).map(|pair| &**pair);
        let default = first.map(|pair| &**pair).into_iter().chain(others).collect();
        let sorted = |map: HashMap<String, Vec<&Pair>>| {
            map.into_iter().map(|(name, pairs)| (name, keys(pairs))).collect()
        };
        Self {
            exact: sorted(exact),
            wildcard: sorted(wildcard),
            default: keys(default),
            unknown_sni,
        }
    }

    fn find(&self, name: Option<&str>) -> Option<&Keys> {
        let Some(name) = name else { return Some(&self.default) };
        // rustls hands the name over in lower case.
        let known = self.exact.get(name).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.wildcard.get(parent)
        });
        known.or_else(|| (self.unknown_sni == UnknownSni::Default).then_some(&self.default))
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let keys = self.find(hello.server_name())?;
        let understood =
            |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        // Where the client understands none, rustls says so with the right alert.
        keys.iter().find(understood).or_else(|| keys.first()).map(Arc::clone)
    }
}

/// Signing with RSA costs ten times as much as with anything else. Of two of one kind, the one that lasts longer.
fn keys(mut pairs: Vec<&Pair>) -> Keys {
    let rank = |pair: &&Pair| {
        (pair.algorithm() == SignatureAlgorithm::RSA, std::cmp::Reverse(pair.not_after))
    };
    pairs.sort_by_key(rank);
    pairs.into_iter().map(|pair| Arc::clone(&pair.key)).collect()
}
