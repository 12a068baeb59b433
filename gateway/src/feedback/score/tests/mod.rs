//! Each thing that scores promise, by name. What holds for all reports is in `properties`.

mod properties;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::*;
use crate::base::address::{ClientAddr, PeerAddr};
use crate::config::{Ceiling, FeedbackBy, FeedbackRule, Measure, Share, SharedSource};

const MINUTE: u64 = 60;
const HOUR: u64 = 3600;
/// The clocks of tests begin here. (seconds)
const START: u64 = 1_000_000;

/// So many seconds from the start.
fn at(seconds: u64) -> Now {
    millis(seconds * 1000)
}

fn millis(millis: u64) -> Now {
    let boot = BootTime((START * 1000 + millis) * 1_000_000);
    Now { boot, utc: UtcMillis(1_800_000_000_000 + millis) }
}

fn peer(address: &str) -> Source {
    Source::Peer(PeerAddr::of_socket(SocketAddr::new(address.parse().unwrap(), 1)))
}

fn believed(address: &str) -> Source {
    Source::Believed(ClientAddr::believed(address.parse().unwrap()))
}

fn kernel(text: &str) -> Subject {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    Subject { prefix: address.unwrap_or_else(|_| text.parse().unwrap()), place: Place::Kernel }
}

fn evidence(source: Source, signal: Signal, at: Now) -> Evidence {
    let (request_id, route, limit, reason) = (None, None, None, None);
    Evidence { signal, source, at, request_id, route, limit, reason }
}

fn odd(source: Source, signal: Signal, at: Now) -> Report {
    Report::Odd(Box::new(evidence(source, signal, at)))
}

fn good(source: Source, consumer: Option<u64>, requests: u32, at: Now) -> Report {
    Report::Good([Good { source, consumer, requests }].into(), at)
}

/// `count` refused credentials in a minute: a ban of ten minutes, doubling up to a day.
fn rule(name: &str, count: u32) -> FeedbackRule {
    FeedbackRule {
        name: name.into(),
        signals: vec![Signal::AuthFailed],
        limit: None,
        count,
        per: Duration::from_secs(MINUTE),
        by: FeedbackBy::Source,
        under_pressure: false,
        measure: Measure::Ban,
        lasts: Duration::from_secs(10 * MINUTE),
        doubling_up_to: Duration::from_secs(24 * HOUR),
    }
}

fn feedback(rules: Vec<FeedbackRule>) -> Feedback {
    Feedback {
        dry_run: false,
        rules,
        weights: [1000; Signal::ALL.len()],
        scanner_paths: Arc::new([]),
        max_sources: 1000,
        prefix_bits: [24, 48],
        shared: SharedSource { consumers: 2, evidence: None },
        ceiling: Ceiling { bans_per_minute: 60, good_share: Share::WHOLE },
        spread: None,
        crowdsec: None,
    }
}

fn scores(rules: Vec<FeedbackRule>) -> Scores {
    Scores::new(&Arc::new(feedback(rules)), 64)
}

impl Scores {
    /// The same signal so many times at one moment.
    fn times(&mut self, count: u32, source: Source, at: Now) -> Vec<Decision> {
        let report = odd(source, Signal::AuthFailed, at);
        (0..count).flat_map(|_| self.observe(&report)).collect()
    }

    /// The one decision that so many signals make.
    fn one(&mut self, count: u32, source: Source, at: Now) -> Decision {
        let mut decisions = self.times(count, source, at);
        assert_eq!(decisions.len(), 1, "{decisions:?}");
        decisions.remove(0)
    }
}

#[test]
fn enough_evidence_makes_one_decision_with_its_story() {
    let mut scores = scores(vec![rule("stuffing", 20)]);
    let source = peer("192.0.2.7");
    let mut last = evidence(source, Signal::AuthFailed, at(19));
    last.request_id = Some(http::HeaderValue::from_static("abc"));
    last.route = Some("login".into());
    last.reason = Some("wrong password");
    for second in 0..19 {
        assert_eq!(scores.observe(&odd(source, Signal::AuthFailed, at(second))), []);
    }
    let decisions = scores.observe(&Report::Odd(Box::new(last)));
    let [decision] = &decisions[..] else { panic!("{decisions:?}") };
    assert_eq!(decision.subject, kernel("192.0.2.7/32"));
    assert_eq!((&*decision.rule, decision.times, decision.held), ("stuffing", 1, None));
    assert_eq!(decision.lasts, Duration::from_secs(10 * MINUTE));
    assert_eq!((decision.story.score, decision.story.wanted, decision.at), (20.0, 20.0, at(19)));
    assert_eq!(decision.story.signals.len(), crate::feedback::decision::SIGNALS_MAX);
    let shown = decision.story.signals.last().unwrap();
    assert_eq!(shown.request_id.as_deref(), Some("abc"));
    assert_eq!(
        (shown.route.as_deref(), shown.reason.as_deref()),
        (Some("login"), Some("wrong password"))
    );
    // What follows while it holds, as from connections that were open, makes no second one.
    assert_eq!(scores.times(100, source, at(20)), []);
    assert_eq!(scores.times(100, source, at(600)), []);
    let known = scores.known("192.0.2.7".parse().unwrap(), at(30));
    assert_eq!(known[0].in_force, [("stuffing".to_owned(), at(619).utc)]);
    assert_eq!((known[0].next_time, known[0].scores.len()), (2, 0));
    // After it nothing of that counts.
    assert_eq!(scores.times(19, source, at(620)), []);
    assert_eq!(scores.one(1, source, at(621)).times, 2);
}

#[test]
fn evidence_is_never_older_than_the_time_of_the_rule() {
    let mut scores = scores(vec![rule("stuffing", 20)]);
    scores.times(19, peer("192.0.2.7"), millis(7_499));
    assert_eq!(scores.times(1, peer("192.0.2.7"), millis(67_499)), []);
    scores.times(19, peer("192.0.2.8"), millis(67_500));
    assert_eq!(scores.times(1, peer("192.0.2.8"), millis(67_500 + 52_500)).len(), 1);
}

#[test]
fn times_double_up_to_the_cap_and_decay() {
    let mut scores = scores(vec![rule("stuffing", 1)]);
    let source = peer("192.0.2.7");
    let mut now = 0;
    for (times, minutes) in [(1, 10), (2, 20), (3, 40), (4, 80)] {
        let decision = scores.one(1, source, at(now));
        assert_eq!(
            (decision.times, decision.lasts),
            (times, Duration::from_secs(minutes * MINUTE))
        );
        now += minutes * MINUTE;
    }
    // As long as the last one without another: one less counts. Then the fourth time comes again.
    assert_eq!(scores.one(1, source, at(now + 80 * MINUTE)).times, 4);
    now += (80 + 80 + 5 * 80) * MINUTE;
    assert_eq!(scores.one(1, source, at(now)).times, 1, "all of it has passed");
    now += 10 * MINUTE;
    let mut longest = Duration::ZERO;
    for _ in 0..12 {
        longest = scores.one(1, source, at(now)).lasts;
        now += longest.as_secs();
    }
    assert_eq!(longest, Duration::from_secs(24 * HOUR));
    scores.tick(at(now + 100 * 24 * HOUR));
    assert_eq!(scores.numbers().remembered, 0);
}

#[test]
fn a_flood_of_distinct_sources_pushes_out_nobody_who_is_near_a_decision() {
    let mut scores = scores(vec![rule("stuffing", 20)]);
    let near = peer("192.0.2.7");
    scores.times(10, near, at(0));
    for number in 0..100_000_u32 {
        let source = peer(&IpAddr::from(number.to_be_bytes()).to_string());
        scores.observe(&odd(source, Signal::AuthFailed, millis(u64::from(number / 10))));
    }
    let numbers = scores.numbers();
    assert_eq!((numbers.sources, numbers.evicted, numbers.turned_away), (1000, 99_001, 0));
    assert_eq!(scores.one(10, near, at(11)).subject, kernel("192.0.2.7/32"));
}

#[test]
fn a_table_full_of_suspects_takes_nobody_until_they_have_aged() {
    let mut scores = scores(vec![rule("stuffing", 20)]);
    let number = |number: u16| {
        peer(&IpAddr::from([10, 0, number.to_be_bytes()[0], number.to_be_bytes()[1]]).to_string())
    };
    (0..1000).for_each(|each| drop(scores.times(10, number(each), at(0))));
    assert_eq!(scores.times(20, peer("192.0.2.7"), at(1)), []);
    assert_eq!(scores.numbers().turned_away, 20);
    assert_eq!(scores.times(10, number(999), at(1)).len(), 1, "those who are there are scored");
    // Half a minute later they mean nothing, and newcomers themselves find that out.
    assert_eq!(scores.times(20, peer("192.0.2.7"), at(70)).len(), 1);
    (0..64).for_each(|second| scores.tick(at(200 + second)));
    assert_eq!(scores.numbers().sources, 0);
}

#[test]
fn a_rule_that_would_ban_everybody_is_held_back() {
    let mut config = feedback(vec![rule("everybody", 1)]);
    config.ceiling = Ceiling { bans_per_minute: 5, good_share: Share::per_million(100_000) };
    let mut scores = Scores::new(&Arc::new(config), 64);
    let source = |number: u8| peer(&IpAddr::from([192, 0, 2, number]).to_string());
    (0..20).for_each(|number| drop(scores.observe(&good(source(number), None, 1000, at(0)))));
    let held: Vec<_> = (0..20).map(|number| scores.one(1, source(number), at(1)).held).collect();
    assert_eq!(held[..3], [None; 3], "a small site may have three clients");
    assert!(held[3..].iter().all(|held| *held == Some(Held::GoodShare)), "{held:?}");
    // They hit 300 of 2000. What hits nobody may still be, up to the other ceiling.
    let held: Vec<_> = (20..30).map(|number| scores.one(1, source(number), at(2)).held).collect();
    assert_eq!(held[..2], [None; 2]);
    assert!(held[2..].iter().all(|held| *held == Some(Held::BansPerMinute)), "{held:?}");
    // They are looked at again after a minute, if they go on.
    assert_eq!(scores.times(1, source(25), at(61)), []);
    assert_eq!(scores.one(1, source(25), at(62)).held, None);
    let notes = scores.one(1, source(10), at(62)).story.notes;
    assert_eq!(
        notes,
        [
            "it would hit 100 good requests of the last ten minutes, together with earlier decisions 400 of \
          2000, and no more than 10% may be (feedback.ceiling.good_share)"
        ]
    );
    let counts: Vec<_> =
        scores.numbers().decisions.iter().map(|(_, held, count)| (*held, *count)).collect();
    assert_eq!(counts, [(None, 6), (Some(Held::GoodShare), 18), (Some(Held::BansPerMinute), 8)]);
}

#[test]
fn clock_jumps_change_nothing() {
    let mut scores = scores(vec![rule("stuffing", 20)]);
    let source = peer("192.0.2.7");
    let with_utc = |seconds, utc| Now { utc: UtcMillis(utc), ..at(seconds) };
    // The wall clock means nothing.
    for (second, utc) in (0..19).zip([0, u64::MAX, 5, 1 << 40].into_iter().cycle()) {
        assert_eq!(scores.observe(&odd(source, Signal::AuthFailed, with_utc(second, utc))), []);
    }
    // What is reported late is as new as the newest.
    let decision = scores.one(1, source, with_utc(1, 7));
    assert_eq!((decision.at.boot, decision.times), (at(18).boot, 1));
    assert_eq!(scores.times(20, source, at(0)), []);
    // The other clock goes on while the host sleeps: then all of it is over.
    scores.times(19, peer("192.0.2.8"), at(20));
    assert_eq!(scores.times(19, peer("192.0.2.8"), at(400 * 24 * HOUR)), []);
    assert_eq!(scores.one(20, source, at(400 * 24 * HOUR)).times, 1);
    let last = Now { boot: BootTime(u64::MAX - 1), utc: UtcMillis(0) };
    scores.tick(last);
    assert_eq!(scores.times(20, peer("192.0.2.9"), last).len(), 1);
    assert_eq!(scores.times(20, peer("192.0.2.9"), at(0)), []);
}

#[test]
fn a_shared_source_takes_more() {
    let mut config = feedback(vec![rule("stuffing", 20)]);
    let source = peer("192.0.2.7");
    let served = |scores: &mut Scores, seconds| {
        for consumer in [1, 2, 1] {
            scores.observe(&good(source, Some(consumer), 1, at(seconds)));
        }
        scores.observe(&good(source, None, 1, at(seconds)));
    };
    let mut never = Scores::new(&Arc::new(config.clone()), 64);
    never.observe(&good(source, Some(1), 5, at(0)));
    served(&mut never, 0);
    let decision = never.one(20, source, at(1));
    assert_eq!((decision.held, decision.story.consumers), (Some(Held::Shared), 2));
    let note = "2 known callers were served here within ten minutes, so no evidence is enough";
    assert_eq!(decision.story.notes, [note]);
    assert_eq!(never.times(1000, source, at(2)), [], "it is said once");
    assert_eq!(never.one(20, source, at(602)).held, None, "nobody else is there any more");

    config.shared.evidence = Some(3);
    let mut thrice = Scores::new(&Arc::new(config), 64);
    served(&mut thrice, 0);
    assert_eq!(thrice.times(59, source, at(1)), []);
    let known = &thrice.known("192.0.2.7".parse().unwrap(), at(1))[0];
    assert_eq!((known.scores[0].score, known.scores[0].wanted, known.consumers), (59.0, 60.0, 2));
    assert_eq!(known.notes.len(), 1);
    let decision = thrice.one(1, source, at(1));
    assert_eq!((decision.held, decision.story.wanted), (None, 60.0));
    // Others are not concerned.
    assert_eq!(thrice.one(20, peer("192.0.2.8"), at(1)).story.consumers, 0);
}

#[test]
fn who_is_served_behind_a_proxy_is_spared_what_is_decided_about_packets() {
    let config = Arc::new(feedback(vec![rule("stuffing", 20)]));
    let behind = |scores: &mut Scores, consumer, count| {
        scores.observe(&good(believed("192.0.2.7"), consumer, count, at(0)));
    };
    let mut shared = Scores::new(&config, 64);
    behind(&mut shared, Some(1), 1);
    shared.observe(&good(peer("192.0.2.7"), Some(1), 1, at(0)));
    let alone = shared.clone().one(20, peer("192.0.2.7"), at(1));
    assert_eq!((alone.held, alone.story.consumers), (None, 1), "one consumer on both ways");
    behind(&mut shared, Some(2), 1);
    let decision = shared.one(20, peer("192.0.2.7"), at(1));
    assert_eq!((decision.held, decision.story.consumers), (Some(Held::Shared), 2));

    // The same of those whom nobody knows, by how much is served to them.
    let mut careful = feedback(vec![rule("stuffing", 20)]);
    careful.ceiling.good_share = Share::per_million(100_000);
    let mut crowded = Scores::new(&Arc::new(careful), 64);
    behind(&mut crowded, None, 100);
    for number in 1..4 {
        crowded.one(20, peer(&format!("198.51.100.{number}")), at(1));
    }
    let decision = crowded.one(20, peer("192.0.2.7"), at(1));
    assert_eq!(decision.held, Some(Held::GoodShare), "{:?}", decision.story.notes);
    // A decision about requests touches no packet, and so nobody else's.
    let mut other = Scores::new(&config, 64);
    (1..3).for_each(|who| drop(other.observe(&good(peer("192.0.2.7"), Some(who), 1, at(0)))));
    assert_eq!(other.one(20, believed("192.0.2.7"), at(1)).held, None);
}

#[test]
fn a_lift_teaches_for_an_hour() {
    let mut scores = scores(vec![rule("stuffing", 20)]);
    let (source, subject) = (peer("192.0.2.7"), kernel("192.0.2.7/32"));
    scores.one(20, source, at(0));
    scores.lift(subject, at(10));
    assert_eq!(scores.times(39, source, at(11)), []);
    let decision = scores.one(1, source, at(11));
    assert_eq!((decision.times, decision.story.wanted), (1, 40.0), "what was wrong does not count");
    let note = "it was lifted once within the last hour, so it takes 2 times the evidence";
    assert_eq!(decision.story.notes, [note]);
    scores.lift(subject, at(12));
    assert_eq!(scores.times(79, source, at(13)), []);
    scores.forget(subject, at(14));
    assert_eq!(scores.times(19, source, at(14)), []);
    assert_eq!(scores.one(1, source, at(14)).times, 1, "nothing is known of it");
    scores.lift(subject, at(20));
    assert_eq!(scores.one(20, source, at(21 + HOUR)).story.wanted, 20.0, "an hour has passed");
}

#[test]
fn what_could_not_be_enforced_counts_nowhere() {
    let mut config = feedback(vec![rule("stuffing", 1)]);
    config.ceiling.bans_per_minute = 1;
    let mut scores = Scores::new(&Arc::new(config), 64);
    let protected = peer("192.0.2.7");
    scores.one(1, protected, at(0));
    scores.refused(kernel("192.0.2.7/32"), "stuffing", at(0));
    assert_eq!(scores.one(1, peer("192.0.2.8"), at(1)).held, None, "there is room for it");
    assert_eq!(scores.times(5, protected, at(599)), [], "it is not said again and again");
    assert_eq!(scores.one(1, protected, at(601)).times, 1);
}

#[test]
fn a_stronger_measure_follows_a_weaker_one_and_not_the_other_way() {
    let slow_down = Measure::SlowDown { profile: "tight".to_owned() };
    let mut scores = scores(vec![
        FeedbackRule { measure: slow_down, ..rule("slow", 5) },
        rule("ban", 10),
        FeedbackRule { measure: Measure::Reset, ..rule("reset", 12) },
    ]);
    let source = peer("192.0.2.7");
    let made: Vec<_> = scores.times(30, source, at(0)).into_iter().map(|made| made.rule).collect();
    assert_eq!(made, ["slow".into(), Arc::<str>::from("ban")]);
}

#[test]
fn a_prefix_takes_different_sources() {
    let by = FeedbackBy::Prefix { sources: 3 };
    let mut scores = scores(vec![FeedbackRule { by, ..rule("distributed", 10) }]);
    assert_eq!(scores.times(50, peer("192.0.2.1"), at(0)), [], "one source is not several");
    assert_eq!(scores.times(1, peer("192.0.2.2"), at(1)), []);
    assert_eq!(scores.times(9, peer("192.0.3.3"), at(1)), [], "it lies in another prefix");
    assert_eq!(scores.times(9, believed("192.0.2.3"), at(1)), [], "it is another place");
    let decision = scores.one(1, peer("192.0.2.3"), at(2));
    assert_eq!((decision.subject, decision.story.sources), (kernel("192.0.2.0/24"), 3));
    assert_eq!(scores.times(20, peer("192.0.2.4"), at(3)), []);
    // Sources that were there too long ago are none.
    scores.times(10, peer("2001:db8:0:1::1"), at(4));
    scores.times(10, peer("2001:db8:0:2::1"), at(70));
    assert_eq!(scores.times(10, peer("2001:db8:0:3::1"), at(71)), []);
    assert_eq!(scores.one(1, peer("2001:db8:0:4::1"), at(71)).subject, kernel("2001:db8::/48"));
}

#[test]
fn believed_addresses_are_scored_by_themselves() {
    let mut scores = scores(vec![rule("stuffing", 20)]);
    scores.times(19, believed("2001:db8::1"), at(0));
    assert_eq!(scores.times(19, peer("2001:db8::2"), at(0)), [], "one /64 in two places");
    let decision = scores.one(1, believed("2001:db8::3"), at(0));
    let prefix = "2001:db8::/64".parse().unwrap();
    assert_eq!(decision.subject, Subject { prefix, place: Place::UserSpace });
    assert_eq!(scores.known("2001:db8::9".parse().unwrap(), at(0)).len(), 2);
    assert_eq!(scores.known("2001:db8:1::9".parse().unwrap(), at(0)), []);
}

#[test]
fn only_what_happens_under_pressure_counts_where_a_rule_says_so() {
    let mut scores = scores(vec![FeedbackRule { under_pressure: true, ..rule("hard_times", 1) }]);
    let on = |route: &str, seconds| {
        let route = Some(route.into());
        let signal = evidence(peer("192.0.2.7"), Signal::AuthFailed, at(seconds));
        Report::Odd(Box::new(Evidence { route, ..signal }))
    };
    assert_eq!(scores.observe(&on("a", 0)), []);
    scores.observe(&Report::Pressure("a".into(), at(1)));
    assert_eq!(scores.observe(&on("b", 2)), []);
    assert_eq!(scores.observe(&on("a", 11)), [], "ten seconds have passed");
    scores.observe(&Report::Pressure("a".into(), at(12)));
    assert_eq!(scores.observe(&on("a", 21)).len(), 1);
}

#[test]
fn weights_and_limits_are_minded() {
    let mut rule = rule("limited", 3);
    rule.signals = vec![Signal::RateLimited, Signal::NotFound];
    rule.limit = Some("logins".to_owned());
    let mut config = feedback(vec![rule]);
    config.weights[Signal::NotFound as usize] = 500;
    config.weights[Signal::NoRequest as usize] = 0;
    let mut scores = Scores::new(&Arc::new(config), 64);
    let source = peer("192.0.2.7");
    let limited = |limit: &str| {
        let signal = evidence(source, Signal::RateLimited, at(0));
        Report::Odd(Box::new(Evidence { limit: Some(limit.into()), ..signal }))
    };
    for report in [
        limited("logins"),
        limited("others"),
        odd(source, Signal::RateLimited, at(0)),
        odd(source, Signal::NoRequest, at(0)),
        odd(source, Signal::NotFound, at(0)),
        limited("logins"),
    ] {
        assert_eq!(scores.observe(&report), []);
    }
    let decisions = scores.observe(&odd(source, Signal::NotFound, at(1)));
    assert_eq!(decisions[0].story.score, 3.0);
    assert_eq!(scores.numbers().signals[Signal::NoRequest as usize], 1);
}

#[test]
fn a_dry_run_shows_what_would_be() {
    let mut config = feedback(vec![rule("stuffing", 20)]);
    config.dry_run = true;
    config.ceiling.bans_per_minute = 2;
    let mut scores = Scores::new(&Arc::new(config.clone()), 64);
    let source = |number: u8| peer(&IpAddr::from([192, 0, 2, number]).to_string());
    for number in [1, 2] {
        assert_eq!(scores.one(20, source(number), at(0)).held, Some(Held::DryRun));
    }
    assert_eq!(scores.one(20, source(3), at(0)).held, Some(Held::BansPerMinute));
    assert_eq!(scores.one(40, source(1), at(601)).times, 2);
    assert_eq!(scores.snapshot(at(602))[0].holds, None);
    config.dry_run = false;
    scores.configure(&Arc::new(config), 64);
    let first = scores.one(20, source(1), at(602));
    assert_eq!((first.held, first.times), (None, 1), "nothing had been enforced");
}

#[test]
fn a_reload_keeps_what_counts_the_same() {
    let mut config = feedback(vec![rule("stuffing", 20), rule("other", 1000)]);
    let mut scores = Scores::new(&Arc::new(config.clone()), 64);
    let source = peer("192.0.2.7");
    scores.times(15, source, at(0));
    config.rules.remove(1);
    config.rules[0].count = 16;
    scores.configure(&Arc::new(config.clone()), 64);
    assert_eq!(scores.one(1, source, at(1)).story.score, 16.0);
    scores.times(15, peer("192.0.2.8"), at(2));
    config.rules[0].per = Duration::from_secs(30);
    scores.configure(&Arc::new(config.clone()), 64);
    assert_eq!(scores.times(15, peer("192.0.2.8"), at(3)), [], "another time, another evidence");
    config.max_sources = 1024;
    scores.configure(&Arc::new(config), 56);
    assert_eq!(scores.numbers().sources, 0);
    assert_eq!(scores.times(40, source, at(4)), [], "what was decided holds");
}

#[test]
fn what_was_decided_survives_a_restart() {
    let config = Arc::new(feedback(vec![rule("stuffing", 20)]));
    let mut before = Scores::new(&config, 64);
    let (source, lifted) = (peer("192.0.2.7"), peer("192.0.2.8"));
    before.one(20, source, at(0));
    before.one(20, lifted, at(0));
    before.lift(kernel("192.0.2.8/32"), at(1));
    let snapshot = before.snapshot(at(5));
    // Another boot: the one clock begins anew, the other goes on.
    let later =
        |seconds: u64| Now { boot: BootTime(seconds * 1_000_000_000), utc: at(seconds).utc };
    let mut after = Scores::new(&config, 64);
    snapshot.iter().for_each(|one| after.restore(one, later(10)));
    assert_eq!(after.times(20, source, later(599)), []);
    assert_eq!(after.one(20, source, later(601)).times, 2);
    assert_eq!(after.times(39, lifted, later(601)), []);
    assert_eq!(after.one(1, lifted, later(601)).times, 1);
}

#[test]
fn a_ban_that_was_pinned_elsewhere_holds() {
    let mut scores = scores(vec![rule("stuffing", 20)]);
    let holds = Some((Arc::<str>::from("by hand"), Measure::Ban));
    let (subject, until) = (kernel("192.0.2.7/32"), UtcMillis(u64::MAX));
    let lenient_until = UtcMillis(0);
    let pinned =
        Remembered { subject, times: 3, lasts_ms: 1000, until, holds, lifts: 0, lenient_until };
    scores.restore(&pinned, at(0));
    assert_eq!(scores.times(100, peer("192.0.2.7"), at(1000 * HOUR)), []);
    scores.lift(subject, at(1000 * HOUR));
    assert_eq!(scores.one(40, peer("192.0.2.7"), at(1000 * HOUR)).times, 3);
}

#[test]
fn each_source_counts_with_at_most_a_hundred_good_requests() {
    let mut scores = scores(vec![]);
    let source = |number: u8| peer(&IpAddr::from([192, 0, 2, number]).to_string());
    scores.observe(&good(source(1), None, 1_000_000, at(0)));
    scores.observe(&good(source(1), None, 1_000_000, at(120)));
    scores.observe(&good(source(2), None, 30, at(120)));
    let requests = |scores: &Scores, prefix: &str, seconds| {
        scores.good.requests(&kernel(prefix), at(seconds).boot)
    };
    assert_eq!(requests(&scores, "192.0.2.1/32", 120), (100, 130));
    assert_eq!(requests(&scores, "192.0.2.0/24", 120), (130, 130));
    assert_eq!(requests(&scores, "192.0.2.0/24", 660), (30, 30));
    // Whom there is no room for any more counts no more, and who is shared goes last.
    for consumer in [1, 2] {
        scores.observe(&good(source(3), Some(consumer), 1, at(660)));
    }
    for number in 0..5000_u16 {
        let [high, low] = number.to_be_bytes();
        let source = peer(&IpAddr::from([10, 0, high, low]).to_string());
        scores.observe(&good(source, None, 1, at(661)));
    }
    assert_eq!(requests(&scores, "192.0.2.3/32", 661), (2, 1001));
    assert_eq!(scores.good.consumers([kernel("192.0.2.3/32")], at(661).boot), 2);
    (0..64).for_each(|second| scores.tick(at(2000 + second)));
    assert_eq!(requests(&scores, "192.0.2.3/32", 2064), (0, 0));
}
