//! A scripted Local API of a crowdsec: it knows one bouncer by its key, tells it what is decided, all of it or what has
//! changed, and falls ill when the test says so.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::Result;
use crate::idp::reply;
use crate::origin::{Origin, Reply, Request};
use crate::site::Site;

/// The API. It ends when it is dropped.
pub struct Lapi {
    origin: Origin,
    state: Arc<Mutex<State>>,
}

struct State {
    key: String,
    /// What it does instead of what it should.
    ill: Option<Reply>,
    holding: BTreeMap<String, Value>,
    new: Vec<Value>,
    deleted: Vec<Value>,
}

impl Lapi {
    /// One that listens there, whose bouncer has this key.
    pub fn start(site: &Site, address: SocketAddr, key: &str) -> Result<Self> {
        let state = State {
            key: key.to_owned(),
            ill: None,
            holding: BTreeMap::new(),
            new: Vec::new(),
            deleted: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let script = move |request: &Request| answer(&mut lock(&shared), request);
        let origin = Origin::start(site.namespace.as_ref(), address, script)?;
        Ok(Self { origin, state })
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.origin.address)
    }

    /// Decides about an address or a range.
    pub fn ban(&self, value: &str, duration: &str, scenario: &str) {
        let scope = if value.contains('/') { "Range" } else { "Ip" };
        let decision = json!({
            "id": 7, "origin": "crowdsec", "uuid": "0", "scope": scope, "type": "ban",
            "value": value, "duration": duration, "scenario": scenario,
        });
        let mut state = lock(&self.state);
        state.holding.insert(value.to_owned(), decision.clone());
        state.new.push(decision);
    }

    /// Takes a decision back.
    pub fn unban(&self, value: &str) {
        let mut state = lock(&self.state);
        if let Some(mut decision) = state.holding.remove(value) {
            if let Some(duration) = decision.get_mut("duration") {
                *duration = json!("-1.5s");
            }
            state.deleted.push(decision);
        }
    }

    /// From now on it does this instead, or again what it should.
    pub fn feel(&self, ill: Option<Reply>) {
        lock(&self.state).ill = ill;
    }

    /// From now on its bouncer has this key.
    pub fn rekey(&self, key: &str) {
        key.clone_into(&mut lock(&self.state).key);
    }

    /// What it was asked so far: for all (`true`), or for what has changed.
    pub fn asked(&self) -> Vec<bool> {
        let requests = self.origin.requests();
        requests.iter().map(|request| request.line.contains("startup=true")).collect()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(state: &mut State, request: &Request) -> Reply {
    if let Some(ill) = &state.ill {
        return ill.clone();
    }
    if request.header("x-api-key") != Some(&state.key) {
        return reply(403, "application/json", r#"{"message":"access forbidden"}"#);
    }
    let is_for = |startup: &str| {
        let path = format!("/v1/decisions/stream?startup={startup}&scopes=ip,range");
        request.line.starts_with(&format!("GET {path} "))
    };
    let (new, deleted) = (std::mem::take(&mut state.new), std::mem::take(&mut state.deleted));
    let said = if is_for("true") {
        let all: Vec<&Value> = state.holding.values().collect();
        json!({"new": all, "deleted": deleted})
    } else if is_for("false") {
        // As it does, nothing is null.
        let list = |all: Vec<Value>| if all.is_empty() { Value::Null } else { Value::Array(all) };
        json!({"new": list(new), "deleted": list(deleted)})
    } else {
        return reply(404, "application/json", "{}");
    };
    reply(200, "application/json; charset=utf-8", &said.to_string())
}
