//! Who would be calling, by the credentials that the request shows. They are checked as the gateway checks them, for
//! which the keys of an issuer may have to be fetched.

use std::path::Path;
use std::time::Duration;

use http::request::Parts;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::Asked;
use super::policies::{self, Policy};
use crate::auth::{self, Ask, Authenticators, Authorized, Digest, Identity};
use crate::base::address::ClientAddr;
use crate::base::error::Error;
use crate::base::time::{Moment, Now};
use crate::config::{AuthKind, Authenticator, Config, KeyRegistry};
use crate::http::problem;
use crate::shared::Redis;
use crate::store::keys::Keys;
use crate::tls::session::ClientCertificate;

/// Between two attempts to reach Redis.
const PAUSE: Duration = Duration::from_millis(5);

/// Who calls.
#[derive(Debug, Default, Serialize)]
pub(super) struct Caller {
    /// `known`, `anonymous`, `refused`, or `unavailable` where it cannot be told here.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    authenticator: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    roles: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scopes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    /// Why nobody is known, where that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Reads the certificate that a client would show. It is taken as verified.
pub(super) fn certificate(path: &Path) -> Result<ClientCertificate, String> {
    let file = path.display();
    let leaf = CertificateDer::from_pem_file(path)
        .map_err(|error| format!("{file} has no certificate that can be read: {error}"))?;
    ClientCertificate::of(&leaf, false, Now::read().utc)
        .ok_or_else(|| format!("the certificate in {file} has ended or cannot be read"))
}

/// Finds out who would be calling, if the route asks; the error is what the request would be answered.
pub(super) fn find(
    asked: &Asked<'_>,
    head: &Parts,
    is_tls: bool,
) -> Option<Result<Caller, (Caller, Error)>> {
    asked.route.access.as_ref()?;
    Some(match authorize(asked, head, is_tls) {
        Ok(Ok(authorized)) => Ok(match authorized.identity() {
            Some(identity) => Caller::known(identity),
            None => Caller { outcome: "anonymous", ..Caller::default() },
        }),
        Ok(Err(error)) => Err((Caller::refused(&error), error)),
        // What cannot be told here says nothing about the request.
        Err(reason) => {
            Ok(Caller { outcome: "unavailable", reason: Some(reason), ..Caller::default() })
        }
    })
}

fn authorize(
    asked: &Asked<'_>,
    head: &Parts,
    is_tls: bool,
) -> Result<Result<Authorized, Error>, String> {
    let has_redis = asked.config.auth.iter().any(keys_are_in_redis);
    let redis = asked.config.state.redis.as_ref().filter(|_| has_redis);
    let redis = redis.map(Redis::read).transpose()?;
    let authenticators = Authenticators::explaining(asked.config, redis.as_ref())?;
    if Keys::exist(&asked.config.state.dir) {
        authenticators.open()?;
    }
    let memories = authenticators.memories(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let ask = Ask {
        head,
        target: asked.as_sent.as_ref().unwrap_or(&head.uri),
        client: ClientAddr::believed(asked.from.unwrap_or(super::SOMEWHERE)),
        certificate: asked.certificate,
        is_tls,
        body: asked.body,
        moment: &Moment::default(),
    };
    let access = asked.route.access.as_ref();
    Ok(runtime.block_on(async {
        let mut believed = access.iter().flat_map(|access| &access.authenticators);
        let is_asked = |index| asked.config.auth.get(index).is_some_and(keys_are_in_redis);
        if let Some(redis) = redis.filter(|_| believed.any(|index| is_asked(*index))) {
            connect(&redis).await;
        }
        auth::authorize(access, (&authenticators, &memories), ask).await
    }))
}

fn keys_are_in_redis(one: &Authenticator) -> bool {
    matches!(&one.kind, AuthKind::ApiKey(keys) if keys.registry == KeyRegistry::Redis)
}

/// Waits until keys can be looked up, or for as long as connecting may take.
async fn connect(redis: &Redis) {
    let registry = redis.registry();
    let answers = async {
        // A request has less time than a connection takes that is the first one.
        while registry.generation().is_none() || registry.find(&Digest::default()).await.is_err() {
            sleep(PAUSE).await;
        }
    };
    if redis.start().is_ok() {
        timeout(redis.config().connect_timeout, answers).await.ok();
    }
}

impl Caller {
    /// What it is called, as [`Identity::name`] has it.
    pub(super) fn name(&self) -> Option<&str> {
        self.consumer.as_deref().or(self.user.as_deref()).or(self.key.as_deref())
    }

    fn known(identity: &Identity) -> Self {
        let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
        let texts = |list: &[Box<str>]| list.iter().map(|text| text.to_string()).collect();
        Self {
            outcome: "known",
            authenticator: Some(identity.authenticator.to_string()),
            consumer: text(&identity.consumer),
            user: text(&identity.user),
            key: text(&identity.key),
            tenant: text(&identity.tenant),
            plan: text(&identity.plan),
            roles: texts(&identity.roles),
            scopes: texts(&identity.scopes),
            groups: texts(&identity.groups),
            reason: None,
        }
    }

    /// How much it may, besides what holds for everybody.
    pub(super) fn limits(&self, config: &Config) -> Vec<Policy> {
        match self.outcome {
            "known" => policies::of_caller(config, self.consumer.as_deref(), self.plan.as_deref()),
            _ => Vec::new(),
        }
    }

    fn refused(error: &Error) -> Self {
        let reason = error.reason().unwrap_or(error.detail()).to_owned();
        let outcome = match problem::status(error.kind()).as_u16() {
            503 => "unavailable",
            _ => "refused",
        };
        Self { outcome, reason: Some(reason), ..Self::default() }
    }

    /// Everything that is known, on one line.
    pub(super) fn line(&self) -> String {
        let one = |name: &str, value: &Option<String>| {
            value.as_ref().map(|value| format!("{name} {value}"))
        };
        let several = |name: &str, values: &[String]| {
            (!values.is_empty()).then(|| format!("{name} {}", values.join(" ")))
        };
        let parts = [
            one("by", &self.authenticator),
            one("consumer", &self.consumer),
            one("user", &self.user),
            one("key", &self.key),
            one("tenant", &self.tenant),
            one("plan", &self.plan),
            several("roles", &self.roles),
            several("scopes", &self.scopes),
            several("groups", &self.groups),
            self.reason.clone(),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        format!("{} {}", self.outcome, parts.join(", ")).trim_end().to_owned()
    }
}
