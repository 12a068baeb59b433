//! Limits that all gateways count together: one script takes of all limits of a request or of none, by the server's
//! clock, so that neither the clocks nor the number of gateways matter.
//!
//! In a Cluster one call can only be about keys of one slot. What counts for the same caller has the same hash tag, so
//! that is one call still; limits by something else (a route, everybody) are a call each, made one after the other in
//! the order of the limits, and the first refusal ends it. What was taken before it stays taken.

use std::sync::LazyLock;
use std::time::Duration;

use redis::Value;

use super::nodes::slot_of;
use super::permit::{LEASE_US, Permit};
use super::script::Script;
use super::{Redis, Unavailable, hex};

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("count.lua")));

/// What is counted how. Numbers up to 2^53 are exact; a limit times its window in microseconds is one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// A bucket of tokens: nanoseconds that bring one, and how many fit in.
    TokenBucket {
        /// Nanoseconds that bring one token.
        interval_ns: u64,
        /// Tokens that fit in.
        burst: u64,
    },
    /// An even pace with a queue before it.
    LeakyBucket {
        /// Nanoseconds between two turns.
        interval_ns: u64,
        /// Turns ahead of time that may be given away.
        queue: u64,
    },
    /// So many in each window.
    FixedWindow {
        /// Microseconds of the window.
        window_us: u64,
        /// What may be taken.
        limit: u32,
    },
    /// So many in any window's length, about.
    SlidingWindow {
        /// Microseconds of the window.
        window_us: u64,
        /// What may be taken.
        limit: u32,
    },
    /// So many in any window's length, exactly.
    SlidingLog {
        /// Microseconds of the window.
        window_us: u64,
        /// What may be taken.
        limit: u32,
    },
    /// So many a day of UTC.
    Day {
        /// What may be taken.
        limit: u32,
    },
    /// So many a month of UTC.
    Month {
        /// What may be taken.
        limit: u32,
    },
    /// So many at once, each with a [`Permit`]; a cost is 1.
    Concurrency {
        /// How many.
        limit: u32,
    },
}

/// One limit of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Whose requests are counted together: a digest of it, the same in every gateway.
    pub whose: [u8; 16],
    /// Which limit, the same in every gateway.
    pub limit: u64,
    /// How it counts.
    pub terms: Terms,
    /// What the request takes.
    pub cost: u32,
}

/// What was taken.
#[derive(Debug)]
pub struct Taken {
    /// What each limit says; `None` for those that were not asked any more because another has no room.
    pub verdicts: Vec<Option<Verdict>>,
    /// For those of concurrency, if all limits have room: to be kept for as long as the request is under way.
    pub permit: Option<Permit>,
}

/// What a limit says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether there is room for the request.
    pub admitted: bool,
    /// What is left after it.
    pub remaining: u64,
    /// Until all of the limit is there again.
    pub reset: Duration,
    /// Of a refused one: until it would be admitted. Of an admitted one: until its turn.
    pub wait: Duration,
}

impl Redis {
    /// Takes of all `items`, if all have room. Within `state.redis.timeout`; after an error some may have been taken.
    pub async fn take(&self, items: &[Item]) -> Result<Taken, Unavailable> {
        let deadline = self.config().timeout;
        let is_held = |item: &&Item| matches!(item.terms, Terms::Concurrency { .. });
        let held: Vec<String> = items.iter().filter(is_held).map(|item| self.key(item)).collect();
        let permit = (!held.is_empty()).then(|| Permit::new(self, held));
        let name = permit.as_ref().map_or("", |permit| &permit.name);
        let asking = self.take_by_slot(items, [name, ""], deadline);
        // Several calls have no more time than one.
        let asked = tokio::time::timeout(deadline, asking).await;
        let verdicts = asked.unwrap_or(Err(Unavailable::Timeout))?;
        let all = verdicts.iter().all(|one| one.is_some_and(|verdict| verdict.admitted));
        let permit = match permit {
            Some(permit) if all => Some(permit.kept()),
            // Elsewhere than where there was no room, it may have been taken.
            Some(permit) if self.0.is_cluster() => {
                drop(permit);
                None
            }
            Some(permit) => {
                permit.unused();
                None
            }
            None => None,
        };
        Ok(Taken { verdicts, permit })
    }

    /// Tells what was given away already of buckets of tokens and quotas, room or not, and learns what all gateways
    /// together have taken. Within `state.redis.connect_timeout`, for no request waits for it.
    pub async fn report(&self, items: &[Item]) -> Result<Vec<Option<Verdict>>, Unavailable> {
        let deadline = self.config().connect_timeout;
        let asking = self.take_by_slot(items, ["", "anyway"], deadline);
        let asked = tokio::time::timeout(deadline, asking).await;
        asked.unwrap_or(Err(Unavailable::Timeout))
    }

    async fn take_by_slot(
        &self,
        items: &[Item],
        how: [&str; 2],
        deadline: Duration,
    ) -> Result<Vec<Option<Verdict>>, Unavailable> {
        let keys: Vec<String> = items.iter().map(|item| self.key(item)).collect();
        let mut verdicts = vec![None; items.len()];
        let is_cluster = self.0.is_cluster();
        let slots: Vec<u16> =
            keys.iter().map(|key| if is_cluster { slot_of(key.as_bytes()) } else { 0 }).collect();
        for (first, slot) in slots.iter().enumerate() {
            if slots.iter().take(first).any(|before| before == slot) {
                continue;
            }
            let these = || slots.iter().enumerate().filter(|(_, other)| *other == slot);
            let numbers: Vec<usize> = these().map(|(number, _)| number).collect();
            let of_slot: Vec<&Item> = numbers.iter().filter_map(|n| items.get(*n)).collect();
            let keys: Vec<&str> =
                numbers.iter().filter_map(|n| keys.get(*n)).map(String::as_str).collect();
            let mut arguments = Vec::with_capacity(2 + of_slot.len() * 4);
            arguments.extend(how.map(str::to_owned));
            of_slot.iter().for_each(|item| item.arguments(&mut arguments));
            let answer = SCRIPT.run(self, &keys, &arguments, deadline).await?;
            let said = understood(&answer, of_slot.len()).ok_or(Unavailable::Refused)?;
            let all = said.iter().all(|verdict| verdict.admitted);
            for (number, verdict) in numbers.into_iter().zip(said) {
                if let Some(place) = verdicts.get_mut(number) {
                    *place = Some(verdict);
                }
            }
            if !all {
                break;
            }
        }
        Ok(verdicts)
    }

    fn key(&self, item: &Item) -> String {
        let prefix = &self.config().prefix;
        format!("{prefix}:limit:{{{}}}:{:x}", hex(&item.whose), item.limit)
    }
}

impl Item {
    fn arguments(&self, into: &mut Vec<String>) {
        let (name, first, second) = match self.terms {
            Terms::TokenBucket { interval_ns, burst } => ("token_bucket", interval_ns, burst),
            Terms::LeakyBucket { interval_ns, queue } => ("leaky_bucket", interval_ns, queue),
            Terms::FixedWindow { window_us, limit } => ("fixed_window", window_us, limit.into()),
            Terms::SlidingWindow { window_us, limit } => {
                ("sliding_window", window_us, limit.into())
            }
            Terms::SlidingLog { window_us, limit } => ("sliding_log", window_us, limit.into()),
            Terms::Day { limit } => ("day", 0, limit.into()),
            Terms::Month { limit } => ("month", 0, limit.into()),
            Terms::Concurrency { limit } => ("concurrency", LEASE_US, limit.into()),
        };
        into.push(name.to_owned());
        into.extend([first, second, self.cost.into()].map(|number| number.to_string()));
    }
}

fn understood(answer: &Value, count: usize) -> Option<Vec<Verdict>> {
    let Value::Array(numbers) = answer else { return None };
    let number = |value: &Value| match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    let numbers: Vec<u64> = numbers.iter().map(number).collect::<Option<_>>()?;
    let verdict = |four: &[u64]| match four {
        [admitted, remaining, reset, wait] => Some(Verdict {
            admitted: *admitted == 1,
            remaining: *remaining,
            reset: Duration::from_micros(*reset),
            wait: Duration::from_micros(*wait),
        }),
        _ => None,
    };
    let verdicts: Vec<Verdict> = numbers.chunks(4).map(verdict).collect::<Option<_>>()?;
    (verdicts.len() == count).then_some(verdicts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_four_numbers_a_limit_and_nothing_else() {
        let numbers =
            |numbers: &[i64]| Value::Array(numbers.iter().map(|n| Value::Int(*n)).collect());
        let verdict = Verdict {
            admitted: true,
            remaining: 2,
            reset: Duration::from_micros(3),
            wait: Duration::ZERO,
        };
        assert_eq!(understood(&numbers(&[1, 2, 3, 0]), 1), Some(vec![verdict]));
        assert_eq!(understood(&numbers(&[1, 2, 3]), 1), None);
        assert_eq!(understood(&numbers(&[1, 2, 3, -1]), 1), None);
        assert_eq!(understood(&numbers(&[1, 2, 3, 0]), 2), None);
        assert_eq!(understood(&Value::Nil, 1), None);
    }
}
