//! API keys as commands change them: whose they are, how long they hold, and what takes the place of what. What was
//! answered is on the disk.

use std::path::Path;
use std::time::Duration;

use crate::admin::api::{Answer, Done, Refusal};
use crate::admin::keys::{
    CreateKey, KeyQuery, KeyRequest, KeyView, NewKey, PAGE_MAX_KEYS, REVOKE_MAX_KEYS, RevokeKeys,
    RotateKey, ShownOnce,
};
use crate::auth::{Authenticators, digest_of};
use crate::base::time::{BootTime, Now, UtcMillis};
use crate::base::{api_key, text};
use crate::config::{AuthKind, Config};
use crate::store::keys::{Digest, KEYS_MAX, KeyId, KeyRecord, Keys, Registry};

/// Bytes of what a key is for.
const LABEL_MAX_BYTES: usize = 256;
const SCOPES_MAX: usize = 64;
/// Ten years: a time of grace or a life beyond it is a mistake.
const LIFE_MAX: Duration = Duration::from_hours(10 * 366 * 24);
/// How often keys that ended long ago are looked for.
const PURGE_EVERY_NS: u64 = 60 * 1_000_000_000;
/// Keys forgotten at a time, so that nobody waits for it.
const PURGE_MAX_KEYS: usize = 1000;

/// What commands about keys are carried out on.
#[derive(Debug)]
pub(super) struct Desk {
    registry: Registry,
    purge_at: BootTime,
}

impl Desk {
    /// On the keys that callers are looked up in.
    pub(super) fn new(authenticators: &Authenticators, config: &Config) -> Self {
        let registry = authenticators.keys().cloned();
        let registry = registry.unwrap_or_else(|| Registry::at(&config.state.dir));
        Self { registry, purge_at: BootTime(0) }
    }

    /// Carries out a command.
    pub(super) fn answer(
        &self,
        request: KeyRequest,
        config: &Config,
        now: UtcMillis,
    ) -> Result<Answer, Refusal> {
        let keys = self.registry.open().map_err(Refusal::failed)?;
        match request {
            KeyRequest::Create(asked) => {
                let form = Form::of(config, asked.auth.as_deref())?;
                create(keys, asked, form, now)
            }
            KeyRequest::Rotate(asked) => {
                let form = Form::of(config, asked.auth.as_deref())?;
                rotate(keys, &asked, form, now)
            }
            KeyRequest::Revoke(asked) => revoke(keys, &asked, now),
            KeyRequest::List(query) => list(keys, &query, now),
        }
    }

    /// Forgets keys that ended long ago.
    pub(super) fn tick(&mut self, now: Now) {
        let Some(keys) = self.registry.opened().filter(|_| now.boot >= self.purge_at) else {
            return;
        };
        self.purge_at = BootTime(now.boot.0.saturating_add(PURGE_EVERY_NS));
        match keys.purge(now.utc, PURGE_MAX_KEYS) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "API keys that ended long ago were forgotten"),
            Err(error) => tracing::error!(%error, "API keys that ended cannot be forgotten"),
        }
    }
}

/// Answers while no gateway runs; `None` where that takes a running one, or where there are no keys.
pub(super) fn offline(
    directory: &Path,
    request: &KeyRequest,
    now: UtcMillis,
) -> Option<Result<Answer, Refusal>> {
    if !Keys::exist(directory) {
        return None;
    }
    let opened = || Keys::open(directory).map_err(Refusal::failed);
    match request {
        KeyRequest::Revoke(asked) => Some(opened().and_then(|keys| revoke(&keys, asked, now))),
        KeyRequest::List(query) => Some(opened().and_then(|keys| list(&keys, query, now))),
        KeyRequest::Create(_) | KeyRequest::Rotate(_) => None,
    }
}

/// What a new key looks like, and what to know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Form {
    prefix: String,
    notes: Vec<String>,
}

impl Form {
    /// That of the keys of an authenticator; of the only ones there are if none is named.
    fn of(config: &Config, auth: Option<&str>) -> Result<Self, Refusal> {
        let kinds = config.auth.iter().filter_map(|one| match &one.kind {
            AuthKind::ApiKey(api_key) => Some((one.name.as_str(), api_key.prefix.as_str())),
            _ => None,
        });
        let named: Vec<_> =
            kinds.filter(|(name, _)| auth.is_none_or(|auth| auth == *name)).collect();
        let Some((_, prefix)) = named.first() else {
            let Some(auth) = auth else {
                let note = "the configuration has no authenticator with `api_key` yet, so nobody \
                            asks for keys";
                let (prefix, notes) = (api_key::PREFIX.to_owned(), vec![note.to_owned()]);
                return Ok(Self { prefix, notes });
            };
            return Err(Refusal::usage(format!(
                "the configuration has no authenticator `{}` with `api_key`",
                text::excerpt(auth, 40)
            )));
        };
        if named.iter().any(|(_, other)| other != prefix) {
            let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
            return Err(Refusal::usage(format!(
                "keys of several forms are made here: say which with --auth, one of {}",
                names.join(", ")
            )));
        }
        Ok(Self { prefix: (*prefix).to_owned(), notes: Vec::new() })
    }
}

fn create(keys: &Keys, create: CreateKey, form: Form, now: UtcMillis) -> Result<Answer, Refusal> {
    let CreateKey { auth: _, consumer, plan, scopes, label, for_ms } = create;
    is_name("consumer", &consumer)?;
    plan.iter().try_for_each(|plan| is_name("plan", plan))?;
    scopes.iter().try_for_each(|scope| is_name("scope", scope))?;
    if scopes.len() > SCOPES_MAX {
        return Err(Refusal::usage(format!("a key has at most {SCOPES_MAX} scopes")));
    }
    if label.len() > LABEL_MAX_BYTES || label.contains(char::is_control) {
        return Err(Refusal::usage(format!(
            "the label is one line of at most {LABEL_MAX_BYTES} bytes"
        )));
    }
    let expires = for_ms.map(|for_ms| end("--for", for_ms, now)).transpose()?;
    let record = KeyRecord {
        consumer,
        plan,
        scopes,
        label,
        created: now,
        expires,
        revoked: None,
        replaced_by: None,
    };
    issue(keys, form, (record, None), now)
}

fn rotate(keys: &Keys, rotate: &RotateKey, form: Form, now: UtcMillis) -> Result<Answer, Refusal> {
    let (digest, mut before) = named(keys, rotate.id)?;
    let state = before.state(now);
    if !state.holds() {
        return Err(Refusal::failed(format!(
            "key {} is {}: `gateway keys create` makes a new one",
            rotate.id,
            state.name()
        )));
    }
    if let Some(by) = before.replaced_by {
        return Err(Refusal::failed(format!(
            "key {} was rotated before: rotate {by}, which took its place",
            rotate.id
        )));
    }
    let grace_ends = end("--grace", rotate.grace_ms, now)?;
    let lived = before.expires.map(|expires| expires.0.saturating_sub(before.created.0));
    let life = rotate.for_ms.or(lived);
    let expires = life.map(|for_ms| end("--for", for_ms, now)).transpose()?;
    let record = KeyRecord { created: now, expires, ..before.clone() };
    before.expires = Some(before.expires.map_or(grace_ends, |expires| expires.min(grace_ends)));
    issue(keys, form, (record, Some((digest, before))), now)
}

/// Makes the key of a record, and changes the one that it takes the place of with it.
fn issue(
    keys: &Keys,
    Form { prefix, mut notes }: Form,
    (record, before): (KeyRecord, Option<(Digest, KeyRecord)>),
    now: UtcMillis,
) -> Result<Answer, Refusal> {
    if keys.count().map_err(Refusal::failed)? >= KEYS_MAX {
        let error = format!("there are {KEYS_MAX} keys: revoke those that nobody needs");
        return Err(Refusal::failed(error));
    }
    let (key, digest) = unused(keys, &prefix)?;
    let id = KeyId::of(&digest);
    let before = before.map(|(digest, before)| {
        let end = before.end().map_or_else(String::new, UtcMillis::display);
        notes.push(format!("{} holds until {end}", KeyId::of(&digest)));
        (digest, KeyRecord { replaced_by: Some(id), ..before })
    });
    let made = (digest, record);
    keys.put([&made].into_iter().chain(&before)).map_err(Refusal::failed)?;
    let view = KeyView::new(id, made.1, now);
    Ok(Answer::NewKey(Box::new(NewKey { key: ShownOnce(key), view, notes })))
}

/// A key whose name no other key has.
fn unused(keys: &Keys, prefix: &str) -> Result<(String, Digest), Refusal> {
    loop {
        let key = api_key::generate(prefix).map_err(Refusal::failed)?;
        let digest = digest_of(key.as_bytes());
        if keys.named(KeyId::of(&digest)).map_err(Refusal::failed)?.is_none() {
            return Ok((key, digest));
        }
    }
}

fn revoke(keys: &Keys, revoke: &RevokeKeys, now: UtcMillis) -> Result<Answer, Refusal> {
    if revoke.ids.is_empty() || revoke.ids.len() > REVOKE_MAX_KEYS {
        let error = format!("name 1 to {REVOKE_MAX_KEYS} keys, each by its id");
        return Err(Refusal::usage(error));
    }
    let (mut changed, mut done) = (Vec::new(), Done::default());
    for id in &revoke.ids {
        let (digest, record) = named(keys, *id)?;
        if record.revoked.is_some() {
            done.notes.push(format!("{id} was revoked before"));
            continue;
        }
        done.done.push(format!("{id} of {}: revoked", record.consumer));
        changed.push((digest, KeyRecord { revoked: Some(now), ..record }));
    }
    keys.put(&changed).map_err(Refusal::failed)?;
    Ok(Answer::Done(done))
}

fn list(keys: &Keys, query: &KeyQuery, now: UtcMillis) -> Result<Answer, Refusal> {
    let limit = query.limit.min(PAGE_MAX_KEYS);
    let page = keys.page(query.consumer.as_deref(), query.after.as_ref(), limit);
    let page = page.map_err(Refusal::failed)?;
    let is_full = page.len() == limit;
    let last = page.last().map(|(id, record)| (record.consumer.clone(), *id));
    let keys = page.into_iter().map(|(id, record)| KeyView::new(id, record, now)).collect();
    Ok(Answer::Keys { keys, next: last.filter(|_| is_full) })
}

fn named(keys: &Keys, id: KeyId) -> Result<(Digest, KeyRecord), Refusal> {
    let found = keys.named(id).map_err(Refusal::failed)?;
    found.ok_or_else(|| {
        Refusal::failed(format!("there is no key {id}: `gateway keys list` shows those there are"))
    })
}

fn end(option: &str, for_ms: u64, now: UtcMillis) -> Result<UtcMillis, Refusal> {
    let time = Duration::from_millis(for_ms);
    if time > LIFE_MAX {
        return Err(Refusal::usage(format!("{option}: ten years are the most")));
    }
    Ok(now.after(time))
}

/// What a header field can list, and the configuration name.
fn is_name(what: &str, text: &str) -> Result<(), Refusal> {
    match text::is_name(text) {
        true => Ok(()),
        false => Err(Refusal::usage(format!(
            "`{}` is no name of a {what}: write 1 to {} letters, digits and signs, without spaces, \
             commas, semicolons, quotes and backslashes",
            text::excerpt(text, 40),
            text::NAME_MAX_BYTES,
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::store::keys::KeyState;

    const NOW: UtcMillis = UtcMillis(1_800_000_000_000);
    const HOUR_MS: u64 = 3_600_000;

    fn made(answer: Result<Answer, Refusal>) -> (String, KeyView, Vec<String>) {
        match answer.unwrap() {
            Answer::NewKey(new) => (new.key.0, new.view, new.notes),
            other => panic!("{other:?}"),
        }
    }

    fn new_key(keys: &Keys, for_ms: Option<u64>) -> (String, KeyView, Vec<String>) {
        let create = CreateKey { consumer: "acme".to_owned(), for_ms, ..CreateKey::default() };
        made(create_in(keys, create))
    }

    fn create_in(keys: &Keys, create: CreateKey) -> Result<Answer, Refusal> {
        super::create(keys, create, form(), NOW)
    }

    fn form() -> Form {
        Form { prefix: api_key::PREFIX.to_owned(), notes: Vec::new() }
    }

    fn rotation(id: KeyId) -> RotateKey {
        RotateKey { auth: None, id, grace_ms: HOUR_MS, for_ms: None }
    }

    fn state(keys: &Keys, key: &str, after_ms: u64) -> KeyState {
        let record = keys.find(&digest_of(key.as_bytes())).unwrap().unwrap();
        record.state(UtcMillis(NOW.0 + after_ms))
    }

    #[test]
    fn both_keys_hold_for_the_time_of_grace_and_the_new_one_as_long_as_the_old_was_made_for() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path()).unwrap();
        let (old, view, _) = new_key(&keys, Some(3 * HOUR_MS));
        let later = UtcMillis(NOW.0 + HOUR_MS);
        let (new, new_view, notes) = made(rotate(&keys, &rotation(view.id), form(), later));
        assert_ne!(old, new);
        assert_eq!(new_view.until_utc_ms, Some(UtcMillis(NOW.0 + 4 * HOUR_MS)));
        assert!(notes[0].contains("holds until"), "{notes:?}");
        for (after, both) in [
            (2 * HOUR_MS - 1, [KeyState::Retiring, KeyState::Active]),
            (2 * HOUR_MS, [KeyState::Expired, KeyState::Active]),
            (4 * HOUR_MS, [KeyState::Expired, KeyState::Expired]),
        ] {
            assert_eq!([&old, &new].map(|key| state(&keys, key, after)), both, "{after}");
        }
        let again = rotate(&keys, &rotation(view.id), form(), later).unwrap_err();
        assert!(again.error.contains(&new_view.id.to_string()), "{again:?}");
        let over =
            rotate(&keys, &rotation(view.id), form(), UtcMillis(NOW.0 + 5 * HOUR_MS)).unwrap_err();
        assert!(over.error.contains("is expired"), "{over:?}");
    }

    #[test]
    fn the_form_of_a_key_is_that_of_its_authenticator() {
        let config = |auth: &str| {
            let text = format!("listen: [{{address: 127.0.0.1:80}}]\nauth: {auth}");
            config::parse("a.yaml", &text).unwrap()
        };
        let none = config("{}");
        assert!(Form::of(&none, None).unwrap().notes[0].contains("nobody asks for keys"));
        assert!(Form::of(&none, Some("a")).unwrap_err().error.contains("no authenticator `a`"));
        let same = config("{a: {api_key: {prefix: acme}}, b: {api_key: {prefix: acme}}}");
        assert_eq!(Form::of(&same, None).unwrap().prefix, "acme");
        let other = config("{a: {api_key: {}}, b: {api_key: {prefix: acme}}}");
        assert!(Form::of(&other, None).unwrap_err().error.contains("--auth, one of a, b"));
        assert_eq!(Form::of(&other, Some("b")).unwrap().prefix, "acme");
    }

    #[test]
    fn grace_makes_no_key_last_longer() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path()).unwrap();
        let (old, view, _) = new_key(&keys, Some(HOUR_MS / 2));
        rotate(&keys, &rotation(view.id), form(), NOW).unwrap();
        assert_eq!(state(&keys, &old, HOUR_MS / 2), KeyState::Expired);
    }

    #[test]
    fn all_are_revoked_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path()).unwrap();
        let (one, view, _) = new_key(&keys, None);
        let mut ids = vec![view.id, KeyId::of(&[0; 32])];
        let refusal = revoke(&keys, &RevokeKeys { auth: None, ids: ids.clone() }, NOW).unwrap_err();
        assert!(refusal.error.contains("no key 0000000000000000"), "{refusal:?}");
        assert_eq!(state(&keys, &one, 0), KeyState::Active);
        ids.pop();
        revoke(&keys, &RevokeKeys { auth: None, ids: ids.clone() }, NOW).unwrap();
        assert_eq!(state(&keys, &one, 0), KeyState::Revoked);
        let Answer::Done(done) = revoke(&keys, &RevokeKeys { auth: None, ids }, NOW).unwrap()
        else {
            panic!("no answer");
        };
        assert!(done.done.is_empty() && done.notes[0].contains("before"), "{done:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::open(folder.path()).unwrap();
        let good = CreateKey { consumer: "acme".to_owned(), ..CreateKey::default() };
        let cases = [
            (CreateKey { consumer: "a b".to_owned(), ..good.clone() }, "name of a consumer"),
            (CreateKey { plan: Some(String::new()), ..good.clone() }, "name of a plan"),
            (CreateKey { scopes: vec!["a,b".to_owned()], ..good.clone() }, "name of a scope"),
            (CreateKey { label: "a\nb".to_owned(), ..good.clone() }, "one line"),
            (CreateKey { for_ms: Some(u64::MAX), ..good.clone() }, "ten years"),
            (CreateKey { scopes: vec!["a".to_owned(); 65], ..good }, "at most 64"),
        ];
        for (create, complaint) in cases {
            let refusal = create_in(&keys, create).unwrap_err();
            assert!(refusal.usage && refusal.error.contains(complaint), "{refusal:?}");
        }
        assert_eq!(keys.count().unwrap(), 0);
    }
}
