//! One way to know callers, whichever it is.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Answer, Ask, Consumers, Memory};
use super::{api_key, basic, hmac, introspection, jwt, mtls};
use crate::base::time::Now;
use crate::config::{self, AuthKind};
use crate::shared::Redis;
use crate::store::keys::Registry;
use crate::store::nonces::Mark;

/// Users of Basic whom a worker remembers: as many as share one file, within reason.
const BASIC_REMEMBERS: usize = 4096;

/// What an authenticator checks by.
#[derive(Debug)]
pub(super) enum Checker {
    ApiKey(Box<api_key::ApiKey>),
    Basic(Box<basic::Basic>),
    Hmac(Box<hmac::Hmac>),
    Introspection(Box<introspection::Introspection>),
    Jwt(Box<jwt::Jwt>),
    Mtls(mtls::Mtls),
}

impl Checker {
    /// Reads what `config` names. What has not changed since `before` goes on with what it knows; `mark` is what the
    /// process before this one left.
    pub(super) fn new(
        config: &config::Authenticator,
        (registries, consumers): ((&Registry, Option<&Redis>), &Arc<Consumers>),
        (before, mark): (Option<&Self>, Option<Mark>),
    ) -> Result<Self, String> {
        let name = &*config.name;
        match &config.kind {
            AuthKind::ApiKey(api_key) => {
                let api_key = api_key::ApiKey::new(name, api_key, registries, consumers)?;
                Ok(Self::ApiKey(Box::new(api_key)))
            }
            AuthKind::Basic(basic) => {
                let basic = basic::Basic::new(name, basic, consumers);
                basic.map(|basic| Self::Basic(Box::new(basic)))
            }
            AuthKind::Hmac(hmac) => {
                let before = match before {
                    Some(Self::Hmac(before)) => Some(&**before),
                    _ => None,
                };
                let before = (before, mark);
                let hmac = hmac::Hmac::new((name, hmac), consumers, registries.1, before);
                hmac.map(Box::new).map(Self::Hmac)
            }
            AuthKind::Introspection(introspection) => {
                let before = match before {
                    Some(Self::Introspection(before)) => Some(&**before),
                    _ => None,
                };
                let new = introspection::Introspection::new(name, introspection, consumers, before);
                new.map(Box::new).map(Self::Introspection)
            }
            AuthKind::Jwt(jwt) => {
                let before = match before {
                    Some(Self::Jwt(before)) => Some(&**before),
                    _ => None,
                };
                jwt::Jwt::new(name, jwt, consumers, before).map(Box::new).map(Self::Jwt)
            }
            AuthKind::Mtls(mtls) => Ok(Self::Mtls(mtls::Mtls::new(name, mtls, consumers))),
        }
    }

    /// Callers whom a worker remembers.
    pub(super) fn remembers(&self) -> usize {
        match self {
            Self::ApiKey(api_key) => api_key.remembers(),
            Self::Basic(_) => BASIC_REMEMBERS,
            Self::Introspection(introspection) => introspection.remembers(),
            Self::Jwt(jwt) => jwt.remembers(),
            Self::Hmac(_) | Self::Mtls(_) => 0,
        }
    }

    /// Who calls, as far as a credential of its kind says.
    pub(super) async fn authenticate(&self, ask: &Ask<'_>, memory: &Memory) -> Answer {
        match self {
            Self::ApiKey(api_key) => api_key.authenticate(ask, memory).await,
            Self::Basic(basic) => basic.authenticate(ask, memory).await,
            Self::Hmac(hmac) => hmac.authenticate(ask).await,
            Self::Introspection(introspection) => introspection.authenticate(ask, memory).await,
            Self::Jwt(jwt) => jwt.authenticate(ask, memory).await,
            Self::Mtls(mtls) => mtls.authenticate(ask),
        }
    }

    /// How callers may say who they are, as in `WWW-Authenticate` (RFC 9110, section 11.6.1).
    pub(super) fn challenge(&self) -> String {
        match self {
            Self::ApiKey(api_key) => api_key.challenge(),
            Self::Basic(basic) => basic.challenge(),
            // What RFC 9421 calls its fields; there is no scheme for those either.
            Self::Hmac(_) => "Signature".to_owned(),
            Self::Introspection(introspection) => introspection.challenge(),
            Self::Jwt(jwt) => jwt.challenge(),
            // There is no scheme for what happens before HTTP; a 401 needs one all the same.
            Self::Mtls(_) => "Certificate".to_owned(),
        }
    }

    /// Looks after what changes by itself.
    pub(super) fn tick(&self, now: Now) {
        match self {
            Self::Basic(basic) => basic.tick(),
            Self::Jwt(jwt) => jwt.tick(now),
            Self::ApiKey(api_key) => api_key.tick(),
            Self::Hmac(hmac) => hmac.tick(),
            Self::Introspection(_) | Self::Mtls(_) => {}
        }
    }

    /// Whom it talks to.
    pub(super) fn peers(&self) -> Vec<IpAddr> {
        match self {
            Self::Introspection(introspection) => introspection.peers(),
            Self::Jwt(jwt) => jwt.peers(),
            Self::ApiKey(_) | Self::Basic(_) | Self::Hmac(_) | Self::Mtls(_) => Vec::new(),
        }
    }
}
