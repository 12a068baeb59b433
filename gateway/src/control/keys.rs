//! API keys as commands change them: whose they are, how long they hold, and what takes the place of what. What was
//! answered is on the disk.

use std::time::Duration;

use tokio::sync::oneshot;

use super::audit;
use crate::admin::api::{Answer, Done, Refusal};
use crate::admin::keys::{
    CreateKey, KeyQuery, KeyRequest, KeyView, NewKey, PAGE_MAX_KEYS, REVOKE_MAX_KEYS, RevokeKeys,
    RotateKey, ShownOnce,
};
use crate::auth::{Authenticators, digest_of};
use crate::base::time::{BootTime, Now, UtcMillis, utc};
use crate::base::{api_key, text};
use crate::config::{AuthKind, Config, KeyRegistry};
use crate::observe::audit::Trail;
use crate::shared::Redis;
use crate::store::keys::{Digest, KEYS_MAX, KeyId, KeyRecord, Keys, Registry};

mod home;

use home::{Home, Write};

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

    /// Begins to carry out a command, and leaves it to a task of its own: Redis may be slow to answer.
    pub(super) fn begin(
        &self,
        request: KeyRequest,
        (config, redis): (&Config, Option<&Redis>),
        (trail, uid, reply): (&Trail, u32, oneshot::Sender<Result<Answer, Refusal>>),
    ) {
        let (command, trail) = (request.changes().then(|| request.to_string()), trail.clone());
        let meant = Meant::of(config, request.auth());
        let home = meant.and_then(|meant| Ok((self.home(&meant, redis)?, meant)));
        tokio::task::spawn_local(async move {
            let answer = match home {
                Ok((home, meant)) => answer(&home, meant, request, utc()).await,
                Err(refusal) => Err(refusal),
            };
            if let Some(command) = command {
                audit::command(&trail, uid, &command, &answer);
            }
            // Whoever asked may have gone; what was done stays done.
            drop(reply.send(answer));
        });
    }

    fn home(&self, meant: &Meant, redis: Option<&Redis>) -> Result<Home, Refusal> {
        match meant.registry {
            KeyRegistry::Embedded => Ok(Home::Embedded(self.registry.clone())),
            KeyRegistry::Redis => {
                let redis = redis.ok_or_else(|| Refusal::failed("there is no `state.redis`"))?;
                Ok(Home::Redis(redis.registry()))
            }
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

async fn answer(
    home: &Home,
    meant: Meant,
    request: KeyRequest,
    now: UtcMillis,
) -> Result<Answer, Refusal> {
    match request {
        KeyRequest::Create(asked) => {
            let form = meant.form()?.of_plan(asked.plan.as_deref(), &meant.plans);
            create(home, asked, form, now).await
        }
        KeyRequest::Rotate(asked) => rotate(home, &asked, meant.form()?, now).await,
        KeyRequest::Revoke(asked) => revoke(home, &asked, now).await,
        KeyRequest::List(query) => list(home, &query, now).await,
    }
}

/// Answers while no gateway runs; `None` where that takes a running one, or where there are no keys.
pub(super) fn offline(
    config: &Config,
    request: &KeyRequest,
    now: UtcMillis,
) -> Option<Result<Answer, Refusal>> {
    if !Keys::exist(&config.state.dir) {
        return None;
    }
    if matches!(request, KeyRequest::Create(_) | KeyRequest::Rotate(_)) {
        return None;
    }
    let meant = match Meant::of(config, request.auth()) {
        Ok(meant) if meant.registry == KeyRegistry::Embedded => meant,
        Ok(_) => return None,
        Err(refusal) => return Some(Err(refusal)),
    };
    let home = Home::Embedded(Registry::at(&config.state.dir));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(Refusal::failed);
    Some(runtime.and_then(|runtime| runtime.block_on(answer(&home, meant, request.clone(), now))))
}

/// The authenticators whose keys a command is about.
struct Meant {
    names: Vec<String>,
    prefixes: Vec<String>,
    registry: KeyRegistry,
    plans: Vec<String>,
}

/// What a new key looks like, and what to know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Form {
    prefix: String,
    notes: Vec<String>,
}

impl Meant {
    /// The one of this name; all of them if none is named.
    fn of(config: &Config, auth: Option<&str>) -> Result<Self, Refusal> {
        let kinds = config.auth.iter().filter_map(|one| match &one.kind {
            AuthKind::ApiKey(api_key) => Some((&one.name, api_key)),
            _ => None,
        });
        let named: Vec<_> =
            kinds.filter(|(name, _)| auth.is_none_or(|auth| auth == *name)).collect();
        if let Some(auth) = auth.filter(|_| named.is_empty()) {
            return Err(Refusal::usage(format!(
                "the configuration has no authenticator `{}` with `api_key`",
                text::excerpt(auth, 40)
            )));
        }
        let registry = named.first().map_or(KeyRegistry::Embedded, |(_, one)| one.registry);
        let plans = config.limited.plans.iter().map(|plan| plan.name.clone()).collect();
        let mut meant = Self { names: Vec::new(), prefixes: Vec::new(), registry, plans };
        for (name, one) in &named {
            meant.names.push((*name).clone());
            if !meant.prefixes.contains(&one.prefix) {
                meant.prefixes.push(one.prefix.clone());
            }
        }
        match named.iter().all(|(_, one)| one.registry == registry) {
            true => Ok(meant),
            false => Err(meant.several("there are several registries of keys")),
        }
    }

    fn form(&self) -> Result<Form, Refusal> {
        match self.prefixes.as_slice() {
            [] => {
                let note = "the configuration has no authenticator with `api_key` yet, so nobody \
                            asks for keys";
                Ok(Form { prefix: api_key::PREFIX.to_owned(), notes: vec![note.to_owned()] })
            }
            [prefix] => Ok(Form { prefix: prefix.clone(), notes: Vec::new() }),
            _ => Err(self.several("keys of several forms are made here")),
        }
    }

    fn several(&self, what: &str) -> Refusal {
        let names = self.names.join(", ");
        Refusal::usage(format!("{what}: say which with --auth, one of {names}"))
    }
}

impl Form {
    /// Says so where a key would have a plan that is not there.
    fn of_plan(mut self, plan: Option<&str>, known: &[String]) -> Self {
        if let Some(plan) = plan.filter(|plan| !known.iter().any(|known| known == plan)) {
            self.notes.push(format!(
                "the configuration has no plan `{}` yet, so the default plan goes for this key",
                text::excerpt(plan, 40)
            ));
        }
        self
    }
}

async fn create(
    home: &Home,
    create: CreateKey,
    form: Form,
    now: UtcMillis,
) -> Result<Answer, Refusal> {
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
    issue(home, form, (record, None), now).await
}

async fn rotate(
    home: &Home,
    rotate: &RotateKey,
    form: Form,
    now: UtcMillis,
) -> Result<Answer, Refusal> {
    let (digest, before) = named(home, rotate.id).await?;
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
    let expires = before.expires.map_or(grace_ends, |expires| expires.min(grace_ends));
    let after = KeyRecord { expires: Some(expires), ..before.clone() };
    issue(home, form, (record, Some(Write { digest, before: Some(before), after })), now).await
}

/// Makes the key of a record, and changes the one that it takes the place of with it.
async fn issue(
    home: &Home,
    Form { prefix, mut notes }: Form,
    (record, before): (KeyRecord, Option<Write>),
    now: UtcMillis,
) -> Result<Answer, Refusal> {
    if !home.has_room()? {
        let error = format!("there are {KEYS_MAX} keys: revoke those that nobody needs");
        return Err(Refusal::failed(error));
    }
    let (key, digest) = unused(home, &prefix).await?;
    let id = KeyId::of(&digest);
    let mut writes = vec![Write { digest, before: None, after: record.clone() }];
    if let Some(mut before) = before {
        let end = before.after.end().map_or_else(String::new, UtcMillis::display);
        notes.push(format!("{} holds until {end}", KeyId::of(&before.digest)));
        before.after.replaced_by = Some(id);
        // First, so that of two who rotate one key at a time one is refused.
        writes.insert(0, before);
    }
    home.write(writes).await?;
    let view = KeyView::new(id, record, now);
    Ok(Answer::NewKey(Box::new(NewKey { key: ShownOnce(key), view, notes })))
}

/// A key whose name no other key has.
async fn unused(home: &Home, prefix: &str) -> Result<(String, Digest), Refusal> {
    loop {
        let key = api_key::generate(prefix).map_err(Refusal::failed)?;
        let digest = digest_of(key.as_bytes());
        if home.named(KeyId::of(&digest)).await?.is_none() {
            return Ok((key, digest));
        }
    }
}

async fn revoke(home: &Home, revoke: &RevokeKeys, now: UtcMillis) -> Result<Answer, Refusal> {
    if revoke.ids.is_empty() || revoke.ids.len() > REVOKE_MAX_KEYS {
        let error = format!("name 1 to {REVOKE_MAX_KEYS} keys, each by its id");
        return Err(Refusal::usage(error));
    }
    let (mut writes, mut done) = (Vec::new(), Done::default());
    for id in &revoke.ids {
        let (digest, record) = named(home, *id).await?;
        if record.revoked.is_some() {
            done.notes.push(format!("{id} was revoked before"));
            continue;
        }
        done.done.push(format!("{id} of {}: revoked", record.consumer));
        let after = KeyRecord { revoked: Some(now), ..record.clone() };
        writes.push(Write { digest, before: Some(record), after });
    }
    home.write(writes).await?;
    Ok(Answer::Done(done))
}

async fn list(home: &Home, query: &KeyQuery, now: UtcMillis) -> Result<Answer, Refusal> {
    let limit = query.limit.min(PAGE_MAX_KEYS);
    let (page, next) = home.page(query, limit, now).await?;
    let keys = page.into_iter().map(|(id, record)| KeyView::new(id, record, now)).collect();
    Ok(Answer::Keys { keys, next })
}

async fn named(home: &Home, id: KeyId) -> Result<(Digest, KeyRecord), Refusal> {
    home.named(id).await?.ok_or_else(|| {
        Refusal::failed(format!("there is no key {id}: `gateway keys list` shows those there are"))
    })
}

fn end(option: &str, for_ms: u64, now: UtcMillis) -> Result<UtcMillis, Refusal> {
    let time = Duration::from_millis(for_ms);
    if time > LIFE_MAX {
        return Err(Refusal::usage(format!("{option}: ten years are the most")));
    }
    if time.is_zero() && option == "--for" {
        return Err(Refusal::usage("--for: a key that ends at once opens nothing".to_owned()));
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

    fn new_key(keys: &Home, for_ms: Option<u64>) -> (String, KeyView, Vec<String>) {
        let create = CreateKey { consumer: "acme".to_owned(), for_ms, ..CreateKey::default() };
        made(create_in(keys, create))
    }

    fn create_in(keys: &Home, create: CreateKey) -> Result<Answer, Refusal> {
        wait(super::create(keys, create, form(), NOW))
    }

    fn wait<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    fn home(folder: &tempfile::TempDir) -> Home {
        Home::Embedded(Registry::at(folder.path()))
    }

    fn rotate(keys: &Home, id: KeyId, now: UtcMillis) -> Result<Answer, Refusal> {
        wait(super::rotate(keys, &rotation(id), form(), now))
    }

    fn revoke(keys: &Home, ids: &[KeyId]) -> Result<Answer, Refusal> {
        wait(super::revoke(keys, &RevokeKeys { auth: None, ids: ids.to_vec() }, NOW))
    }

    fn form() -> Form {
        Form { prefix: api_key::PREFIX.to_owned(), notes: Vec::new() }
    }

    fn rotation(id: KeyId) -> RotateKey {
        RotateKey { auth: None, id, grace_ms: HOUR_MS, for_ms: None }
    }

    fn state(keys: &Home, key: &str, after_ms: u64) -> KeyState {
        let id = KeyId::of(&digest_of(key.as_bytes()));
        let (_, record) = wait(keys.named(id)).unwrap().unwrap();
        record.state(UtcMillis(NOW.0 + after_ms))
    }

    #[test]
    fn both_keys_hold_for_the_time_of_grace_and_the_new_one_as_long_as_the_old_was_made_for() {
        let folder = tempfile::tempdir().unwrap();
        let keys = home(&folder);
        let (old, view, _) = new_key(&keys, Some(3 * HOUR_MS));
        let later = UtcMillis(NOW.0 + HOUR_MS);
        let (new, new_view, notes) = made(rotate(&keys, view.id, later));
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
        let again = rotate(&keys, view.id, later).unwrap_err();
        assert!(again.error.contains(&new_view.id.to_string()), "{again:?}");
        let over = rotate(&keys, view.id, UtcMillis(NOW.0 + 5 * HOUR_MS)).unwrap_err();
        assert!(over.error.contains("is expired"), "{over:?}");
    }

    #[test]
    fn the_form_of_a_key_is_that_of_its_authenticator() {
        let config = |auth: &str| {
            let text = format!("listen: [{{address: 127.0.0.1:80}}]\nauth: {auth}");
            config::parse("a.yaml", &text).unwrap()
        };
        let of = |config: &Config, auth: Option<&str>| Meant::of(config, auth)?.form();
        let none = config("{}");
        assert!(of(&none, None).unwrap().notes[0].contains("nobody asks for keys"));
        assert!(of(&none, Some("a")).unwrap_err().error.contains("no authenticator `a`"));
        let same = config("{a: {api_key: {prefix: acme}}, b: {api_key: {prefix: acme}}}");
        assert_eq!(of(&same, None).unwrap().prefix, "acme");
        let other = config("{a: {api_key: {}}, b: {api_key: {prefix: acme}}}");
        assert!(of(&other, None).unwrap_err().error.contains("--auth, one of a, b"));
        assert_eq!(of(&other, Some("b")).unwrap().prefix, "acme");
    }

    #[test]
    fn grace_makes_no_key_last_longer() {
        let folder = tempfile::tempdir().unwrap();
        let keys = home(&folder);
        let (old, view, _) = new_key(&keys, Some(HOUR_MS / 2));
        rotate(&keys, view.id, NOW).unwrap();
        assert_eq!(state(&keys, &old, HOUR_MS / 2), KeyState::Expired);
    }

    #[test]
    fn all_are_revoked_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let keys = home(&folder);
        let (one, view, _) = new_key(&keys, None);
        let mut ids = vec![view.id, KeyId::of(&[0; 32])];
        let refusal = revoke(&keys, &ids).unwrap_err();
        assert!(refusal.error.contains("no key 0000000000000000"), "{refusal:?}");
        assert_eq!(state(&keys, &one, 0), KeyState::Active);
        ids.pop();
        revoke(&keys, &ids).unwrap();
        assert_eq!(state(&keys, &one, 0), KeyState::Revoked);
        let Answer::Done(done) = revoke(&keys, &ids).unwrap() else {
            panic!("no answer");
        };
        assert!(done.done.is_empty() && done.notes[0].contains("before"), "{done:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let keys = home(&folder);
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
        let none = wait(keys.page(&KeyQuery::default(), 9, NOW)).unwrap();
        assert_eq!(none, (Vec::new(), None));
    }
}
