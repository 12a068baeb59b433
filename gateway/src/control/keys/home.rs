//! Where the keys are that commands change: in the embedded store, or in Redis, where several gateways change them. A
//! change there is written only if nobody else has changed the key meanwhile.

use crate::admin::api::Refusal;
use crate::admin::keys::KeyQuery;
use crate::base::time::UtcMillis;
use crate::shared::Unavailable;
use crate::shared::registry::{Cursor, Registry as Shared};
use crate::store::keys::{
    Digest, KEPT_AFTER_END, KEYS_MAX, KeyId, KeyPlace, KeyRecord, Keys, Registry,
};

/// Pages of Redis that one page of an answer may take: most keys may be of other consumers.
const SCANS_MAX: usize = 10;

/// Where keys are.
#[derive(Clone, Debug)]
pub(super) enum Home {
    /// Of this gateway alone.
    Embedded(Registry),
    /// Of all that share a Redis.
    Redis(Shared),
}

/// A key to be written: as it was, and as it will be.
pub(super) struct Write {
    pub(super) digest: Digest,
    pub(super) before: Option<KeyRecord>,
    pub(super) after: KeyRecord,
}

/// Keys, and where the next of them are.
pub(super) type Page = (Vec<(KeyId, KeyRecord)>, Option<String>);

impl Home {
    /// The key of this name.
    pub(super) async fn named(&self, id: KeyId) -> Result<Option<(Digest, KeyRecord)>, Refusal> {
        match self {
            Self::Embedded(registry) => open(registry)?.named(id).map_err(Refusal::failed),
            Self::Redis(shared) => {
                let found = shared.beginning(id.bytes()).await.map_err(out_of_reach)?;
                found.map(|(digest, record)| Ok((digest, read(&digest, &record)?))).transpose()
            }
        }
    }

    /// Whether there is room for another key.
    pub(super) fn has_room(&self) -> Result<bool, Refusal> {
        match self {
            Self::Embedded(registry) => {
                Ok(open(registry)?.count().map_err(Refusal::failed)? < KEYS_MAX)
            }
            Self::Redis(_) => Ok(true),
        }
    }

    /// Writes keys: all or none in the embedded store; one after the other in Redis, where a command that failed may be
    /// given again.
    pub(super) async fn write(&self, writes: Vec<Write>) -> Result<(), Refusal> {
        match self {
            Self::Embedded(registry) => {
                let keys: Vec<_> = writes.into_iter().map(|one| (one.digest, one.after)).collect();
                open(registry)?.put(&keys).map_err(Refusal::failed)
            }
            Self::Redis(shared) => {
                for Write { digest, before, after } in writes {
                    let before = before.as_ref().map(text).transpose()?;
                    let after = text(&after)?;
                    let done = shared.exchange(&digest, before.as_deref(), Some(&after)).await;
                    if !done.map_err(out_of_reach)? {
                        return Err(Refusal::failed(format!(
                            "another gateway has changed key {} at the same time: look at it with \
                             `gateway keys list` and try again",
                            KeyId::of(&digest)
                        )));
                    }
                }
                Ok(())
            }
        }
    }

    /// A page of keys: by consumer in the embedded store, in no order in Redis.
    pub(super) async fn page(
        &self,
        query: &KeyQuery,
        limit: usize,
        now: UtcMillis,
    ) -> Result<Page, Refusal> {
        match self {
            Self::Embedded(registry) => page(open(registry)?, query, limit),
            Self::Redis(shared) => scan(shared, query, limit, now).await,
        }
    }
}

/// A page of the embedded store.
pub(super) fn page(keys: &Keys, query: &KeyQuery, limit: usize) -> Result<Page, Refusal> {
    let after = query.after.as_deref().map(place).transpose()?;
    let page = keys.page(query.consumer.as_deref(), after.as_ref(), limit);
    let page = page.map_err(Refusal::failed)?;
    let last = page.last().filter(|_| page.len() == limit);
    let next = last.map(|(id, record)| format!("{} {id}", record.consumer));
    Ok((page, next))
}

/// A page of Redis. Keys that ended long ago are forgotten where they are met.
async fn scan(
    shared: &Shared,
    query: &KeyQuery,
    limit: usize,
    now: UtcMillis,
) -> Result<Page, Refusal> {
    let mut cursor = match &query.after {
        Some(after) => after.parse::<Cursor>().map_err(|()| no_place(after))?,
        None => Cursor::default(),
    };
    let mut found = Vec::new();
    for _ in 0..SCANS_MAX {
        let left = limit.saturating_sub(found.len());
        let page = shared.page(cursor, left).await.map_err(out_of_reach)?;
        for (digest, bytes) in page.records {
            let record = read(&digest, &bytes)?;
            if record.end().is_some_and(|end| end.after(KEPT_AFTER_END) < now) {
                shared.exchange(&digest, Some(&bytes), None).await.map_err(out_of_reach)?;
            } else if query.consumer.as_ref().is_none_or(|consumer| *consumer == record.consumer) {
                found.push((KeyId::of(&digest), record));
            }
        }
        let Some(next) = page.next else { return Ok((found, None)) };
        cursor = next;
        if found.len() >= limit {
            break;
        }
    }
    Ok((found, Some(cursor.to_string())))
}

fn open(registry: &Registry) -> Result<&Keys, Refusal> {
    registry.open().map_err(Refusal::failed)
}

fn place(after: &str) -> Result<KeyPlace, Refusal> {
    let place = after
        .rsplit_once(' ')
        .and_then(|(consumer, id)| Some((consumer.to_owned(), id.parse().ok()?)));
    place.ok_or_else(|| no_place(after))
}

fn no_place(after: &str) -> Refusal {
    Refusal::usage(format!("`{}` is no place in a list of keys", after.escape_debug()))
}

fn read(digest: &Digest, record: &[u8]) -> Result<KeyRecord, Refusal> {
    serde_json::from_slice(record).map_err(|error| {
        let id = KeyId::of(digest);
        Refusal::failed(format!("key {id} in Redis cannot be read ({error})"))
    })
}

fn text(record: &KeyRecord) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(record).map_err(Refusal::failed)
}

fn out_of_reach(error: Unavailable) -> Refusal {
    Refusal::failed(format!(
        "the keys are in Redis, which does not answer ({}): `gateway status` shows it; it is not \
         known whether anything was changed, try again",
        error.name()
    ))
}
