//! The set of rules by example, and its winners against the strongest live rule.

use super::*;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

const NOW: Now = Now { boot: BootTime(1_000_000_000), utc: UtcMillis(1_800_000_000_000) };

fn rule(prefix: &str, action: Action, origin: Origin, seconds: Option<u64>) -> Rule {
    Rule {
        prefix: prefix.parse().unwrap(),
        action,
        origin,
        profile: 0,
        profile_name: String::new(),
        reason: String::new(),
        created: NOW.utc,
        until: Until::after(NOW, seconds.map(Duration::from_secs)),
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn list(name: &str, entries: &[(&str, Option<u64>)]) -> List {
    let mut builder = entries::Builder::default();
    for (prefix, seconds) in entries {
        let until = seconds.map(|seconds| NOW.utc.after(Duration::from_secs(seconds)));
        builder.push(net(prefix), until, "").unwrap();
    }
    List {
        name: name.to_owned(),
        action: Action::Deny,
        kind: list::Kind::Import,
        source: String::new(),
        dry_run: false,
        reason: format!("on {name}"),
        created: NOW.utc,
        clocks: NOW,
        entries: Arc::new(builder.build()),
        before: None,
        swept: BootTime(0),
        seat: 0,
    }
}

fn set(rules: impl IntoIterator<Item = Rule>) -> RuleSet {
    let mut set = RuleSet::default();
    for rule in rules {
        set.insert(rule);
    }
    set
}

#[test]
fn the_higher_origin_wins_within_a_prefix() {
    let set = set([
        rule("10.0.0.0/8", Action::Allow, Origin::Feed, None),
        rule("10.0.0.0/8", Action::Deny, Origin::Operator, None),
        rule("10.0.0.0/8", Action::Allow, Origin::Configuration, None),
    ]);
    let winners = set.winners(net("10.0.0.0/8"), NOW.boot, |_| true);
    assert_eq!(winners.first.unwrap().origin, Origin::Operator);
    assert_eq!(winners.second, None, "it never ends, so nobody takes over");
}

#[test]
fn what_outlives_the_winner_takes_over() {
    let set = set([
        rule("10.0.0.0/8", Action::Deny, Origin::Feed, None),
        rule("10.0.0.0/8", Action::Deny, Origin::List, Some(5)),
        rule("10.0.0.0/8", Action::Allow, Origin::Operator, Some(60)),
    ]);
    let winners = set.winners(net("10.0.0.0/8"), NOW.boot, |_| true);
    assert_eq!(winners.first.unwrap().origin, Origin::Operator);
    assert_eq!(winners.second.unwrap().origin, Origin::Feed);
}

#[test]
fn what_has_ended_is_taken_out() {
    let mut set = set([
        rule("10.0.0.0/8", Action::Deny, Origin::Operator, Some(5)),
        rule("11.0.0.0/8", Action::Deny, Origin::Operator, None),
    ]);
    assert_eq!(set.next_end(), Some(BootTime(6_000_000_000)));
    assert_eq!(set.expire(BootTime(5_999_999_999)), Expired::default());
    assert_eq!(set.expire(BootTime(6_000_000_000)).over.len(), 1);
    assert_eq!(set.next_end(), None);
}

#[test]
fn a_rule_that_is_replaced_by_itself_keeps_its_age() {
    let old = rule("10.0.0.0/8", Action::Deny, Origin::Configuration, None);
    let mut set = set([old.clone()]);
    let again = Rule { created: NOW.utc.after(Duration::from_secs(60)), ..old.clone() };
    let other = Rule { action: Action::Allow, ..again.clone() };
    set.replace(Origin::Configuration, [again]);
    assert_eq!(set.find(old.prefix, old.origin), Some(&old));
    set.replace(Origin::Configuration, [other.clone()]);
    assert_eq!(set.find(old.prefix, old.origin), Some(&other));
}

#[test]
fn replacing_an_origin_leaves_the_others() {
    let mut set = set([
        rule("10.0.0.0/8", Action::Deny, Origin::Operator, None),
        rule("11.0.0.0/8", Action::Deny, Origin::Configuration, None),
    ]);
    set.replace(
        Origin::Configuration,
        [
            rule("12.0.0.0/8", Action::Deny, Origin::Configuration, None),
            rule("12.0.0.0/8", Action::Allow, Origin::Configuration, None),
        ],
    );
    let rules: Vec<_> = set.iter().map(|rule| (rule.prefix.to_string(), rule.action)).collect();
    assert_eq!(
        rules,
        [("10.0.0.0/8".to_owned(), Action::Deny), ("12.0.0.0/8".to_owned(), Action::Allow)]
    );
}

#[test]
fn overlapping_lists_keep_their_own_reasons_and_ends() {
    let mut set = RuleSet::default();
    set.insert_list(list("long", &[("192.0.2.1/32", Some(60)), ("192.0.2.2/32", None)]));
    set.insert_list(list("short", &[("192.0.2.1/32", Some(5)), ("2001:db8::/32", Some(5))]));
    let reasons: Vec<&str> = set.of(net("192.0.2.1/32")).map(|rule| rule.reason).collect();
    assert_eq!(reasons, ["on long", "on short"]);
    assert_eq!(set.next_end(), Some(BootTime(6_000_000_000)));
    let expired = set.expire(BootTime(6_000_000_000));
    assert_eq!(expired.entries, [net("192.0.2.1/32"), net("2001:db8::/32")]);
    assert_eq!(set.of(net("192.0.2.1/32")).count(), 1);
    assert_eq!(set.next_end(), Some(BootTime(61_000_000_000)));
    set.remove_list("long");
    assert_eq!(set.prefixes().count(), 0);
}

#[test]
fn a_change_that_nobody_confirms_is_undone() {
    let key = (net("192.0.2.0/24"), Origin::Operator);
    let old = rule("192.0.2.0/24", Action::Allow, Origin::Operator, None);
    let mut set = set([rule("192.0.2.0/24", Action::Deny, Origin::Operator, None)]);
    let deadline = Until::after(NOW, Some(Duration::from_secs(60)));
    let pending = Pending { made: NOW.utc, deadline, then: Some(old.clone()) };
    set.change(&Change { pend: vec![(key, pending)], ..Change::default() });
    let winners = set.winners(key.0, NOW.boot, |_| true);
    let (first, second) = (winners.first.unwrap(), winners.second.unwrap());
    assert_eq!((first.action, first.until), (Action::Deny, deadline));
    assert_eq!((second.action, second.from), (Action::Allow, deadline.boot));
    let expired = set.expire(deadline.boot);
    assert_eq!((expired.unconfirmed.len(), set.find(key.0, key.1)), (1, Some(&old)));
    assert_eq!(set.pending().count(), 0);
}

#[test]
fn a_list_that_nobody_confirms_goes_back_to_the_version_before() {
    let mut new = list("drop", &[("192.0.2.1/32", None), ("192.0.2.2/32", None)]);
    let deadline = Until::after(NOW, Some(Duration::from_secs(60)));
    let before = list("drop", &[("192.0.2.2/32", None), ("192.0.2.3/32", None)]).entries;
    new.before = Some(before_of(deadline, &before));
    new.reason = "of the second".to_owned();
    let mut set = RuleSet::default();
    set.insert_list(new);
    let spans = |set: &RuleSet, prefix| {
        set.of(net(prefix)).map(|rule| (rule.from, rule.until.boot)).collect::<Vec<_>>()
    };
    let (always, never) = (BootTime(0), BootTime(FOREVER));
    assert_eq!(spans(&set, "192.0.2.1/32"), [(always, deadline.boot)]);
    assert_eq!(spans(&set, "192.0.2.2/32"), [(always, never)]);
    assert_eq!(spans(&set, "192.0.2.3/32"), [(deadline.boot, never)]);
    assert_eq!(set.inside(net("192.0.2.0/24")).count(), 3);
    let reason = |set: &RuleSet, prefix| set.of(net(prefix)).next().map(|r| r.reason.to_owned());
    assert_eq!(reason(&set, "192.0.2.1/32").unwrap(), "of the second");
    assert_eq!(reason(&set, "192.0.2.3/32").unwrap(), "of the first");
    let expired = set.expire(deadline.boot);
    assert_eq!(expired.entries, [net("192.0.2.1/32"), net("192.0.2.3/32")]);
    let list = set.list("drop").unwrap();
    assert_eq!((&list.entries, &*list.source, list.created), (&before, "first", UtcMillis(1)));
    assert_eq!(reason(&set, "192.0.2.2/32").unwrap(), "of the first");
}

/// The version before, of other words than the one after it.
fn before_of(deadline: Until, entries: &Arc<entries::Entries>) -> list::Before {
    list::Before {
        deadline,
        replaced: NOW.utc,
        source: "first".to_owned(),
        reason: "of the first".to_owned(),
        created: UtcMillis(1),
        entries: Arc::clone(entries),
    }
}

#[test]
fn an_entry_that_resets_is_another_rule_than_one_that_denies() {
    let of = |resets: bool, action: Action| {
        let mut builder = entries::Builder::default();
        for (prefix, resets) in [("192.0.2.1/32", resets), ("192.0.2.2/32", false)] {
            builder
                .add(entries::Entry { prefix: net(prefix), until: None, reason: "", resets })
                .unwrap();
        }
        List { entries: Arc::new(builder.build()), action, ..list("drop", &[]) }
    };
    let actions = |list: &List| list.inside(net("192.0.2.0/24")).map(|rule| rule.action).collect();
    let (plain, resets) = (of(false, Action::Deny), of(true, Action::Deny));
    let all: Vec<Action> = actions(&plain);
    assert_eq!(all, [Action::Deny, Action::Deny]);
    let all: Vec<Action> = actions(&resets);
    assert_eq!(all, [Action::Reset, Action::Deny]);
    let all: Vec<Action> = actions(&of(true, Action::Allow));
    assert_eq!(all, [Action::Allow, Action::Allow], "whatever lets in resets nobody");
    let changed: Vec<_> = plain.entries.difference(&resets.entries).collect();
    assert_eq!(changed, [(net("192.0.2.1/32"), true)]);
    let deadline = Until::after(NOW, Some(Duration::from_secs(60)));
    let before = before_of(deadline, &plain.entries);
    let waiting = List { before: Some(before), ..resets };
    let both: Vec<Action> = waiting.find(net("192.0.2.1/32")).map(|rule| rule.action).collect();
    assert_eq!(both, [Action::Reset, Action::Deny], "what comes back if nobody confirms");
    assert_eq!(waiting.find(net("192.0.2.2/32")).count(), 1);
}

#[test]
fn listings_go_on_where_they_stopped() {
    let mut set = set([
        rule("10.0.0.0/8", Action::Deny, Origin::Operator, None),
        rule("10.0.0.0/8", Action::Deny, Origin::Configuration, None),
    ]);
    set.insert_list(list("a", &[("192.0.2.1/32", None), ("2001:db8::/32", None)]));
    set.insert_list(list("b", &[("192.0.2.1/32", None), ("192.0.2.2/32", None)]));
    let place = |rule: &RuleRef<'_>| Place {
        list: rule.list.map(str::to_owned),
        prefix: rule.prefix,
        origin: rule.origin,
    };
    let all: Vec<Place> = set.listed(None).map(|rule| place(&rule)).collect();
    assert_eq!(all.len(), 6);
    for at in 0..all.len() {
        let rest: Vec<Place> = set.listed(Some(&all[at])).map(|rule| place(&rule)).collect();
        assert_eq!(rest, all[at + 1..]);
    }
}

proptest! {
    /// The two rules that the tables hold decide like the strongest live one, now and whenever one of them ends.
    #[test]
    fn two_rules_say_what_all_of_a_prefix_do(
        rules in proptest::collection::vec(
            (1u64..3, 1u64..4, 0u64..4, 1u64..6, any::<bool>()),
            1..6,
        ),
    ) {
        let prefix = net("192.0.2.0/24");
        let mut set = RuleSet::default();
        for (action, origin, from, until, forever) in rules {
            let until = if forever { FOREVER } else { until };
            let rule = Rule {
                action: Action::from_number(action as u8).unwrap(),
                origin: Origin::from_number(origin as u8).unwrap(),
                until: Until { boot: BootTime(until), utc: None },
                ..rule("192.0.2.0/24", Action::Deny, Origin::Ban, None)
            };
            let key = (prefix, rule.origin);
            if from == 0 {
                set.insert(rule);
            } else if from < until {
                let deadline = Until { boot: BootTime(from), utc: None };
                let pend = vec![(key, Pending { made: NOW.utc, deadline, then: Some(rule) })];
                set.change(&Change { pend, ..Change::default() });
            }
        }
        let holds = |rule: &RuleRef<'_>, now| rule.from <= now && now < rule.until.boot;
        for now in (0..5).map(BootTime) {
            let model = set.of(prefix).filter(|rule| holds(rule, now)).max_by_key(RuleRef::rank);
            let winners = set.winners(prefix, now, |_| true);
            let both = [winners.first, winners.second].into_iter().flatten();
            let found = both.clone().find(|rule| holds(rule, now));
            prop_assert_eq!(found, model, "at {:?}", now);
            // Without anybody's help they are right until the first of them ends or begins.
            let next = both.flat_map(|rule| [rule.from, rule.until.boot]).filter(|at| *at > now);
            if let Some(next) = next.min().filter(|next| next.0 != FOREVER) {
                let model = set.of(prefix).filter(|rule| holds(rule, next));
                let model = model.max_by_key(RuleRef::rank);
                let both = [winners.first, winners.second].into_iter().flatten();
                prop_assert_eq!(both.into_iter().find(|rule| holds(rule, next)), model, "then");
            }
        }
    }
}

#[test]
fn networks_within_a_range_are_those_and_no_others() {
    use super::tables::Networks as _;
    let mut set = set([
        rule("10.0.0.0/8", Action::Deny, Origin::Operator, None),
        rule("10.1.0.0/16", Action::Deny, Origin::Operator, None),
        rule("10.2.0.0/32", Action::Deny, Origin::Operator, None),
        rule("2001:db8::/32", Action::Deny, Origin::Operator, None),
    ]);
    set.insert_list(list("drop", &[("9.0.0.0/8", None), ("10.1.2.3/32", None)]));
    let networks: BTreeSet<TagV4> = set.prefixes().filter_map(|prefix| tag_v4(&prefix)).collect();
    let first = u32::from_be_bytes([10, 1, 0, 0]);
    let within: Vec<TagV4> = set.within(first, first | 0xffff).collect();
    let expected = ["10.1.0.0/16", "10.1.2.3/32"].map(|prefix| tag_v4(&net(prefix)).unwrap());
    assert_eq!(within, expected);
    assert!(networks.within(first, first | 0xffff).eq(expected));
}

#[test]
fn every_change_can_be_undone() {
    let mut set = set([rule("10.0.0.0/8", Action::Deny, Origin::Operator, None)]);
    let before = set.clone();
    let [held, new] = ["10.0.0.0/8", "11.0.0.0/8"].map(|prefix| (net(prefix), Origin::Operator));
    let pending = Pending { made: NOW.utc, deadline: Until::after(NOW, None), then: None };
    let change = Change {
        put: vec![rule("11.0.0.0/8", Action::Allow, Origin::Operator, None)],
        remove: vec![held],
        pend: vec![(held, pending)],
        settle: vec![new],
    };
    let undo = set.change(&change);
    assert!(set.find(held.0, held.1).is_none() && set.find(new.0, new.1).is_some());
    assert_eq!(set.pending().count(), 1);
    set.change(&undo);
    assert!(set.listed(None).eq(before.listed(None)));
    assert_eq!(set.pending().count(), 0);
}
