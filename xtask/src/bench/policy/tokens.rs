//! What it costs to know a caller by a signed token, in the process itself: remembered, and verified anew beside the
//! signature alone.

use std::fs;
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context as Task, Poll, Waker};

use anyhow::{Context, bail, ensure};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use gateway::auth::{Ask, Authenticators, authorize};
use gateway::base::address::ClientAddr;
use gateway::base::time::{Moment, Now};
use gateway::config::{Config, parse};
use http::Request;
use http::request::Parts;
use serde_json::json;

use super::super::Args;
use super::super::report::{Comparison, Report};
use super::processor_time;

const FIGURE: &str = "ns_per_request";
/// Whom the tokens are about.
pub(super) const USER: &str = "9f1c3b1e-0000-4000-8000-17";
/// Who got them.
pub(super) const CONSUMER: &str = "web";

/// What is held against the signature alone.
pub(super) fn comparisons() -> [Comparison; 2] {
    [("es256_verified", "es256_signature"), ("rs256_verified", "rs256_signature")]
        .map(|(subject, peer)| Comparison { figure: FIGURE, subject, peer })
}

pub(super) fn tokens(args: &Args, case: &str, report: &mut Report) -> anyhow::Result<()> {
    let requests = if args.quick { 2_000 } else { 50_000 };
    for round in 1..=args.rounds {
        for (subject, ns) in measure(requests)? {
            report.round(case, subject, round, &[(FIGURE, ns)]);
        }
    }
    Ok(())
}

/// Nanoseconds of processor time of each.
fn measure(requests: u32) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let mut measured = Vec::new();
    for (token, [remembered, verified, signature]) in [
        (es256()?, ["es256_remembered", "es256_verified", "es256_signature"]),
        (rs256()?, ["rs256_remembered", "rs256_verified", "rs256_signature"]),
    ] {
        for (name, remember) in [(remembered, 100), (verified, 0)] {
            let gate = Gate::new(&token, remember)?;
            measured.push((name, each(requests, || gate.is_known())?));
        }
        measured.push((signature, token.signature_ns(requests)?));
    }
    Ok(measured)
}

fn each(requests: u32, work: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<f64> {
    ensure!(work()?, "the first token is refused");
    let began = processor_time();
    for _ in 0..requests {
        ensure!(black_box(work()?), "a token is refused");
    }
    let spent = processor_time().saturating_sub(began);
    Ok(spent.as_nanos() as f64 / f64::from(requests))
}

/// A token and what verifies it.
pub(super) struct Token {
    pub(super) text: String,
    signature: Vec<u8>,
    key: ParsedPublicKey,
    pub(super) pem: String,
}

impl Token {
    /// Nanoseconds of processor time to verify its signature, and nothing else.
    pub(super) fn signature_ns(&self, times: u32) -> anyhow::Result<f64> {
        let signed = self.text.rsplit_once('.').context("no token")?.0.as_bytes();
        each(times, || Ok(self.key.verify_sig(black_box(signed), &self.signature).is_ok()))
    }
}

pub(super) fn es256() -> anyhow::Result<Token> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der()?;
    let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public.as_ref())?;
    let sign = |bytes: &[u8]| Ok(pair.sign(&SystemRandom::new(), bytes)?.as_ref().to_vec());
    token("ES256", (key, public.as_ref()), sign)
}

pub(super) fn rs256() -> anyhow::Result<Token> {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048)?;
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der()?;
    let key = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public.as_ref())?;
    let sign = |bytes: &[u8]| {
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), bytes, &mut signature)?;
        Ok(signature)
    };
    token("RS256", (key, public.as_ref()), sign)
}

fn token(
    algorithm: &str,
    (key, public): (ParsedPublicKey, &[u8]),
    sign: impl Fn(&[u8]) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<Token> {
    // As those of well-known providers: about 700 bytes with its signature.
    let claims = json!({
        "iss": "https://idp.example.com/realms/staff", "aud": ["api", "account"], "sub": USER,
        "exp": Now::read().utc.0 / 1000 + 3600, "iat": Now::read().utc.0 / 1000, "jti": "b1946ac9-2492-4d23",
        "azp": CONSUMER, "scope": "openid profile email", "roles": ["reader", "writer"], "name": "Ann Example",
        "email": "ann@example.com", "email_verified": true,
    });
    let header = json!({"alg": algorithm, "typ": "JWT", "kid": "a"});
    let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = sign(signed.as_bytes())?;
    let text = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&signature));
    let lines = STANDARD.encode(public);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n");
    Ok(Token { text, signature, key, pem })
}

/// A route and a request for it.
struct Gate {
    config: Config,
    authenticators: Authenticators,
    memories: gateway::auth::Memories,
    head: Parts,
}

impl Gate {
    fn new(token: &Token, remember: usize) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("key.pem"), &token.pem)?;
        let text = format!(
            "listen: [{{address: '127.0.0.1:80'}}]\n\
             auth: {{x: {{jwt: {{pem: key.pem, audience: api, remember: {remember}}}}}}}\n\
             routes: [{{match: {{path: /}}, auth: x, respond: {{status: 204}}}}]"
        );
        let file = folder.path().join("gateway.yaml");
        let config = parse(&file.display().to_string(), &text)?;
        let authenticators = Authenticators::new(&config, &Authenticators::default(), None);
        let authenticators = authenticators.map_err(anyhow::Error::msg)?;
        let memories = authenticators.memories(0);
        let request = Request::get("/").header("authorization", format!("Bearer {}", token.text));
        let (head, ()) = request.body(())?.into_parts();
        Ok(Self { config, authenticators, memories, head })
    }

    fn is_known(&self) -> anyhow::Result<bool> {
        let client = ClientAddr::believed([192, 0, 2, 1].into());
        let head = &self.head;
        let ask = Ask {
            head,
            target: &head.uri,
            client,
            certificate: None,
            is_tls: true,
            body: None,
            moment: &Moment::default(),
        };
        let access = self.config.routes.first().and_then(|route| route.access.as_ref());
        let known = pin!(authorize(access, (&self.authenticators, &self.memories), ask));
        // The key is here, so that nothing is waited for.
        match known.poll(&mut Task::from_waker(Waker::noop())) {
            Poll::Ready(known) => Ok(known.is_ok_and(|known| known.identity().is_some())),
            Poll::Pending => bail!("it waits"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_is_measured() {
        let measured = measure(3).unwrap();
        assert_eq!(measured.len(), 6);
        for of in comparisons() {
            for name in [of.subject, of.peer] {
                assert!(measured.iter().any(|(known, ns)| *known == name && *ns > 0.0), "{name}");
            }
        }
    }
}
