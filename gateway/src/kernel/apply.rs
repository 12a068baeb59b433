//! Makes tables hold what the rules say: as a difference, additions first. An address goes from its old verdict to its
//! new one without a moment in between.

use ipnet::IpNet;

use super::guard::{ClearedPair, Guard};
use crate::base::time::BootTime;
use crate::rules::RuleSet;
use crate::rules::tables::{RoomError, RuleTables};

/// What tables are to hold.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// The rules.
    pub rules: &'a RuleSet,
    /// What they are held against.
    pub guard: &'a Guard,
    /// The time at which they are to hold.
    pub now: BootTime,
    /// Whether they are all that the tables may have. Where others may be in them, the filters of the tables keep every
    /// bit that those may need.
    pub complete: bool,
}

impl Wanted<'_> {
    /// The rules that a prefix is to have.
    pub fn winners(&self, prefix: IpNet) -> Option<ClearedPair> {
        self.guard.winners(self.rules, prefix, self.now)
    }
}

/// Makes the tables hold what is wanted for these prefixes, and leaves all others. What does not fit changes nothing;
/// when one finds no room, the others have been written.
pub fn apply(
    tables: &mut RuleTables,
    wanted: Wanted<'_>,
    prefixes: impl ExactSizeIterator<Item = IpNet> + Clone,
) -> Result<(), RoomError> {
    let held = tables.prefixes();
    if held.iter().any(|held| held + prefixes.len() > tables.capacity() as usize) {
        tables.check(counts_after(tables, wanted, prefixes.clone()))?;
    }
    let mut gone = Vec::new();
    let mut crowded = Vec::new();
    for prefix in prefixes {
        match wanted.winners(prefix) {
            Some(pair) => {
                // Whoever finds no room waits until the removals have made some.
                if tables.put(prefix, pair.heads()).is_err() {
                    crowded.push((prefix, pair));
                }
            }
            None => gone.push(prefix),
        }
    }
    finish(tables, wanted, gone, crowded)
}

/// Makes the tables hold exactly what is wanted.
pub fn apply_all(tables: &mut RuleTables, wanted: Wanted<'_>) -> Result<(), RoomError> {
    check(tables, wanted)?;
    let mut crowded = Vec::new();
    for prefix in wanted.rules.prefixes() {
        if let Some(pair) = wanted.winners(prefix)
            && tables.put(prefix, pair.heads()).is_err()
        {
            crowded.push((prefix, pair));
        }
    }
    let gone = tables.iter().filter(|prefix| wanted.winners(*prefix).is_none()).collect();
    finish(tables, wanted, gone, crowded)
}

/// Refuses more rules than fit.
pub fn check(tables: &RuleTables, wanted: Wanted<'_>) -> Result<(), RoomError> {
    if tables.check(wanted.rules.prefixes_max()).is_ok() {
        return Ok(());
    }
    let mut prefixes: Vec<IpNet> = wanted.rules.prefixes().collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes.retain(|prefix| wanted.winners(*prefix).is_some());
    let v4 = prefixes.iter().filter(|prefix| prefix.addr().is_ipv4()).count();
    tables.check([v4, prefixes.len() - v4])
}

fn finish(
    tables: &mut RuleTables,
    wanted: Wanted<'_>,
    gone: Vec<IpNet>,
    crowded: Vec<(IpNet, ClearedPair)>,
) -> Result<(), RoomError> {
    for prefix in gone {
        tables.remove(prefix, wanted.complete.then_some(wanted.rules));
    }
    crowded.into_iter().try_for_each(|(prefix, pair)| tables.put(prefix, pair.heads()))
}

/// How many prefixes would have rules.
fn counts_after(
    tables: &RuleTables,
    wanted: Wanted<'_>,
    prefixes: impl Iterator<Item = IpNet>,
) -> [usize; 2] {
    let [mut v4, mut v6] = tables.prefixes();
    for prefix in prefixes {
        let count = if prefix.addr().is_ipv4() { &mut v4 } else { &mut v6 };
        match (tables.has(&prefix), wanted.winners(prefix).is_some()) {
            (false, true) => *count += 1,
            (true, false) => *count = count.saturating_sub(1),
            _ => {}
        }
    }
    [v4, v6]
}
