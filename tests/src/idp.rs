//! A scripted identity provider: it publishes keys, signs tokens, answers what they are worth, counts who asks, and
//! falls ill when the test says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::Result;
use crate::origin::{Origin, Reply, Request};
use crate::site::Site;

/// How it feels.
#[derive(Clone, Debug)]
pub enum Mood {
    /// It does what it should.
    Well,
    /// It does this instead.
    Ill(Reply),
}

/// The provider. It ends when it is dropped.
pub struct Idp {
    origin: Origin,
    state: Arc<Mutex<State>>,
}

struct State {
    mood: Mood,
    /// Published, with their ids. The last one signs.
    keys: Vec<(String, EcdsaKeyPair)>,
    made: usize,
    /// What it says of opaque tokens.
    tokens: HashMap<String, Value>,
}

impl Idp {
    /// One with a key.
    pub fn start(site: &Site) -> Result<Self> {
        let state = State { mood: Mood::Well, keys: Vec::new(), made: 0, tokens: HashMap::new() };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let origin = site.origin(move |request| answer(&lock(&shared), request))?;
        let idp = Self { origin, state };
        idp.rotate(0)?;
        Ok(idp)
    }

    /// Where it publishes its keys.
    pub fn jwks_url(&self) -> String {
        format!("http://{}/keys", self.origin.address)
    }

    /// Where it says what tokens are worth.
    pub fn introspection_url(&self) -> String {
        format!("http://{}/introspect", self.origin.address)
    }

    /// From now on it feels like that.
    pub fn feel(&self, mood: Mood) {
        lock(&self.state).mood = mood;
    }

    /// Signs by a new key, and goes on publishing so many of the old ones.
    pub fn rotate(&self, old: usize) -> Result {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        let mut state = lock(&self.state);
        state.made += 1;
        let id = format!("key-{}", state.made);
        state.keys.push((id, key.ok().context("no key can be made")?));
        let gone = state.keys.len().saturating_sub(old + 1);
        state.keys.drain(..gone);
        Ok(())
    }

    /// A token with these claims beside an `exp` in an hour.
    pub fn token(&self, claims: &Value) -> Result<String> {
        let id = lock(&self.state).keys.last().context("there is no key")?.0.clone();
        self.token_by(&id, claims)
    }

    /// As [`Self::token`], with this `kid` whoever has it.
    pub fn token_by(&self, id: &str, claims: &Value) -> Result<String> {
        let mut all = json!({ "exp": now() + 3600 });
        let members = all.as_object_mut().context("not an object")?;
        members.extend(claims.as_object().context("not an object")?.clone());
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": id});
        let signed = format!("{}.{}", encode(&header), encode(&all));
        let state = lock(&self.state);
        let (_, key) = state.keys.last().context("there is no key")?;
        let signature = key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.ok().context("the key does not sign")?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// From now on it says this of the opaque token.
    pub fn grant(&self, token: &str, answer: Value) {
        lock(&self.state).tokens.insert(token.to_owned(), answer);
    }

    /// How often somebody has asked for the keys.
    pub fn jwks_calls(&self) -> usize {
        self.calls("GET /keys ").len()
    }

    /// The questions about tokens.
    pub fn introspections(&self) -> Vec<Request> {
        self.calls("POST /introspect ")
    }

    /// Connections that somebody has to it.
    pub fn connections(&self) -> usize {
        self.origin.open_connections()
    }

    fn calls(&self, line: &str) -> Vec<Request> {
        let mut requests = self.origin.requests();
        requests.retain(|request| request.line.starts_with(line));
        requests
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// An answer with a body that was made for it.
pub fn reply(status: u16, kind: &str, body: &str) -> Reply {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} -\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n");
    Reply::Bytes(format!("{head}connection: close\r\n\r\n{body}").into_bytes())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(state: &State, request: &Request) -> Reply {
    if let Mood::Ill(reply) = &state.mood {
        return reply.clone();
    }
    if request.line.starts_with("GET /keys ") {
        let keys: Vec<Value> = state.keys.iter().map(|(id, key)| jwk(id, key)).collect();
        return reply(200, "application/json", &json!({ "keys": keys }).to_string());
    }
    let form = String::from_utf8_lossy(&request.body);
    let token = form.split('&').find_map(|pair| pair.strip_prefix("token="));
    let said = token.and_then(|token| state.tokens.get(token));
    let said = said.cloned().unwrap_or_else(|| json!({"active": false}));
    reply(200, "application/json", &said.to_string())
}

fn jwk(id: &str, key: &EcdsaKeyPair) -> Value {
    let point = key.public_key().as_ref();
    let encode = |bytes: Option<&[u8]>| URL_SAFE_NO_PAD.encode(bytes.unwrap_or_default());
    let (x, y) = (encode(point.get(1..33)), encode(point.get(33..65)));
    json!({"kty": "EC", "crv": "P-256", "kid": id, "use": "sig", "alg": "ES256", "x": x, "y": y})
}
