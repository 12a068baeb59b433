//! `gateway keys`: API keys are made, replaced, taken back and listed. A key is shown once, when it is made.

use std::io::{self, Read as _};
use std::time::Duration;

use clap::{Args, Subcommand};

use super::list::milliseconds;
use super::output::Output;
use super::place::Place;
use super::{Failure, ask, unexpected};
use crate::admin::api::{Answer, Request};
use crate::admin::keys::{CreateKey, KeyQuery, KeyRequest, KeyView, NewKey, RevokeKeys, RotateKey};
use crate::auth::digest_of;
use crate::base::api_key;
use crate::store::keys::KeyId;

/// Keys in one table for people, unless they ask for more.
const TABLE_KEYS: usize = 1000;
/// Ids and keys from the standard input.
const INPUT_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Digits of an id.
const ID_DIGITS: usize = 16;
const HEADER: [&str; 8] =
    ["id", "consumer", "state", "plan", "scopes", "created", "until", "label"];

#[derive(Debug, Subcommand)]
pub(super) enum KeysVerb {
    /// Make a key and show it, this once: only its SHA-256 is kept
    Create(CreateArgs),
    /// Make a key in the place of another; for a time of grace both hold
    Rotate(RotateArgs),
    /// Take keys back, all of them or none; they open nothing from now on
    Revoke {
        /// Ids of keys; - reads them from the standard input, one a line, and there takes whole
        /// keys too, such as one that was found in public
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Show keys by consumer; those that ended are there for another thirty days
    List {
        /// Of this consumer alone
        #[arg(long, value_name = "NAME")]
        consumer: Option<String>,
        /// Keys to show at most [default: 1000 on a terminal, else all]
        #[arg(long, value_name = "KEYS")]
        limit: Option<usize>,
        #[command(flatten)]
        registry: RegistryArgs,
    },
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Whose it is: plans and limits belong to consumers
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// Plan of this key, in the place of its consumer's
    #[arg(long, value_name = "NAME")]
    plan: Option<String>,
    /// What it may be used for: read, write, admin or names of your own; may be given several
    /// times
    #[arg(long = "scope", value_name = "NAME")]
    scopes: Vec<String>,
    /// What it is for, for whoever lists keys later
    #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    label: String,
    /// How long it holds, as 90d [default: until it is revoked]
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    /// Id of the key that is replaced
    id: String,
    /// How long both hold, as 1h, 7d; 0s ends the old one at once
    #[arg(long, value_name = "TIME", default_value = "24h")]
    #[arg(value_parser = humantime::parse_duration)]
    grace: Duration,
    /// How long the new one holds, as 90d [default: as long as the old one was made for]
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Debug, Args)]
pub(super) struct RegistryArgs {
    /// Authenticator of the configuration whose keys are meant, where there are several with
    /// prefixes or registries of their own
    #[arg(long, value_name = "NAME")]
    auth: Option<String>,
}

pub(super) fn run(place: &Place, verb: KeysVerb, output: &Output) -> Result<(), Failure> {
    match verb {
        KeysVerb::Create(arguments) => {
            let CreateArgs { consumer, plan, scopes, label, duration, registry } = arguments;
            let for_ms = duration.map(milliseconds);
            let auth = registry.auth;
            let create = CreateKey { auth, consumer, plan, scopes, label, for_ms };
            made(place, KeyRequest::Create(create), output)
        }
        KeysVerb::Rotate(RotateArgs { id, grace, duration, registry }) => {
            let (grace_ms, for_ms) = (milliseconds(grace), duration.map(milliseconds));
            let id = typed(&id)?;
            let rotate = RotateKey { auth: registry.auth, id, grace_ms, for_ms };
            made(place, KeyRequest::Rotate(rotate), output)
        }
        KeysVerb::Revoke { ids, registry } => {
            let revoke = RevokeKeys { auth: registry.auth, ids: named(&ids)? };
            match ask(place, &Request::Keys(KeyRequest::Revoke(revoke)))? {
                Answer::Done(done) => Ok(output.done(&done)?),
                _ => Err(unexpected()),
            }
        }
        KeysVerb::List { consumer, limit, registry } => {
            let query = KeyQuery { auth: registry.auth, consumer, ..KeyQuery::default() };
            list(place, query, limit, output)
        }
    }
}

fn made(place: &Place, request: KeyRequest, output: &Output) -> Result<(), Failure> {
    let Answer::NewKey(new) = ask(place, &Request::Keys(request))? else {
        return Err(unexpected());
    };
    if output.is_json() {
        return Ok(output.object(&new)?);
    }
    let NewKey { key, view, notes } = *new;
    output.line(&key.0)?;
    output.table(&HEADER, vec![row(&view)])?;
    for note in notes {
        output.line(&format!("note: {note}"))?;
    }
    Ok(output.line("note: this is the only time that the key is shown; keep it safe")?)
}

/// The ids that the command line and the standard input name. A key there becomes its id here: it goes no further.
fn named(words: &[String]) -> Result<Vec<KeyId>, Failure> {
    let mut ids = Vec::new();
    for word in words {
        if word != "-" {
            ids.push(typed(word)?);
            continue;
        }
        let mut input = String::new();
        io::stdin().lock().take(INPUT_MAX_BYTES).read_to_string(&mut input)?;
        for (number, line) in (1..).zip(input.lines().map(str::trim)) {
            let id = match line.parse() {
                Ok(id) => id,
                Err(_) if line.is_empty() => continue,
                Err(_) if api_key::has_form(line) => KeyId::of(&digest_of(line.as_bytes())),
                Err(error) => {
                    let error = format!("line {number} of the standard input: {error}");
                    return Err(Failure::Usage(error));
                }
            };
            ids.push(id);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// The id that a word of the command line is. What may be a key is not said again: errors end up in logs.
fn typed(word: &str) -> Result<KeyId, Failure> {
    word.parse().map_err(|error| {
        Failure::Usage(match api_key::has_form(word) {
            true => {
                let id = KeyId::of(&digest_of(word.as_bytes()));
                format!(
                    "this is a whole key, which others see on a command line and in its history: \
                     its id is {id}"
                )
            }
            false if word.len() > ID_DIGITS => error,
            false => format!("`{word}`: {error}"),
        })
    })
}

fn list(
    place: &Place,
    mut query: KeyQuery,
    limit: Option<usize>,
    output: &Output,
) -> Result<(), Failure> {
    let usual = if output.is_json() { usize::MAX } else { TABLE_KEYS };
    let mut left = limit.unwrap_or(usual);
    let (mut rows, mut is_all) = (Vec::new(), true);
    loop {
        query.limit = left;
        let request = Request::Keys(KeyRequest::List(query.clone()));
        let Answer::Keys { keys, next } = ask(place, &request)? else { return Err(unexpected()) };
        left -= keys.len().min(left);
        for key in keys {
            match output.is_json() {
                true => output.object(&key)?,
                false => rows.push(row(&key)),
            }
        }
        is_all &= next.is_none();
        if next.is_none() || left == 0 {
            break;
        }
        (query.after, is_all) = (next, true);
    }
    if output.is_json() {
        return Ok(());
    }
    if rows.is_empty() {
        return Ok(output.line("there are no such keys")?);
    }
    let shown = rows.len();
    output.table(&HEADER, rows)?;
    if !is_all {
        output.line(&format!("the first {shown}; more with --limit, all with --json"))?;
    }
    Ok(())
}

fn row(key: &KeyView) -> Vec<String> {
    vec![
        key.id.to_string(),
        key.consumer.clone(),
        match key.replaced_by {
            Some(by) => format!("{}, now {by}", key.state),
            None => key.state.clone(),
        },
        key.plan.clone().unwrap_or_default(),
        key.scopes.join(" "),
        key.created_utc_ms.display(),
        key.until_utc_ms.map_or_else(|| "for ever".to_owned(), |until| until.display()),
        key.label.clone(),
    ]
}
