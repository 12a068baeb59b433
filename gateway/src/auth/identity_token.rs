//! Who calls, as a token (RFC 7519) that services verify by keys which the gateway publishes (RFC 7517): whoever
//! reaches a service by another way cannot make one. Signs by P-256 (ES256) or Ed25519 (EdDSA) and by nothing else.

use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, Signature,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Map, Value, json};

use super::forward::{VALUE_MAX_BYTES, unshared};
use super::{Identity, digest_of};
use crate::base::time::{Now, UtcMillis};
use crate::config::{self, SecretSource};

/// Makes tokens.
#[derive(Debug)]
pub(super) struct IdentityToken {
    config: config::IdentityToken,
    key: SigningKey,
    /// The first part of every token.
    header: String,
    jwks: Bytes,
}

#[derive(Debug)]
enum SigningKey {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// What a key has for everybody (RFC 7518, section 6.2.1; RFC 8037, section 2).
#[derive(Clone, Debug, PartialEq, Eq)]
struct PublicKey {
    algorithm: &'static str,
    kind: &'static str,
    curve: &'static str,
    x: String,
    y: Option<String>,
}

impl IdentityToken {
    /// Reads the keys. The error names setting and place.
    pub(super) fn new(config: &config::IdentityToken) -> Result<Self, String> {
        let of = |setting: &str, source| {
            SigningKey::read(source).map_err(|error| format!("identity.token.{setting}: {error}"))
        };
        let key = of("key", &config.key)?;
        let mut public = vec![key.public()];
        for source in &config.previous_keys {
            let previous = of("previous_keys", source)?.public();
            if !public.contains(&previous) {
                public.push(previous);
            }
        }
        let used = key.public();
        let header = json!({"alg": used.algorithm, "typ": "JWT", "kid": used.thumbprint()});
        let keys: Vec<Value> = public.iter().map(PublicKey::jwk).collect();
        Ok(Self {
            config: config.clone(),
            key,
            header: encode(header.to_string()),
            jwks: json!({ "keys": keys }).to_string().into(),
        })
    }

    /// The keys, if they are published at `path`.
    pub(super) fn jwks(&self, path: &str) -> Option<&Bytes> {
        (self.config.jwks_path.as_deref() == Some(path)).then_some(&self.jwks)
    }

    /// Whether what was made at `made` is still told at `now`: for half of its lifetime on both clocks, so that a
    /// service has the other half, and never where it would be from the future.
    pub(super) fn is_fresh(&self, made: Now, now: Now) -> bool {
        let half = self.config.lifetime / 2;
        Duration::from_nanos(now.boot.0.saturating_sub(made.boot.0)) < half
            && now.utc >= made.utc
            && now.utc.since(made.utc) < half
    }

    /// The field that says who calls, from `now` on; `None`: it would be too long.
    pub(super) fn field(
        &self,
        identity: &Identity,
        now: UtcMillis,
    ) -> Option<(HeaderName, HeaderValue)> {
        let claims = Value::Object(self.claims(identity, now));
        let mut token = format!("{}.{}", self.header, encode(claims.to_string()));
        let signature = self.key.sign(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        let mut value = HeaderValue::try_from(token).ok()?;
        value.set_sensitive(true);
        (value.len() <= VALUE_MAX_BYTES).then_some((unshared(&self.config.header)?, value))
    }

    fn claims(&self, identity: &Identity, now: UtcMillis) -> Map<String, Value> {
        let text = |text: &Option<Box<str>>| text.as_deref().map(Value::from);
        let list = |texts: &[Box<str>]| {
            let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
            (!texts.is_empty()).then(|| Value::from(texts))
        };
        let audience = match self.config.audience.as_slice() {
            [] => None,
            [one] => Some(Value::from(one.as_str())),
            several => Some(Value::from(several)),
        };
        let chosen = self.config.claims.iter();
        let chosen = chosen.filter_map(|(name, path)| {
            Some((name.to_string(), path.find(&identity.claims)?.clone()))
        });
        let chosen: Map<String, Value> = chosen.collect();
        let members = [
            ("iss", Some(Value::from(self.config.issuer.as_str()))),
            ("aud", audience),
            ("sub", text(&identity.user).or_else(|| text(&identity.consumer))),
            ("iat", Some(Value::from(now.0 / 1000))),
            ("exp", Some(Value::from(now.after(self.config.lifetime).0 / 1000))),
            ("authenticator", Some(Value::from(&*identity.authenticator))),
            ("user", text(&identity.user)),
            ("consumer", text(&identity.consumer)),
            ("tenant", text(&identity.tenant)),
            ("plan", text(&identity.plan)),
            ("roles", list(&identity.roles)),
            ("scopes", list(&identity.scopes)),
            ("groups", list(&identity.groups)),
            ("claims", (!chosen.is_empty()).then_some(Value::Object(chosen))),
        ];
        let named = members.into_iter();
        named.filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

impl SigningKey {
    fn read(source: &SecretSource) -> Result<Self, String> {
        let help = "make one by `openssl genpkey -algorithm ed25519 -out FILE`";
        let text = source.read().map_err(|error| format!("{error}, or {help}"))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(text.bytes()).ok();
        let key = key.and_then(|key| Self::of(key.secret_pkcs8_der()));
        key.ok_or_else(|| {
            format!("{source} has no private key of P-256 or Ed25519 in it (PKCS#8, PEM): {help}")
        })
    }

    fn of(pkcs8: &[u8]) -> Option<Self> {
        let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8);
        let p256 = p256.ok().map(Self::P256);
        p256.or_else(|| Ed25519KeyPair::from_pkcs8(pkcs8).ok().map(Self::Ed25519))
    }

    fn sign(&self, text: &[u8]) -> Option<Signature> {
        match self {
            Self::P256(pair) => pair.sign(&SystemRandom::new(), text).ok(),
            Self::Ed25519(pair) => pair.try_sign(text).ok(),
        }
    }

    fn public(&self) -> PublicKey {
        match self {
            Self::P256(pair) => {
                // A byte for the form, two coordinates (SEC 1, section 2.3.3).
                let point = pair.public_key().as_ref().get(1..).unwrap_or_default();
                let (x, y) = point.split_at_checked(32).unwrap_or_default();
                PublicKey {
                    algorithm: "ES256",
                    kind: "EC",
                    curve: "P-256",
                    x: encode(x),
                    y: Some(encode(y)),
                }
            }
            Self::Ed25519(pair) => PublicKey {
                algorithm: "EdDSA",
                kind: "OKP",
                curve: "Ed25519",
                x: encode(pair.public_key()),
                y: None,
            },
        }
    }
}

impl PublicKey {
    /// Its name (RFC 7638): a digest of the members that it must have, in the order of their names.
    fn thumbprint(&self) -> String {
        let Self { kind, curve, x, y, .. } = self;
        let y = y.as_ref().map(|y| format!(r#","y":"{y}""#)).unwrap_or_default();
        encode(digest_of(format!(r#"{{"crv":"{curve}","kty":"{kind}","x":"{x}"{y}}}"#).as_bytes()))
    }

    fn jwk(&self) -> Value {
        let Self { algorithm, kind, curve, x, y } = self;
        let mut jwk = json!({
            "alg": algorithm, "crv": curve, "kid": self.thumbprint(), "kty": kind, "use": "sig", "x": x,
        });
        if let (Some(members), Some(y)) = (jwk.as_object_mut(), y) {
            members.insert("y".to_owned(), y.as_str().into());
        }
        jwk
    }
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::Arc;

    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, ED25519, UnparsedPublicKey,
    };
    use base64::engine::general_purpose::STANDARD;
    use http::HeaderMap;

    use crate::auth::{Forward, usable_keys};
    use crate::base::time::BootTime;
    use crate::config::parse;

    const NOW: Now = Now { boot: BootTime(9_000_000_000), utc: UtcMillis(1_767_225_600_500) };

    fn pem(der: impl AsRef<[u8]>) -> String {
        let text = STANDARD.encode(der);
        format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
    }

    fn ed25519() -> String {
        pem(Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap())
    }

    fn p256() -> String {
        pem(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap().to_pkcs8v1().unwrap())
    }

    /// The key is in `folder`, in the file `key`.
    fn forward(folder: &Path, rest: &str) -> Result<Forward, String> {
        let text = format!(
            "listen: [{{address: 127.0.0.1:80}}]\n\
             identity: {{token: {{key: {{file: key}}, issuer: gate, jwks_path: /keys{rest}}}}}"
        );
        let file = folder.join("a.yaml");
        let config = parse(file.to_str().unwrap(), &text).unwrap();
        Forward::new(config.told.as_ref().unwrap())
    }

    fn told(forward: &Forward, caller: &Arc<Identity>, now: Now) -> String {
        let mut headers = HeaderMap::new();
        forward.tell(Some(caller), &mut headers, || now);
        headers["x-identity-token"].to_str().unwrap().to_owned()
    }

    fn keys(forward: &Forward) -> Vec<Value> {
        let keys: Value = serde_json::from_slice(forward.jwks("/keys").unwrap()).unwrap();
        keys["keys"].as_array().unwrap().clone()
    }

    fn decode(text: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(text).unwrap()
    }

    /// What a token says that holds by a published key.
    fn verified(token: &str, keys: &[Value]) -> Value {
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let header: Value = serde_json::from_slice(&decode(header)).unwrap();
        let key = keys.iter().find(|key| key["kid"] == header["kid"]).unwrap();
        assert_eq!((&header["alg"], &header["typ"]), (&key["alg"], &json!("JWT")));
        let member = |name: &str| decode(key[name].as_str().unwrap());
        let signature = decode(signature);
        let verdict = match key["alg"].as_str().unwrap() {
            "ES256" => {
                let point = [vec![4], member("x"), member("y")].concat();
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
                key.verify(signed.as_bytes(), &signature)
            }
            _ => {
                UnparsedPublicKey::new(&ED25519, member("x")).verify(signed.as_bytes(), &signature)
            }
        };
        verdict.unwrap();
        serde_json::from_slice(&decode(claims)).unwrap()
    }

    #[test]
    fn tokens_of_both_kinds_of_keys_hold_by_what_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let Value::Object(claims) = json!({"email": "a@b", "deep": {"er": [1]}, "other": 1}) else {
            panic!("no object")
        };
        let caller = Identity {
            authenticator: "staff".into(),
            user: Some("ann".into()),
            consumer: Some("acme".into()),
            plan: Some("gold".into()),
            roles: vec!["a".into(), "b,c".into()],
            claims,
            ..Identity::default()
        };
        let expected = json!({
            "iss": "gate", "aud": ["x", "y"], "sub": "ann", "iat": 1_767_225_600, "user": "ann",
            "exp": 1_767_225_690, "authenticator": "staff", "consumer": "acme", "plan": "gold",
            "roles": ["a", "b,c"], "claims": {"email": "a@b", "deep.er": [1]},
        });
        for key in [p256(), ed25519()] {
            std::fs::write(folder.path().join("key"), key).unwrap();
            let rest = ", audience: [x, y], lifetime: 90s, claims: [email, deep.er, absent]";
            let forward = forward(folder.path(), rest).unwrap();
            assert_eq!(usable_keys(forward.jwks("/keys").unwrap()), Ok(1));
            let token = told(&forward, &Arc::new(caller.clone()), NOW);
            assert_eq!(verified(&token, &keys(&forward)), expected);
            let party = Identity { consumer: Some("acme".into()), ..Identity::default() };
            let token = told(&forward, &Arc::new(party), NOW);
            let claims = verified(&token, &keys(&forward));
            assert_eq!((&claims["sub"], claims.get("user")), (&json!("acme"), None));
        }
    }

    #[test]
    fn a_token_is_told_for_half_of_its_lifetime_by_both_clocks() {
        let folder = tempfile::tempdir().unwrap();
        // Its signatures differ each time.
        std::fs::write(folder.path().join("key"), p256()).unwrap();
        let forward = forward(folder.path(), "").unwrap();
        let caller = Arc::new(Identity { user: Some("ann".into()), ..Identity::default() });
        let at = |boot_ms: u64, utc_ms: u64| Now {
            boot: BootTime(NOW.boot.0 + boot_ms * 1_000_000),
            utc: UtcMillis(NOW.utc.0 - 1_000 + utc_ms),
        };
        let first = told(&forward, &caller, at(0, 1_000));
        assert_eq!(told(&forward, &caller, at(29_999, 30_999)), first);
        for (boot_ms, utc_ms) in [(30_000, 1_000), (0, 31_000), (0, 999)] {
            let caller = Arc::new((*caller).clone());
            let first = told(&forward, &caller, at(0, 1_000));
            let renewed = told(&forward, &caller, at(boot_ms, utc_ms));
            assert_ne!(renewed, first, "{boot_ms} {utc_ms}");
            assert_eq!(told(&forward, &caller, at(boot_ms, utc_ms)), renewed);
            let seconds = (NOW.utc.0 - 1_000 + utc_ms) / 1000;
            assert_eq!(verified(&renewed, &keys(&forward))["iat"], seconds);
        }
    }

    #[test]
    fn previous_keys_stay_published_each_once_and_only_at_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let (old, new) = (ed25519(), p256());
        write("key", &old);
        let caller = Arc::new(Identity { user: Some("ann".into()), ..Identity::default() });
        let token = told(&forward(folder.path(), "").unwrap(), &caller, NOW);
        write("key", &new);
        write("old", &old);
        write("same", &new);
        let rotated =
            forward(folder.path(), ", previous_keys: [{file: old}, {file: same}]").unwrap();
        assert_eq!(keys(&rotated).len(), 2);
        assert_eq!(verified(&token, &keys(&rotated))["sub"], "ann");
        assert_ne!(told(&rotated, &caller, NOW), token);
        assert_eq!((rotated.jwks("/keys/"), rotated.jwks("/Keys")), (None, None));
    }

    #[test]
    fn nobody_gets_no_token_and_what_is_too_long_is_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), ed25519()).unwrap();
        let forward = forward(folder.path(), "").unwrap();
        let long =
            Identity { user: Some("x".repeat(VALUE_MAX_BYTES).into()), ..Identity::default() };
        for caller in [None, Some(Arc::new(long))] {
            let mut headers = HeaderMap::new();
            headers.insert("x_identity-token", HeaderValue::from_static("forged"));
            forward.tell(caller.as_ref(), &mut headers, || NOW);
            assert!(headers.keys().all(|name| name == "x-user-id"));
        }
    }

    #[test]
    fn a_key_that_cannot_sign_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let error = |rest| forward(folder.path(), rest).unwrap_err();
        let missing = error("");
        assert!(missing.starts_with("identity.token.key: the file /"), "{missing}");
        assert!(missing.contains("openssl genpkey"), "{missing}");
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let public = "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n".to_owned();
        for text in [pem(p384.to_pkcs8v1().unwrap()), pem("x"), "text".to_owned(), public] {
            std::fs::write(&path, text).unwrap();
            let error = error("");
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert!(error.contains("no private key of P-256 or Ed25519 in it"), "{error}");
            assert!(error.contains("openssl genpkey -algorithm ed25519 -out FILE"), "{error}");
        }
        std::fs::write(&path, ed25519()).unwrap();
        let error = error(", previous_keys: [{file: none}]");
        assert!(error.starts_with("identity.token.previous_keys: the file /"), "{error}");
    }

    /// RFC 8037, appendices A.1 to A.3.
    #[test]
    fn a_key_is_named_by_its_thumbprint() {
        let seed = decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A");
        let public = decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        let pair = Ed25519KeyPair::from_seed_and_public_key(&seed, &public).unwrap();
        let public = SigningKey::Ed25519(pair).public();
        assert_eq!(public.x, "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        assert_eq!(public.thumbprint(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }
}
