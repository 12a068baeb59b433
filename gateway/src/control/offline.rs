//! Answers while no gateway runs: from the pins and the store, whose lock keeps a gateway from starting meanwhile. Only
//! what the programs in the kernel go on enforcing can be asked about and taken back; new rules need a gateway.

use std::path::Path;

use super::policy::Policy;
use super::sessions::Sessions;
use super::{audit, bans, keys, privileges, protect, read, views};
use crate::admin::api::{Answer, Refusal, Request};
use crate::base::folder;
use crate::base::time::Now;
use crate::config::Config;
use crate::feedback::ban::Change;
use crate::kernel::pins::Pins;
use crate::kernel::{Door, lists};
use crate::store::Store;

/// Answers as the gateway with this configuration would; `None` where that takes a running one, or where none ever ran.
pub fn answer(path: Option<&Path>, request: &Request) -> Option<Result<Answer, Refusal>> {
    let possible = matches!(
        request,
        Request::List(_)
            | Request::Lists
            | Request::Why(_)
            | Request::Remove(_)
            | Request::RemoveList(_)
            | Request::Confirm
            | Request::Keys(_)
            | Request::Bans(_)
    );
    if !possible {
        return None;
    }
    let config = match read(path) {
        Ok(config) => config,
        Err(errors) => return Some(Err(Refusal::usage(errors))),
    };
    let now = Now::read();
    let uid = rustix::process::getuid().as_raw();
    let answered = match request {
        Request::Keys(request) => {
            keys::offline(&config, request, now.utc).map(|answer| (answer, Vec::new()))
        }
        _ if !Store::exists(&config.state.dir) => None,
        _ => Some(match carry_out(&config, request, (uid, now)) {
            Ok((answer, changes)) => (answer, changes),
            Err(refusal) => (Err(refusal), Vec::new()),
        }),
    };
    let (mut answer, changes) = answered?;
    if request.changes()
        && let Err(error) = audit::offline(&config, (uid, &request.to_string()), &answer, &changes)
        && let Ok(Answer::Done(done)) = &mut answer
    {
        done.notes.push(format!("it is not in the audit trail: {error}"));
    }
    Some(answer)
}

/// What came of a request, and what happened to bans.
type Outcome = (Result<Answer, Refusal>, Vec<Change>);

fn carry_out(
    config: &Config,
    request: &Request,
    (uid, now): (u32, Now),
) -> Result<Outcome, Refusal> {
    let pins = Pins::at(&config.kernel.pins);
    let user = privileges::target(config.user.as_deref()).map_or(0, |target| target.uid);
    folder::check(&config.state.dir, user).map_err(Refusal::failed)?;
    let store = Store::open(&config.state.dir).map_err(Refusal::failed)?;
    let door = Door::pinned(&pins).map_err(Refusal::failed)?;
    let mut sessions = Sessions::default();
    sessions.look_all(&config.kernel.management_ports);
    let protected = protect::collect(config, None, [], &sessions);
    let policy = Policy::new(config, protected, (store, lists::seats(&pins)), now);
    let mut policy = policy.map_err(Refusal::failed)?.offline(door);
    if policy.door.is_none() {
        // Nothing enforces them, and still they are what would decide.
        policy.publish(now).map_err(Refusal::failed)?;
    }
    let answer = match request {
        Request::Why(address) => {
            views::why(&policy, *address, now).map(|why| Answer::Why(Box::new(why)))
        }
        Request::Remove(remove) => policy.remove(remove, now).map(Answer::Done),
        Request::Confirm => policy.confirm(now).map(Answer::Done),
        Request::Bans(request) => {
            bans::answer(&mut policy, None, request.clone(), (uid, false, now))
        }
        Request::RemoveList(remove) => policy.remove_list(remove, now).map(Answer::Done),
        Request::List(query) => views::list(&policy, query, now),
        Request::Lists => Ok(Answer::Lists { lists: policy.list_views() }),
        _ => Err(Refusal::failed("no gateway runs")),
    };
    Ok((answer, policy.take_ban_changes()))
}
