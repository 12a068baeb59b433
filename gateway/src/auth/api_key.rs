//! Callers by API keys. A key is looked up by its SHA-256, so no comparison meets the key itself, and how long a
//! look-up takes says nothing about keys that are near it. What has not the form of a key is refused without one.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;

use super::place::{Found, find};
use super::{Answer, Ask, Consumers, Identity, Memory, digest_of, strip};
use crate::base::api_key;
use crate::base::time::Now;
use crate::config::{self, CredentialPlace};
use crate::store::keys::{KeyId, KeyRecord, KeyState, Registry};

/// How long a worker goes by what it was told, if nobody changes anything. Changes by this process end it at once; this
/// is for those by another, while one takes the place of the other.
const REMEMBERED: Duration = Duration::from_mins(1);

/// Keys and where they are shown.
#[derive(Debug)]
pub(super) struct ApiKey {
    name: Box<str>,
    config: config::ApiKey,
    registry: Registry,
    consumers: Arc<Consumers>,
}

impl ApiKey {
    pub(super) fn new(
        name: &str,
        config: &config::ApiKey,
        (registry, consumers): (&Registry, &Arc<Consumers>),
    ) -> Self {
        let (registry, consumers) = (registry.clone(), Arc::clone(consumers));
        Self { name: name.into(), config: config.clone(), registry, consumers }
    }

    pub(super) fn authenticate(&self, ask: &Ask<'_>, memory: &Memory) -> Answer {
        let key = match find(&self.config.places, ask.head) {
            Found::Nothing => return Answer::Absent,
            Found::Several => return Answer::Refused("more than one API key"),
            Found::One(key) => key,
        };
        let Some(keys) = self.registry.opened() else {
            return Answer::Unavailable("the API keys are not open");
        };
        let (digest, now) = (digest_of(&key), (ask.now)());
        // Before it is looked up: what changes from now on must not be remembered.
        let generation = keys.generation();
        if let Some(identity) = memory.get(&digest, generation, now) {
            return Answer::Known(identity);
        }
        if !str::from_utf8(&key).is_ok_and(|key| api_key::is_key(&self.config.prefix, key)) {
            return Answer::Refused("no API key by its form");
        }
        let record = match keys.find(&digest) {
            Ok(Some(record)) => record,
            Ok(None) => return Answer::Refused("unknown API key"),
            Err(error) => {
                tracing::error!(%error, "API keys cannot be looked up");
                return Answer::Unavailable("API keys cannot be looked up");
            }
        };
        match record.state(now.utc) {
            KeyState::Active | KeyState::Retiring => {}
            KeyState::Expired => return Answer::Refused("expired API key"),
            KeyState::Revoked => return Answer::Refused("revoked API key"),
        }
        let holds_for = holds_for(&record, now);
        let identity = Arc::new(self.identity(KeyId::of(&digest), record));
        memory.put(digest, generation, (now, holds_for), Arc::clone(&identity));
        Answer::Known(identity)
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
            strip::strip(place, head, |credential| credential.starts_with(prefix));
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

fn holds_for(record: &KeyRecord, now: Now) -> Duration {
    let left = record.end().map(|end| Duration::from_millis(end.0.saturating_sub(now.utc.0)));
    left.map_or(REMEMBERED, |left| left.min(REMEMBERED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::address::ClientAddr;
    use crate::base::time::{BootTime, UtcMillis};
    use crate::config::Consumer;
    use http::Request;

    fn now() -> Now {
        Now { boot: BootTime(5_000_000_000), utc: UtcMillis(1_800_000_000_000) }
    }

    struct Case {
        api_key: ApiKey,
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
            };
            let acme = Consumer {
                name: "acme".to_owned(),
                plan: Some("gold".to_owned()),
                scopes: vec!["own".to_owned()],
                ..Consumer::default()
            };
            let consumers = Arc::new(Consumers::new(&[acme]));
            let api_key = ApiKey::new("partners", &config, (&registry, &consumers));
            Self { api_key, memory: Memory::new(100), _folder: folder }
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
            let keys = self.api_key.registry.open().unwrap();
            keys.put([&(digest_of(key.as_bytes()), record)]).unwrap();
        }

        fn ask_at(&self, keys: &[&str], now: fn() -> Now) -> Answer {
            let mut request = Request::get("/");
            for key in keys {
                request = request.header("X-API-Key", *key);
            }
            let head = request.body(()).unwrap().into_parts().0;
            let ask = Ask {
                head: &head,
                target: head.uri.path_and_query().unwrap(),
                client: ClientAddr::believed("192.0.2.1".parse().unwrap()),
                certificate: None,
                is_tls: false,
                body: None,
                now,
            };
            self.api_key.authenticate(&ask, &self.memory)
        }

        fn ask(&self, keys: &[&str]) -> Answer {
            self.ask_at(keys, now)
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
        let later = || Now {
            boot: BootTime(now().boot.0 + 2_000_000_000),
            utc: now().utc.after(Duration::from_secs(2)),
        };
        assert_eq!(case.ask_at(&[&key], later), Answer::Refused("expired API key"));
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
