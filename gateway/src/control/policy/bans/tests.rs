//! Bans by example: what the guard, the tables and the store make of decisions and commands.

use std::net::IpAddr;
use std::time::Duration;

use super::commands::Verb;
use super::*;
use crate::admin::api::{Add, ListAction, Remove};
use crate::base::time::UtcMillis;
use crate::config;
use crate::feedback::decision::Story;
use crate::rules::protected::Protected;
use crate::rules::seats::Seats;

pub(in crate::control) const NOW: Now =
    Now { boot: BootTime(1_000_000_000_000), utc: UtcMillis(1_800_000_000_000) };
const MINUTE: Duration = Duration::from_secs(60);

pub(in crate::control) fn after(duration: Duration) -> Now {
    let boot = BootTime(NOW.boot.0 + u64::try_from(duration.as_nanos()).unwrap());
    Now { boot, utc: NOW.utc.after(duration) }
}

pub(in crate::control) fn policy(folder: &tempfile::TempDir, now: Now) -> Policy {
    let store = Store::open(folder.path()).unwrap();
    let mut protected = Protected::default();
    protected.add("10.0.0.5/32".parse().unwrap(), "a test");
    let mut policy =
        Policy::new(&config::embedded().unwrap(), protected, (store, Seats::default()), now)
            .unwrap();
    policy.publish(now).unwrap();
    policy.seen();
    policy
}

pub(in crate::control) fn subject(prefix: &str, place: Place) -> Subject {
    Subject { prefix: prefix.parse().unwrap(), place }
}

pub(in crate::control) fn decision(subject: Subject, lasts: Duration) -> Decision {
    Decision {
        subject,
        rule: "credential_stuffing".into(),
        measure: Measure::Ban,
        lasts,
        times: 1,
        at: NOW,
        story: Story { score: 20.0, wanted: 20.0, ..Story::default() },
        held: None,
    }
}

fn ban(policy: &mut Policy, subject: Subject, lasts: Duration) -> Outcome {
    policy.enforce_ban(&decision(subject, lasts), &Author::Feedback, NOW)
}

fn is_enforced(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Enforced(_))
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// What is done with a peer and with a believed address.
fn actions(policy: &Policy, text: &str, now: Now) -> [Option<Action>; 2] {
    let classifier = policy.classifier().load_full();
    let believed = classifier.find_believed(address(text), now.boot);
    [classifier.action(address(text), now.boot), believed.map(|(_, entry)| entry.action)]
}

fn told(policy: &mut Policy) -> Vec<&'static str> {
    policy.take_ban_changes().iter().map(|change| change.what.name()).collect()
}

fn do_to(policy: &mut Policy, verb: Verb, prefix: &str, now: Now) -> Result<(), String> {
    let done = policy.change_bans(verb, &[prefix.to_owned()], (&Author::User(7), now));
    done.map(drop).map_err(|refusal| refusal.error)
}

fn allow(prefix: &str) -> Add {
    Add {
        action: ListAction::Allow,
        prefixes: vec![prefix.to_owned()],
        profile: None,
        for_ms: None,
        reason: String::new(),
        force: false,
        yes: false,
        confirm_within_ms: None,
    }
}

const DENIED: [Option<Action>; 2] = [Some(Action::Deny); 2];

#[test]
fn a_ban_holds_at_once_over_a_restart_and_until_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let one = subject("192.0.2.7/32", Place::Kernel);
    let mut first = policy(&folder, NOW);
    assert!(is_enforced(&ban(&mut first, one, MINUTE)));
    assert_eq!(actions(&first, "192.0.2.7", NOW), DENIED);
    assert_eq!(first.take_closing(64).unwrap()[..], [one]);
    assert!(!first.has_changed(), "only the connections of this one are looked at");
    assert_eq!(told(&mut first), ["made"]);
    drop(first);
    let mut second = policy(&folder, after(MINUTE / 2));
    assert_eq!(actions(&second, "192.0.2.7", after(MINUTE / 2)), DENIED);
    assert_eq!(second.bans().find(&one).unwrap().rule, "credential_stuffing");
    let over = after(MINUTE * 3 / 2);
    second.expire(over).unwrap();
    assert_eq!(told(&mut second), ["expired"]);
    assert_eq!(second.reader().unwrap().find(address("192.0.2.7"), NOW.boot), None);
    assert_eq!(second.bans().holding(over.boot, Place::Kernel), 0);
    assert!(second.bans().find(&one).is_some(), "how often it was is remembered");
    let late = after(4 * MINUTE);
    second.expire(late).unwrap();
    assert!(second.bans().find(&one).is_none(), "until it means nothing any more");
    drop(second);
    assert_eq!(policy(&folder, late).bans().iter().count(), 0);
}

#[test]
fn clock_jumps_end_no_ban_and_forget_none() {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    let folder = tempfile::tempdir().unwrap();
    let one = subject("192.0.2.7/32", Place::Kernel);
    ban(&mut policy(&folder, NOW), one, 10 * MINUTE);
    let today = NOW.utc.0;
    for utc in [today, today + DAY_MS, today - DAY_MS].map(UtcMillis) {
        let now = Now { utc, ..after(MINUTE) };
        let mut again = policy(&folder, now);
        again.expire(now).unwrap();
        assert_eq!(actions(&again, "192.0.2.7", now), DENIED);
        let view = &views::about(&again, address("192.0.2.7"), now)[0];
        assert_eq!((view.state.as_str(), view.enforced.as_str()), ("holds", "user space"));
        let left = view.until_utc_ms.unwrap().since(now.utc);
        assert_eq!(left, 9 * MINUTE, "by the clock that people see");
        let over = Now { utc, ..after(10 * MINUTE) };
        again.expire(over).unwrap();
        assert_eq!(actions(&again, "192.0.2.7", over), [None; 2]);
    }
}

#[test]
fn the_guard_comes_first_and_nothing_is_kept_of_what_it_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let mut policy = policy(&folder, NOW);
    policy.add(&allow("192.0.2.0/24"), NOW).unwrap();
    for place in [Place::Kernel, Place::UserSpace] {
        for prefix in ["10.0.0.5/32", "192.0.2.7/32", "192.0.2.0/24"] {
            let outcome = ban(&mut policy, subject(prefix, place), MINUTE);
            assert!(matches!(outcome, Outcome::Guarded(_)), "{prefix}: {outcome:?}");
        }
    }
    assert_eq!(told(&mut policy), ["refused"; 6]);
    assert_eq!(policy.bans().iter().count(), 0);
    assert_eq!(policy.bans().held().count(), 6);
    assert_eq!(actions(&policy, "10.0.0.5", NOW), [Some(Action::Allow); 2]);
}

#[test]
fn what_an_operator_allows_later_is_let_in_at_once_and_banned_again_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut policy = policy(&folder, NOW);
    ban(&mut policy, subject("192.0.2.7/32", Place::Kernel), MINUTE);
    ban(&mut policy, subject("192.0.2.8/32", Place::UserSpace), MINUTE);
    policy.add(&allow("192.0.2.0/24"), NOW).unwrap();
    for one in ["192.0.2.7", "192.0.2.8"] {
        assert_eq!(actions(&policy, one, NOW), [Some(Action::Allow); 2], "{one}");
    }
    let prefixes = vec!["192.0.2.0/24".to_owned()];
    let remove = Remove { action: ListAction::Allow, prefixes, confirm_within_ms: None };
    policy.remove(&remove, NOW).unwrap();
    assert_eq!(actions(&policy, "192.0.2.7", NOW), DENIED);
    assert_eq!(actions(&policy, "192.0.2.8", NOW), [None, Some(Action::Deny)]);
}

#[test]
fn what_becomes_protected_is_let_in_also_as_a_believed_address() {
    let folder = tempfile::tempdir().unwrap();
    let mut policy = policy(&folder, NOW);
    ban(&mut policy, subject("192.0.2.0/24", Place::UserSpace), MINUTE);
    ban(&mut policy, subject("192.0.2.7/32", Place::UserSpace), MINUTE);
    let mut protected = Protected::default();
    protected.add("192.0.2.7/32".parse().unwrap(), "an upstream");
    policy.refresh(protected, NOW).unwrap();
    assert_eq!(actions(&policy, "192.0.2.7", NOW), [Some(Action::Allow); 2]);
    assert_eq!(actions(&policy, "192.0.2.8", NOW), [None, Some(Action::Deny)]);
}

#[test]
fn a_believed_address_is_banned_where_it_is_believed_alone() {
    let folder = tempfile::tempdir().unwrap();
    let one = subject("192.0.2.7/32", Place::UserSpace);
    let mut first = policy(&folder, NOW);
    assert!(is_enforced(&ban(&mut first, one, MINUTE)));
    assert_eq!(actions(&first, "192.0.2.7", NOW), [None, Some(Action::Deny)]);
    drop(first);
    let mut second = policy(&folder, NOW);
    assert_eq!(actions(&second, "192.0.2.7", NOW), [None, Some(Action::Deny)]);
    do_to(&mut second, Verb::Lift, "192.0.2.7", NOW).unwrap();
    assert_eq!(actions(&second, "192.0.2.7", NOW), [None, None]);
    ban(&mut second, one, MINUTE);
    told(&mut second);
    second.expire(after(MINUTE)).unwrap();
    assert_eq!(told(&mut second), ["expired"]);
    assert_eq!(actions(&second, "192.0.2.7", NOW), [None, None]);
    let slow = Measure::SlowDown { profile: "tight".to_owned() };
    let slow = Decision { measure: slow, ..decision(one, MINUTE) };
    let outcome = second.enforce_ban(&slow, &Author::Feedback, NOW);
    assert!(matches!(outcome, Outcome::Failed(why) if why.contains("only packets")));
}

#[test]
fn what_people_do_to_a_ban_is_on_the_disk_before_they_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let one = subject("192.0.2.7/32", Place::Kernel);
    let mut first = policy(&folder, NOW);
    ban(&mut first, one, MINUTE);
    do_to(&mut first, Verb::Pin, "192.0.2.7", NOW).unwrap();
    let kept: Vec<(String, Ban)> = first.store().bans().unwrap();
    assert!(kept.len() == 1 && kept[0].1.pinned);
    let late = after(100 * MINUTE);
    first.expire(late).unwrap();
    assert_eq!(actions(&first, "192.0.2.7", late), DENIED);
    assert!(is_enforced(&ban(&mut first, one, MINUTE)) || first.bans().find(&one).unwrap().pinned);
    do_to(&mut first, Verb::Lift, "192.0.2.7", late).unwrap();
    assert_eq!(actions(&first, "192.0.2.7", late), [None, None]);
    let kept: Vec<(String, Ban)> = first.store().bans().unwrap();
    assert_eq!((kept[0].1.pinned, kept[0].1.lifts.len()), (false, 1));
    let again = do_to(&mut first, Verb::Lift, "192.0.2.7", late).unwrap_err();
    assert!(again.contains("is not banned"), "{again}");
    do_to(&mut first, Verb::Forget, "192.0.2.7", late).unwrap();
    assert!(first.store().bans::<Ban>().unwrap().is_empty());
    assert_eq!(told(&mut first), ["made", "pinned", "lifted", "forgotten"]);
}

#[test]
fn who_names_an_address_within_a_banned_prefix_is_told_of_the_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let mut policy = policy(&folder, NOW);
    ban(&mut policy, subject("192.0.2.0/24", Place::Kernel), MINUTE);
    let refused = do_to(&mut policy, Verb::Lift, "192.0.2.7", NOW).unwrap_err();
    assert!(refused.contains("lies in 192.0.2.0/24"), "{refused}");
}

#[test]
fn a_longer_ban_prolongs_and_a_weaker_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let one = subject("2001:db8::/64", Place::Kernel);
    let mut policy = policy(&folder, NOW);
    ban(&mut policy, one, MINUTE);
    assert_eq!(ban(&mut policy, one, MINUTE / 2), Outcome::Standing);
    let reset = Decision { measure: Measure::Reset, ..decision(one, 9 * MINUTE) };
    assert_eq!(policy.enforce_ban(&reset, &Author::Feedback, NOW), Outcome::Standing);
    assert!(is_enforced(&ban(&mut policy, one, 2 * MINUTE)));
    assert_eq!(told(&mut policy), ["made", "extended"]);
    let end = policy.bans().find(&one).unwrap().end.until();
    assert_eq!(end.boot, after(2 * MINUTE).boot);
}

#[test]
fn what_is_held_is_shown_and_not_enforced() {
    let folder = tempfile::tempdir().unwrap();
    let mut policy = policy(&folder, NOW);
    let held = Decision {
        held: Some(Held::Shared),
        ..decision(subject("192.0.2.7/32", Place::Kernel), MINUTE)
    };
    for _ in 0..3 {
        let outcome = policy.enforce_ban(&held, &Author::Feedback, NOW);
        assert_eq!(outcome, Outcome::Held(Held::Shared));
    }
    assert_eq!(policy.bans().held().count(), 1, "the last decision of each subject");
    assert_eq!(actions(&policy, "192.0.2.7", NOW), [None, None]);
}

#[test]
fn there_are_only_so_many_bans_and_those_that_ended_make_room() {
    let folder = tempfile::tempdir().unwrap();
    let mut policy = policy(&folder, NOW);
    policy.bans.max = 3;
    let one = |last: u8| subject(&format!("192.0.2.{last}/32"), Place::Kernel);
    for last in 0..3 {
        assert!(is_enforced(&ban(&mut policy, one(last), MINUTE * u32::from(last + 1))));
    }
    let full = ban(&mut policy, one(3), MINUTE);
    assert!(matches!(full, Outcome::Failed(why) if why.contains("as many as may be")));
    do_to(&mut policy, Verb::Lift, "192.0.2.1", NOW).unwrap();
    assert!(is_enforced(&ban(&mut policy, one(3), MINUTE)));
    assert!(policy.bans().find(&one(1)).is_none());
    policy.flush_bans().unwrap();
    assert_eq!(policy.store().bans::<Ban>().unwrap().len(), 3);
}

#[test]
fn what_others_decide_leaves_room_for_the_gateways_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut policy = policy(&folder, NOW);
    policy.bans.max = 16;
    let one = |last: u8| subject(&format!("192.0.2.{last}/32"), Place::Kernel);
    let others = [Author::Outside("a".to_owned()), Author::Gateway("b".to_owned())];
    for last in 0..20 {
        let author = &others[usize::from(last) % 2];
        let outcome = policy.enforce_ban(&decision(one(last), MINUTE), author, NOW);
        match last {
            0..14 => assert!(is_enforced(&outcome), "{last}: {outcome:?}"),
            _ => assert!(matches!(outcome, Outcome::Failed(why) if why.contains("14 bans"))),
        }
    }
    assert!(is_enforced(&ban(&mut policy, one(100), MINUTE)));
    let by_hand = policy.enforce_ban(&decision(one(101), MINUTE), &Author::User(7), NOW);
    assert!(is_enforced(&by_hand));
    let full = ban(&mut policy, one(102), MINUTE);
    assert!(matches!(full, Outcome::Failed(why) if why.contains("16 bans")));
    // What has ended makes room, and what a program had decided is not remembered any longer.
    let late = after(MINUTE * 2);
    policy.expire(late).unwrap();
    let left: Vec<&Author> = policy.bans().iter().map(|(_, ban)| &ban.author).collect();
    assert!(!left.iter().any(|author| matches!(author, Author::Outside(_))), "{left:?}");
    let again = policy.enforce_ban(&decision(one(15), MINUTE), &others[0], late);
    assert!(is_enforced(&again));
}
