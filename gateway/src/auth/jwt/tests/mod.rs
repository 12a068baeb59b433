//! Tokens that are taken, published vectors, and every attack that the literature knows.

mod attacks;
mod issuers;
mod tokens;
mod vectors;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Request;
use http::request::Parts;
use serde_json::{Value, json};
use std::sync::LazyLock;

use super::*;
use crate::base::address::ClientAddr;
use crate::base::time::{BootTime, Moment};
use crate::config::{AuthKind, parse};

/// 2026-01-01T00:00:00Z.
const NOW: u64 = 1_767_225_600;
const SECRET: &[u8] = b"a secret of sixty-four bytes, which is what HMAC-SHA-512 takes..";

/// One key of each kind, made once.
struct Pairs {
    rsa: RsaKeyPair,
    other_rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    other_p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

static PAIRS: LazyLock<Pairs> = LazyLock::new(|| Pairs {
    rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
    other_rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
    p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
    other_p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
    p384: EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
    ed: Ed25519KeyPair::generate().unwrap(),
});

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The two numbers of an RSA key, out of its DER (RFC 8017, appendix A.1.1).
fn rsa_jwk(pair: &RsaKeyPair, kid: &str) -> Value {
    let der = pair.public_key().as_ref();
    // 2048 bits: SEQUENCE (4), INTEGER (4), a zero byte and 256 of the modulus; INTEGER (2), the exponent.
    let (n, e) = (&der[9..265], &der[267..]);
    json!({"kty": "RSA", "kid": kid, "n": base64(n), "e": base64(e)})
}

fn ec_jwk(pair: &EcdsaKeyPair, curve: &str, kid: &str) -> Value {
    let point = &pair.public_key().as_ref()[1..];
    let (x, y) = point.split_at(point.len() / 2);
    json!({"kty": "EC", "crv": curve, "kid": kid, "x": base64(x), "y": base64(y)})
}

fn ed_jwk(pair: &Ed25519KeyPair, kid: &str) -> Value {
    json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": base64(pair.public_key())})
}

/// The set that most tests have: one key of each kind.
fn jwks() -> Value {
    json!({"keys": [
        rsa_jwk(&PAIRS.rsa, "rsa"),
        ec_jwk(&PAIRS.p256, "P-256", "p256"),
        ec_jwk(&PAIRS.p384, "P-384", "p384"),
        ed_jwk(&PAIRS.ed, "ed"),
    ]})
}

/// Signs as a header says it is: by the key of its `alg`.
fn sign(header: &Value, claims: &Value) -> String {
    let signed = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
    let bytes = signed.as_bytes();
    let random = SystemRandom::new();
    let rsa = |padding: &'static dyn aws_lc_rs::signature::RsaEncoding| {
        let mut signature = vec![0; 256];
        PAIRS.rsa.sign(padding, &random, bytes, &mut signature).unwrap();
        signature
    };
    let signature = match header["alg"].as_str().unwrap() {
        "HS256" => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), bytes).as_ref().to_vec(),
        "HS384" => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA384, SECRET), bytes).as_ref().to_vec(),
        "HS512" => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA512, SECRET), bytes).as_ref().to_vec(),
        "RS256" => rsa(&RSA_PKCS1_SHA256),
        "PS256" => rsa(&RSA_PSS_SHA256),
        "ES256" => PAIRS.p256.sign(&random, bytes).unwrap().as_ref().to_vec(),
        "ES384" => PAIRS.p384.sign(&random, bytes).unwrap().as_ref().to_vec(),
        "EdDSA" | "Ed25519" => PAIRS.ed.sign(bytes).as_ref().to_vec(),
        other => panic!("{other}"),
    };
    format!("{signed}.{}", base64(signature))
}

/// A good token by ES256 with these claims beside `exp`.
fn token(claims: Value) -> String {
    let mut all = json!({"exp": NOW + 600});
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    sign(&json!({"alg": "ES256", "kid": "p256"}), &all)
}

fn now(seconds: u64) -> Now {
    Now { boot: BootTime(seconds * 1_000_000_000), utc: UtcMillis(seconds * 1000) }
}

/// What `auth.x.jwt: {...}` makes with the keys of `set` in a file.
fn with(set: &Value, options: &str) -> Jwt {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keys.json"), set.to_string()).unwrap();
    std::fs::write(folder.path().join("secret"), SECRET).unwrap();
    in_folder(folder.path(), &format!("jwks_file: keys.json, {options}")).unwrap()
}

fn in_folder(folder: &std::path::Path, options: &str) -> Result<Jwt, String> {
    let file = folder.join("gateway.yaml");
    let text = format!("listen: [{{address: 127.0.0.1:80}}]\nauth: {{x: {{jwt: {{{options}}}}}}}");
    let config = parse(file.to_str().unwrap(), &text).map_err(|errors| errors.to_string())?;
    let AuthKind::Jwt(jwt) = &config.auth[0].kind else { panic!("another kind") };
    Jwt::new("x", jwt, &Arc::new(Consumers::default()), None)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn verify_at(jwt: &Jwt, token: &str, seconds: u64) -> Result<Identity, &'static str> {
    match block_on(jwt.verify(token.as_bytes(), now(seconds))) {
        Ok((identity, _)) => Ok(identity),
        Err(Refusal::Bad(reason) | Refusal::Later(reason)) => Err(reason),
        Err(Refusal::Expired) => Err(claims::EXPIRED),
    }
}

fn verify(jwt: &Jwt, token: &str) -> Result<Identity, &'static str> {
    verify_at(jwt, token, NOW)
}

#[track_caller]
fn refused(jwt: &Jwt, token: &str, reason: &str) {
    assert_eq!(verify(jwt, token).err(), Some(reason), "{token}");
}

fn head(token: &str) -> Parts {
    let request = Request::get("/").header("authorization", format!("Bearer {token}"));
    request.body(()).unwrap().into_parts().0
}

/// As a request asks, with what the worker remembers.
fn ask(jwt: &Jwt, head: &Parts, memory: &Memory, now: Now) -> Answer {
    let client = ClientAddr::believed("192.0.2.1".parse().unwrap());
    let (target, moment) = (&head.uri, &Moment::at(now));
    let ask = Ask { head, target, client, certificate: None, is_tls: true, body: None, moment };
    block_on(jwt.authenticate(&ask, memory))
}
