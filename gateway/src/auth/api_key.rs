//! Callers by API keys. A key is looked up by its SHA-256, so no comparison meets the key itself, and how long a
//! look-up takes says nothing about keys that are near it. What has not the form of a key is refused without one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::request::Parts;

use super::place::{Found, find, strip};
use super::{Answer, Ask, Consumers, Digest, Identity, Memory, digest_of};
use crate::base::api_key;
use crate::base::time::Now;
use crate::config::{self, CredentialPlace, KeyRegistry};
use crate::shared::registry::FRESH;
use crate::shared::{self, Redis};
use crate::store::keys::{KeyId, KeyRecord, KeyState, Registry};

/// How long a worker goes by what it was told, if nobody changes anything. Changes by this process end it at once; this
/// is for those by another, while one takes the place of the other.
const REMEMBERED: Duration = Duration::from_mins(1);

/// How often a worker asks for the number of the state in Redis; what was revoked holds so much longer.
const ASK_EVERY_NS: u64 = 50_000_000;

/// Keys and where they are shown.
#[derive(Debug)]
pub(super) struct ApiKey {
    name: Box<str>,
    config: config::ApiKey,
    home: Home,
    consumers: Arc<Consumers>,
}

/// Who knows the keys.
#[derive(Debug)]
enum Home {
    Embedded(Registry),
    Redis { registry: shared::registry::Registry, seen: Seen, is_away: AtomicBool },
}

/// The state in Redis as it was last known, and when: workers read it together and seldom write it.
#[derive(Debug, Default)]
struct Seen {
    generation: AtomicU64,
    /// 0: never.
    at_ns: AtomicU64,
}

/// By which state a key is looked up.
enum State {
    Present(u64),
    /// What is remembered by it still goes, and nothing can be looked up.
    Stale(u64),
    Unknown,
}

impl Seen {
    fn state(&self, registry: &shared::registry::Registry, now: Now, stale_for: Duration) -> State {
        let at_ns = self.at_ns.load(Ordering::Acquire);
        let age_ns = now.boot.0.saturating_sub(at_ns);
        let known = self.generation.load(Ordering::Acquire);
        if at_ns != 0 && age_ns < ASK_EVERY_NS {
            return State::Present(known);
        }
        match registry.generation() {
            Some(generation) => {
                self.generation.store(generation, Ordering::Release);
                self.at_ns.store(now.boot.0, Ordering::Release);
                State::Present(generation)
            }
            // Not by what was known here: that may be older than a change that was heard of.
            None => match registry.last_seen() {
                Some((generation, age)) if age < FRESH.saturating_add(stale_for) => {
                    State::Stale(generation)
                }
                _ => State::Unknown,
            },
        }
    }
}

impl ApiKey {
    pub(super) fn new(
        name: &str,
        config: &config::ApiKey,
        (registry, redis): (&Registry, Option<&Redis>),
        consumers: &Arc<Consumers>,
    ) -> Result<Self, String> {
        let home = match config.registry {
            KeyRegistry::Embedded => Home::Embedded(registry.clone()),
            // Without one nothing is asked; `gateway explain` has none.
            KeyRegistry::Redis => match redis {
                Some(redis) => Home::Redis {
                    registry: redis.registry(),
                    seen: Seen::default(),
                    is_away: AtomicBool::new(false),
                },
                None => return Err("`registry: redis` needs `state.redis`".to_owned()),
            },
        };
        let consumers = Arc::clone(consumers);
        Ok(Self { name: name.into(), config: config.clone(), home, consumers })
    }

    /// Whether its keys are in the embedded store.
    pub(super) fn is_embedded(&self) -> bool {
        matches!(self.home, Home::Embedded(_))
    }

    pub(super) async fn authenticate(&self, ask: &Ask<'_>, memory: &Memory) -> Answer {
        let key = match find(&self.config.places, ask.head) {
            Found::Nothing => return Answer::Absent,
            Found::Several => return Answer::Refused("more than one API key"),
            Found::One(key) => key,
        };
        let (digest, now) = (digest_of(&key), ask.moment.now());
        // Before it is looked up: what changes from now on must not be remembered.
        let state = match &self.home {
            Home::Embedded(registry) => {
                registry.opened().map_or(State::Unknown, |keys| State::Present(keys.generation()))
            }
            Home::Redis { registry, seen, .. } => seen.state(registry, now, self.config.stale_for),
        };
        let (State::Present(generation) | State::Stale(generation)) = state else {
            return Answer::Unavailable("API keys are out of reach");
        };
        if let Some(identity) = memory.get(&digest, generation, now) {
            return Answer::Known(identity);
        }
        if !str::from_utf8(&key).is_ok_and(|key| api_key::is_key(&self.config.prefix, key)) {
            return Answer::Refused("no API key by its form");
        }
        if matches!(state, State::Stale(_)) {
            return Answer::Unavailable("API keys are out of reach");
        }
        let record = match self.find(&digest).await {
            Ok(Some(record)) => record,
            Ok(None) => return Answer::Refused("unknown API key"),
            Err(reason) => return Answer::Unavailable(reason),
        };
        match record.state(now.utc) {
            KeyState::Active | KeyState::Retiring => {}
            KeyState::Expired => return Answer::Expired("expired API key"),
            KeyState::Revoked => return Answer::Refused("revoked API key"),
        }
        let longest = match self.home {
            Home::Embedded(_) => REMEMBERED,
            Home::Redis { .. } => REMEMBERED.saturating_add(self.config.stale_for),
        };
        let holds_for = holds_for(&record, now, longest);
        let identity = Arc::new(self.identity(KeyId::of(&digest), record));
        memory.put(digest, generation, (now, holds_for), Arc::clone(&identity));
        Answer::Known(identity)
    }

    async fn find(&self, digest: &Digest) -> Result<Option<KeyRecord>, &'static str> {
        const FAILED: &str = "API keys cannot be looked up";
        match &self.home {
            Home::Embedded(registry) => {
                let keys = registry.opened().ok_or(FAILED)?;
                keys.find(digest).map_err(|error| {
                    tracing::error!(%error, "API keys cannot be looked up");
                    FAILED
                })
            }
            Home::Redis { registry, .. } => {
                let Some(record) = registry.find(digest).await.map_err(|_| FAILED)? else {
                    return Ok(None);
                };
                serde_json::from_slice(&record).map(Some).map_err(|error| {
                    let id = KeyId::of(digest);
                    tracing::error!(%id, %error, "an API key in Redis cannot be read");
                    FAILED
                })
            }
        }
    }

    /// For how long nobody has known here what was revoked; zero while that is known, `None` where it always is.
    pub(super) fn unknown_for(&self) -> Option<Duration> {
        let Home::Redis { registry, .. } = &self.home else { return None };
        let age = registry.last_seen().map_or(Duration::ZERO, |(_, age)| age);
        Some(if age < FRESH { Duration::ZERO } else { age })
    }

    /// Says when that begins and when it is over.
    pub(super) fn tick(&self) {
        let Home::Redis { is_away, .. } = &self.home else { return };
        let is_unknown = self.unknown_for().is_some_and(|time| !time.is_zero());
        if is_away.swap(is_unknown, Ordering::Relaxed) == is_unknown {
            return;
        }
        let (authenticator, stale_for) = (&*self.name, self.config.stale_for);
        match (is_unknown, stale_for.is_zero()) {
            (true, true) => tracing::warn!(authenticator, "API keys are refused: Redis is away"),
            (true, false) => {
                let time = humantime::format_duration(stale_for);
                tracing::warn!(
                    authenticator,
                    %time,
                    "Redis is away: API keys that are remembered go on, revoked ones too"
                );
            }
            (false, _) => tracing::info!(authenticator, "API keys are checked again"),
        }
    }

    pub(super) fn challenge(&self) -> String {
        let name = &self.name;
        let scheme = self.config.places.iter().find_map(|place| match place {
            CredentialPlace::Header(_, scheme) => scheme.as_deref(),
            _ => None,
        });
        format!("{} realm=\"{name}\"", scheme.unwrap_or("ApiKey"))
    }

    /// Keys that a worker remembers.
    pub(super) fn remembers(&self) -> usize {
        self.config.remember
    }

    /// Takes the key out of a request, and whatever else looks like one where keys are.
    pub(super) fn strip(&self, head: &mut Parts) {
        if !self.config.strip {
            return;
        }
        let prefix = self.config.prefix.as_bytes();
        for place in &self.config.places {
            // A field that several schemes share may have somebody else's credential.
            strip(place, head, |credential| credential.starts_with(prefix));
        }
    }

    fn identity(&self, id: KeyId, record: KeyRecord) -> Identity {
        let KeyRecord { consumer, plan, scopes, .. } = record;
        self.consumers.complete(Identity {
            authenticator: self.name.clone(),
            consumer: Some(consumer.into()),
            plan: plan.map(Into::into),
            scopes: scopes.into_iter().map(Into::into).collect(),
            key: Some(id.to_string().into()),
            ..Identity::default()
        })
    }
}

fn holds_for(record: &KeyRecord, now: Now, longest: Duration) -> Duration {
    let left = record.end().map(|end| Duration::from_millis(end.0.saturating_sub(now.utc.0)));
    left.map_or(longest, |left| left.min(longest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::address::ClientAddr;
    use crate::base::time::{BootTime, Moment, UtcMillis};
    use crate::config::Consumer;
    use http::Request;

    fn now() -> Now {
        Now { boot: BootTime(5_000_000_000), utc: UtcMillis(1_800_000_000_000) }
    }

    struct Case {
        api_key: ApiKey,
        registry: Registry,
        memory: Memory,
        _folder: tempfile::TempDir,
    }

    impl Case {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let registry = Registry::at(folder.path());
            registry.open().unwrap();
            let config = config::ApiKey {
                places: vec![CredentialPlace::Header("x-api-key".parse().unwrap(), None)],
                prefix: api_key::PREFIX.to_owned(),
                strip: true,
                remember: 100,
                registry: KeyRegistry::Embedded,
                stale_for: Duration::ZERO,
            };
            let acme = Consumer {
                name: "acme".to_owned(),
                plan: Some("gold".to_owned()),
                scopes: vec!["own".to_owned()],
                ..Consumer::default()
            };
            let consumers = Arc::new(Consumers::new(&[acme]));
            let api_key = ApiKey::new("partners", &config, (&registry, None), &consumers);
            let api_key = api_key.unwrap();
            Self { api_key, registry, memory: Memory::new(100), _folder: folder }
        }

        fn put(&self, key: &str, change: impl FnOnce(&mut KeyRecord)) {
            let mut record = KeyRecord {
                consumer: "acme".to_owned(),
                plan: None,
                scopes: vec!["read".to_owned()],
                label: String::new(),
                created: now().utc,
                expires: None,
                revoked: None,
                replaced_by: None,
            };
            change(&mut record);
            let keys = self.registry.open().unwrap();
            keys.put([&(digest_of(key.as_bytes()), record)]).unwrap();
        }

        fn ask_at(&self, keys: &[&str], now: Now) -> Answer {
            let mut request = Request::get("/");
            for key in keys {
                request = request.header("X-API-Key", *key);
            }
            let head = request.body(()).unwrap().into_parts().0;
            let ask = Ask {
                head: &head,
                target: &head.uri,
                client: ClientAddr::believed("192.0.2.1".parse().unwrap()),
                certificate: None,
                is_tls: false,
                body: None,
                moment: &Moment::at(now),
            };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(self.api_key.authenticate(&ask, &self.memory))
        }

        fn ask(&self, keys: &[&str]) -> Answer {
            self.ask_at(keys, now())
        }
    }

    #[test]
    fn a_key_says_whose_it_is_together_with_the_configuration() {
        let case = Case::new();
        let key = api_key::generate(api_key::PREFIX).unwrap();
        assert_eq!(case.ask(&[]), Answer::Absent);
        assert_eq!(case.ask(&[&key]), Answer::Refused("unknown API key"));
        case.put(&key, |_| {});
        let Answer::Known(identity) = case.ask(&[&key]) else { panic!("not known") };
        assert_eq!(identity.consumer.as_deref(), Some("acme"));
        assert_eq!(identity.plan.as_deref(), Some("gold"));
        assert_eq!(identity.scopes, ["read".into(), Box::from("own")]);
        assert_eq!(identity.key.as_deref().map(str::len), Some(16));
        let Answer::Known(again) = case.ask(&[&key]) else { panic!("not known") };
        assert!(Arc::ptr_eq(&identity, &again), "it was looked up again");
        assert_eq!(case.ask(&[&key, &key]), Answer::Refused("more than one API key"));
    }

    #[test]
    fn what_is_revoked_is_refused_at_once_though_it_was_remembered() {
        let case = Case::new();
        let key = api_key::generate(api_key::PREFIX).unwrap();
        case.put(&key, |_| {});
        assert!(matches!(case.ask(&[&key]), Answer::Known(_)));
        case.put(&key, |record| record.revoked = Some(now().utc));
        assert_eq!(case.ask(&[&key]), Answer::Refused("revoked API key"));
    }

    #[test]
    fn what_is_remembered_ends_when_the_key_does() {
        let case = Case::new();
        let key = api_key::generate(api_key::PREFIX).unwrap();
        case.put(&key, |record| record.expires = Some(now().utc.after(Duration::from_secs(2))));
        assert!(matches!(case.ask(&[&key]), Answer::Known(_)));
        let later = Now {
            boot: BootTime(now().boot.0 + 2_000_000_000),
            utc: now().utc.after(Duration::from_secs(2)),
        };
        assert_eq!(case.ask_at(&[&key], later), Answer::Expired("expired API key"));
    }

    #[test]
    fn what_has_not_the_form_of_a_key_is_not_looked_up() {
        let case = Case::new();
        let other = api_key::generate("other").unwrap();
        let mut broken = api_key::generate(api_key::PREFIX).unwrap();
        let last = if broken.pop() == Some('0') { '1' } else { '0' };
        broken.push(last);
        // They would be found.
        case.put(&other, |_| {});
        case.put(&broken, |_| {});
        for bad in ["", "x", &other, &broken] {
            assert_eq!(case.ask(&[bad]), Answer::Refused("no API key by its form"), "{bad}");
        }
    }
}
