//! Tests of the ledger: whoever hears the same comes to know the same.

use proptest::prelude::*;

use super::*;
use crate::config::Measure;
use crate::feedback::decision::{Place, Story};
use crate::feedback::spread::message::Ban;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn at(day: u64) -> UtcMillis {
    UtcMillis(1_800_000_000_000 + day * DAY_MS)
}

fn subject(number: u8) -> Subject {
    let prefix = format!("192.0.2.{number}/32").parse().unwrap();
    Subject { prefix, place: Place::Kernel }
}

fn ban(until: UtcMillis) -> Ban {
    let story = Story::default();
    Ban { measure: Measure::Ban, rule: "r".to_owned(), until, times: 1, story }
}

fn message(number: u8, made: u64, instance: u64, what: What) -> Message {
    let order = Order { made: at(made), instance, sequence: 1 };
    Message { order, subject: subject(number), what, gateway: "g".to_owned() }
}

/// What is in force, in words that can be compared.
fn bans(ledger: &Ledger, now: UtcMillis) -> Vec<(Subject, Order)> {
    let held = ledger.iter().filter(|message| message.ban(now).is_some());
    held.map(|message| (message.subject, message.order)).collect()
}

#[test]
fn what_is_done_here_is_later_than_what_was_known_whatever_the_clock_says() {
    let (mut one, mut other) = (Ledger::new(1), Ledger::new(2));
    one.make(subject(1), What::Ban(ban(at(9))), "one", at(5));
    let banned = one.outgoing().next().unwrap().clone();
    other.merge(banned.clone(), at(5)).unwrap();
    // Its clock is days behind, and its lift holds all the same.
    other.make(subject(1), What::Lift, "other", at(1));
    let lifted = other.outgoing().next().unwrap().clone();
    assert_eq!(lifted.order.made, UtcMillis(at(5).0 + 1));
    assert_eq!(one.merge(lifted, at(5)), Ok(Merged::News));
    assert_eq!(bans(&one, at(5)), []);
    assert_eq!(one.merge(banned, at(5)), Err(Refused::Old));
    assert_eq!(one.outgoing_len(), 0, "it was overtaken before anybody was told");
}

#[test]
fn a_lift_is_remembered_until_every_ban_from_before_is_over() {
    let mut ledger = Ledger::new(1);
    ledger.merge(message(1, 10, 1, What::Lift), at(10)).unwrap();
    let late = message(1, 9, 2, What::Ban(ban(at(40))));
    for day in [10, 30, 40] {
        ledger.expire(at(day));
        assert_eq!(
            ledger.merge(late.clone(), at(day)),
            Err(if day < 40 { Refused::Old } else { Refused::Over })
        );
    }
    assert_eq!(ledger.len(), 1);
    assert_eq!(ledger.expire(at(41)), [subject(1)]);
    assert_eq!(ledger.merge(late, at(41)), Err(Refused::Over));
    assert!(ledger.is_empty() && ledger.by_end.is_empty());
}

#[test]
fn a_pin_is_renewed_and_its_lift_outlives_it() {
    let mut ledger = Ledger::new(1);
    ledger.make(subject(1), What::Pin(ban(at(1))), "g", at(0));
    let first = ledger.known(&subject(1)).unwrap().clone();
    ledger.told(&subject(1), first.rank());
    assert_eq!((ledger.renew(at(0)), ledger.outgoing_len()), (vec![], 0));
    for day in 1..100 {
        assert_eq!((ledger.expire(at(day)), ledger.renew(at(day))), (vec![], vec![]), "{day}");
        let soon = UtcMillis(at(day).0 + day);
        assert_eq!(ledger.renew(soon), [subject(1)]);
        assert_eq!(ledger.outgoing_len(), 1);
    }
    let renewed = ledger.known(&subject(1)).unwrap().clone();
    let mut other = Ledger::new(2);
    assert_eq!(other.merge(first, at(1)), Ok(Merged::News));
    assert_eq!(other.merge(renewed.clone(), at(20)), Ok(Merged::Renewed));
    other.make(subject(1), What::Lift, "g", at(20));
    // The pin was renewed by somebody who had not heard of the lift.
    for day in 100..140 {
        other.expire(at(day));
        assert!(other.merge(renewed.clone(), at(day)).is_err(), "{day}");
    }
    assert!(other.is_empty());
}

#[test]
fn what_is_told_is_told_once_and_what_changed_meanwhile_again() {
    let mut ledger = Ledger::new(1);
    ledger.make(subject(1), What::Lift, "g", at(0));
    let told = ledger.known(&subject(1)).unwrap().rank();
    ledger.make(subject(1), What::Forget, "g", at(0));
    ledger.told(&subject(1), told);
    assert_eq!(ledger.outgoing_len(), 1);
    let told = ledger.known(&subject(1)).unwrap().rank();
    ledger.told(&subject(1), told);
    assert_eq!(ledger.outgoing_len(), 0);
    ledger.tell(subject(1));
    ledger.tell(subject(2));
    assert_eq!(ledger.outgoing_len(), 1);
    assert_eq!(ledger.known(&subject(1)).unwrap().order.sequence, 2);
}

#[test]
fn there_is_room_for_so_many_and_the_oldest_goes_first() {
    let mut ledger = Ledger::with_room(1, 3);
    for (number, made) in [(1, 5), (2, 3), (3, 4)] {
        ledger.merge(message(number, made, 1, What::Lift), at(5)).unwrap();
    }
    assert_eq!(ledger.merge(message(4, 2, 1, What::Lift), at(5)), Err(Refused::Full));
    assert_eq!(ledger.merge(message(5, 6, 1, What::Lift), at(6)), Ok(Merged::News));
    let known: Vec<Subject> = ledger.iter().map(|message| message.subject).collect();
    assert_eq!(known, [1, 3, 5].map(subject));
    assert_eq!(ledger.by_end.len(), 3);
}

/// Any changes of few sources by few gateways, no two with the same order.
fn messages() -> impl Strategy<Value = Vec<Message>> {
    let what = (0_u8..6, 0_u64..=31);
    let one = (0_u8..3, 0_u64..20, 0_u64..3, what);
    proptest::collection::vec(one, 1..24).prop_map(|all| {
        let numbered = all.into_iter().enumerate();
        numbered
            .map(|(sequence, (number, made, instance, (kind, lasts)))| {
                let until = at(made + lasts);
                let what = match kind {
                    0..=2 => What::Ban(ban(until)),
                    3 => What::Pin(ban(at(made).after(LASTS_MAX))),
                    4 => What::Lift,
                    _ => What::Forget,
                };
                let mut message = message(number, made, instance, what);
                message.order.sequence = sequence as u64;
                message
            })
            .collect()
    })
}

/// What holds after `all`, by the definition: of each source the latest change.
fn wanted(all: &[Message], now: UtcMillis) -> Vec<(Subject, Order)> {
    let mut latest: BTreeMap<Subject, &Message> = BTreeMap::new();
    for message in all {
        let before = latest.entry(message.subject).or_insert(message);
        if message.order > before.order {
            *before = message;
        }
    }
    let counts = |message: &&Message| message.counts_until() > now && message.ban(now).is_some();
    let held = latest.into_values().filter(counts);
    held.map(|message| (message.subject, message.order)).collect()
}

proptest! {
    /// Who hears what when, and who hears nothing for a while, makes no difference once states were exchanged. `picks`
    /// says who hears of which change on which day, again and again, in no order.
    #[test]
    fn all_come_to_know_the_same_and_it_is_what_was_changed_last(
        all in messages(),
        picks in proptest::collection::vec((0_usize..3, 0_usize..24, 0_u64..6), 0..120),
        late in 20_u64..60,
    ) {
        let mut ledgers = [1, 2, 3].map(Ledger::new);
        let mut day = 20;
        for (who, which, wait) in picks {
            // A day passes now and then.
            day += u64::from(wait == 0);
            let ledger = &mut ledgers[who];
            ledger.expire(at(day));
            ledger.merge(all[which % all.len()].clone(), at(day)).ok();
        }
        let now = at(day.max(late));
        // What was lost is somewhere: with who made it.
        for message in &all {
            let of = usize::try_from(message.order.instance).unwrap();
            ledgers[of].merge(message.clone(), now).ok();
        }
        for from in 0..3 {
            let state: Vec<Message> = ledgers[from].iter().cloned().collect();
            for ledger in &mut ledgers {
                for message in &state {
                    ledger.merge(message.clone(), now).ok();
                }
            }
        }
        let first: Vec<Message> = ledgers[0].iter().cloned().collect();
        for ledger in &mut ledgers {
            for message in &first {
                prop_assert!(ledger.merge(message.clone(), now).is_err(), "heard again, it is no news");
            }
            ledger.expire(now);
            prop_assert_eq!(bans(ledger, now), wanted(&all, now));
            prop_assert_eq!(ledger.by_end.len(), ledger.len());
        }
        for ledger in &ledgers[1..] {
            let (one, other) = (ledgers[0].iter(), ledger.iter());
            prop_assert!(one.zip(other).all(|(one, other)| one == other));
            prop_assert_eq!(ledgers[0].len(), ledger.len());
        }
    }
}
