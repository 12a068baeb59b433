//! Changes that are put back unless somebody confirms them in time: whoever has locked themselves out cannot. The
//! tables know both states and the moment between them, so it works also if no gateway is left to do it.

use std::sync::Arc;
use std::time::Duration;

use gateway_common::rule::Origin;

use super::Policy;
use crate::admin::api::{Done, Refusal};
use crate::base::prefix::display;
use crate::base::time::Now;
use crate::rules::list::{Before, List};
use crate::rules::{Change, Key, Pending, RuleRef, Until};

/// What is said of a rule or list that waits to be confirmed.
pub(in crate::control) const UNCONFIRMED: &str = "waits for `gateway confirm`";
/// Shortest and longest time to confirm a change.
const WITHIN: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

impl Policy {
    /// A change as it waits to be confirmed; one that does not wait settles what did.
    pub(super) fn confirmed(
        &self,
        mut change: Change,
        within_ms: Option<u64>,
        now: Now,
        done: &mut Done,
    ) -> Result<Change, Refusal> {
        let keys: Vec<Key> = change.keys().collect();
        let Some(deadline) = deadline(within_ms, now, done)? else {
            change.settle = keys;
            return Ok(change);
        };
        change.pend = keys
            .into_iter()
            .map(|key| {
                // What was confirmed last comes back, however many changes there were since.
                let then = match self.rules.find_pending(&key) {
                    Some(pending) => pending.then.clone(),
                    None => self.rules.find(key.0, key.1).cloned(),
                };
                (key, Pending { made: now.utc, deadline, then })
            })
            .collect();
        Ok(change)
    }

    /// A list as it waits to be confirmed.
    pub(super) fn confirmed_list(
        &self,
        list: &mut List,
        within_ms: Option<u64>,
        now: Now,
        done: &mut Done,
    ) -> Result<(), Refusal> {
        let Some(deadline) = deadline(within_ms, now, done)? else { return Ok(()) };
        let held = self.rules.list(&list.name);
        if let Some(held) = held.filter(|held| held.dry_run != list.dry_run) {
            let is = if held.dry_run { "only counts" } else { "drops" };
            return Err(Refusal::failed(format!(
                "the list {} {is} now, and what cannot be put back cannot wait to be confirmed: \
                 leave out --confirm-within, or choose another name",
                held.name
            )));
        }
        // What was confirmed last comes back, however many changes there were since.
        let was = held.unwrap_or(&*list);
        list.before = Some(match &was.before {
            Some(before) => Before { deadline, replaced: now.utc, ..before.clone() },
            None => Before {
                deadline,
                replaced: now.utc,
                source: was.source.clone(),
                reason: was.reason.clone(),
                created: was.created,
                entries: held.map(|held| Arc::clone(&held.entries)).unwrap_or_default(),
            },
        });
        Ok(())
    }

    /// Keeps everything that waits to be confirmed.
    pub fn confirm(&mut self, now: Now) -> Result<Done, Refusal> {
        let mut done = Done::default();
        let settle: Vec<Key> = self.rules.pending().map(|(key, _)| *key).collect();
        for (prefix, origin) in &settle {
            let state = match self.rules.find(*prefix, *origin) {
                Some(rule) => rule.action.name(),
                None => "removed",
            };
            let forced = if *origin == Origin::Forced { " (forced)" } else { "" };
            done.done.push(format!("confirmed: {} {state}{forced}", display(prefix)));
        }
        self.change(&Change { settle, ..Change::default() }, now).map_err(Refusal::failed)?;
        let lists = self.rules.lists().filter(|list| list.before.is_some());
        let lists: Vec<String> = lists.map(|list| list.name.clone()).collect();
        for name in lists {
            self.confirm_list(&name, now).map_err(Refusal::failed)?;
            done.done.push(format!("confirmed: list {name}"));
        }
        if done.done.is_empty() {
            done.notes.push("nothing waits to be confirmed".to_owned());
        }
        Ok(done)
    }

    /// Whether a rule waits to be confirmed.
    pub fn waits(&self, rule: &RuleRef<'_>) -> bool {
        match rule.list {
            Some(name) => self
                .rules
                .list(name)
                .and_then(|list| list.before.as_ref())
                .is_some_and(|before| before.deadline == rule.until),
            None => self.rules.find_pending(&(rule.prefix, rule.origin)).is_some(),
        }
    }

    fn confirm_list(&mut self, name: &str, now: Now) -> anyhow::Result<()> {
        let Some(list) = self.rules.list(name) else { return Ok(()) };
        let list = List { before: None, ..list.clone() };
        self.replace_list(name, (!list.entries.is_empty()).then_some(list), now)?;
        Ok(())
    }

    /// Lets the store know of a list that went back to the version before.
    pub(super) fn settle_list(&mut self, name: &str, now: Now) -> anyhow::Result<()> {
        match self.rules.list(name) {
            Some(list) if !list.entries.is_empty() => self.store.put_list(list)?,
            _ => drop(self.replace_list(name, None, now)?),
        }
        Ok(())
    }
}

fn deadline(within_ms: Option<u64>, now: Now, done: &mut Done) -> Result<Option<Until>, Refusal> {
    let Some(within) = within_ms.map(Duration::from_millis) else { return Ok(None) };
    if !WITHIN.contains(&within) {
        return Err(Refusal::usage("--confirm-within is out of bounds: 1s to 24h"));
    }
    let deadline = Until::after(now, Some(within));
    let at = deadline.utc.map(|utc| utc.display()).unwrap_or_default();
    done.notes.push(format!("put back at {at} unless `gateway confirm` comes before"));
    Ok(Some(deadline))
}
