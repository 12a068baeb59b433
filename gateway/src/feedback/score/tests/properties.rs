//! What holds whatever is reported.

use proptest::prelude::*;

use super::*;

/// One report of a list: the time since the last one, by whom, and what.
#[derive(Clone, Debug)]
struct Step {
    millis: u64,
    source: u8,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Odd(Signal),
    Good(u32),
    /// By this consumer.
    Known(u64),
    Tick,
    Nothing,
}

fn signals() -> impl Strategy<Value = What> {
    prop::sample::select(vec![Signal::AuthFailed, Signal::NotFound, Signal::Scanner])
        .prop_map(What::Odd)
}

fn anything() -> impl Strategy<Value = What> {
    prop_oneof![
        6 => signals(),
        1 => (1_u32..200).prop_map(What::Good),
        1 => (1_u64..4).prop_map(What::Known),
        1 => Just(What::Tick),
    ]
}

fn steps(what: impl Strategy<Value = What>, sources: u8) -> impl Strategy<Value = Vec<Step>> {
    let millis = prop_oneof![8 => 0_u64..3_000, 1 => 0_u64..100_000, 1 => 0_u64..1_000_000];
    let step = (millis, 0..sources, what);
    let step = step.prop_map(|(millis, source, what)| Step { millis, source, what });
    prop::collection::vec(step, 1..150)
}

fn source(number: u8) -> Source {
    peer(&IpAddr::from([192, 0, 2, number]).to_string())
}

fn report(step: &Step, now: Now) -> Option<Report> {
    let source = source(step.source);
    match step.what {
        What::Odd(signal) => Some(odd(source, signal, now)),
        What::Good(requests) => Some(good(source, None, requests, now)),
        What::Known(consumer) => Some(good(source, Some(consumer), 1, now)),
        What::Tick | What::Nothing => None,
    }
}

/// All decisions, each with the number of the step that made it.
fn run(config: &Feedback, steps: &[Step]) -> (Scores, Vec<(usize, Decision)>) {
    let mut scores = Scores::new(&Arc::new(config.clone()), 64);
    let (mut now, mut made) = (0, Vec::new());
    for (index, step) in steps.iter().enumerate() {
        now += step.millis;
        match report(step, millis(now)) {
            Some(report) => {
                made.extend(scores.observe(&report).into_iter().map(|decision| (index, decision)));
            }
            None if matches!(step.what, What::Tick) => scores.tick(millis(now)),
            None => {}
        }
    }
    (scores, made)
}

fn times(steps: &[Step]) -> Vec<u64> {
    let sum = |now: &mut u64, step: &Step| {
        *now += step.millis;
        Some(*now)
    };
    steps.iter().scan(0, sum).collect()
}

fn config(count: u32, per: u64) -> Feedback {
    let of = |name, signals: &[Signal], count, by| FeedbackRule {
        signals: signals.to_vec(),
        by,
        per: Duration::from_millis(per),
        lasts: Duration::from_secs(30),
        doubling_up_to: Duration::from_secs(300),
        ..rule(name, count)
    };
    let all = [Signal::AuthFailed, Signal::NotFound];
    let mut config = feedback(vec![
        of("by_source", &all, count, FeedbackBy::Source),
        of("scanner", &[Signal::Scanner], count + 1, FeedbackBy::Source),
        of("by_prefix", &all, 2 * count, FeedbackBy::Prefix { sources: 2 }),
    ]);
    config.weights[Signal::NotFound as usize] = 500;
    config.ceiling.bans_per_minute = 10_000;
    config
}

/// What a rule could know of a subject within a time, and from how many sources.
fn evidence_of(
    config: &Feedback,
    steps: &[Step],
    decision: &Decision,
    from: u64,
    to: u64,
) -> (f64, usize) {
    let rule = config.rules.iter().find(|rule| rule.name == decision.rule).unwrap();
    let counts = steps.iter().zip(times(steps)).filter_map(|(step, at)| match step.what {
        What::Odd(signal) if rule.signals.contains(&signal) && (from..=to).contains(&at) => {
            let within = decision.subject.prefix.contains(&source(step.source).ip());
            within.then_some((step.source, f64::from(config.weights[signal as usize]) / 1000.0))
        }
        _ => None,
    });
    let counts: Vec<_> = counts.collect();
    let sources: std::collections::HashSet<_> = counts.iter().map(|(source, _)| source).collect();
    (counts.iter().map(|(_, weight)| weight).sum(), sources.len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_decision_without_its_evidence(
        steps in steps(anything(), 4), count in 1_u32..8, per in 1_000_u64..100_000,
    ) {
        let config = config(count, per);
        let at = times(&steps);
        for (index, decision) in run(&config, &steps).1 {
            let rule = config.rules.iter().find(|rule| rule.name == decision.rule).unwrap();
            // Strictly younger than `per`.
            let from = (at[index] + 1).saturating_sub(per);
            let (sum, sources) = evidence_of(&config, &steps[..=index], &decision, from, at[index]);
            prop_assert!(sum >= f64::from(rule.count), "{} of {}: {decision:?}", sum, rule.count);
            prop_assert!(decision.story.score <= sum);
            if let FeedbackBy::Prefix { sources: wanted } = rule.by {
                prop_assert!(sources >= wanted as usize);
            }
        }
    }

    #[test]
    fn enough_evidence_is_never_overlooked(
        steps in steps(signals(), 3), count in 1_u32..8, per in 1_000_u64..100_000,
    ) {
        let config = config(count, per);
        let (at, made) = (times(&steps), run(&config, &steps).1);
        for (index, step) in steps.iter().enumerate() {
            let first = made.iter().position(|(made, decision)| {
                *made <= index && decision.subject.prefix.contains(&source(step.source).ip())
            });
            if first.is_some() || !matches!(step.what, What::Odd(Signal::AuthFailed)) {
                continue;
            }
            let subject = kernel(&source(step.source).ip().to_string());
            let asked = Decision { subject, ..any_decision() };
            let from = at[index].saturating_sub(per * 7 / 8);
            let (sum, _) = evidence_of(&config, &steps[..=index], &asked, from, at[index]);
            prop_assert!(sum < f64::from(count), "{} of {}: nothing at step {}", sum, count, index);
        }
    }

    #[test]
    fn more_evidence_never_delays_a_decision(
        steps in steps(signals(), 3),
        more in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..3, signals()), 0..30),
        count in 1_u32..8, per in 1_000_u64..100_000,
    ) {
        let config = config(count, per);
        let mut added = steps.clone();
        for (index, source, what) in more {
            let index = index.index(added.len() + 1);
            added.insert(index, Step { millis: 0, source, what });
        }
        let first = |steps: &[Step]| {
            let (at, mut first) = (times(steps), HashMap::new());
            for (index, decision) in run(&config, steps).1 {
                first.entry(decision.subject).or_insert(at[index]);
            }
            first
        };
        let (before, after) = (first(&steps), first(&added));
        for (subject, at) in before {
            prop_assert!(after.get(&subject).is_some_and(|sooner| *sooner <= at), "{subject:?}");
        }
    }

    #[test]
    fn nobody_is_decided_about_by_what_others_did(
        steps in steps(anything(), 4), count in 1_u32..8, per in 1_000_u64..100_000,
        bans in 1_u32..100,
    ) {
        let mut config = config(count, per);
        let alone = |steps: &[Step], number| {
            let others = |step: &Step| step.source != number && matches!(step.what, What::Odd(_));
            let quiet = steps.iter().map(|step| match others(step) {
                true => Step { what: What::Nothing, ..step.clone() },
                false => step.clone(),
            });
            quiet.collect::<Vec<_>>()
        };
        // But for signals that count no longer: how soon they are swept out depends on the others.
        let of = |made: &[(usize, Decision)], number| {
            let subject = kernel(&source(number).ip().to_string());
            let mut made = made.to_vec();
            made.retain(|(_, decision)| decision.subject == subject);
            made.iter_mut().for_each(|(_, decision)| decision.story.signals.clear());
            made
        };
        let all = run(&config, &steps).1;
        for number in 0..4 {
            prop_assert_eq!(of(&all, number), of(&run(&config, &alone(&steps, number)).1, number));
        }
        // Where ceilings hold decisions back there are fewer, and never others.
        config.ceiling = Ceiling { bans_per_minute: bans, good_share: Share::per_million(200_000) };
        let held = run(&config, &steps).1;
        for number in 0..4 {
            let first = |made: &[(usize, Decision)]| {
                let of = of(made, number);
                of.iter().find(|(_, decision)| decision.held.is_none()).map(|(index, _)| *index)
            };
            let (with, without) = (first(&held), first(&all));
            prop_assert!(with.is_none_or(|with| without.is_some_and(|without| without <= with)));
        }
    }

    #[test]
    fn the_same_reports_make_the_same_decisions(
        steps in steps(anything(), 20), count in 1_u32..4, max_sources in 1_u32..12,
    ) {
        let mut config = Feedback { max_sources, ..config(count, 60_000) };
        config.ceiling = Ceiling { bans_per_minute: 3, good_share: Share::per_million(200_000) };
        let ((one, made), (other, again)) = (run(&config, &steps), run(&config, &steps));
        prop_assert_eq!(made, again);
        prop_assert_eq!(one.numbers(), other.numbers());
        let now = millis(*times(&steps).last().unwrap());
        prop_assert_eq!(one.snapshot(now), other.snapshot(now));
    }

    #[test]
    fn memory_is_bounded(
        steps in steps(anything(), 60), count in 1_u32..4, max_sources in 1_u32..12,
    ) {
        let config = Feedback { max_sources, ..config(count, 600_000) };
        let (scores, _) = run(&config, &steps);
        let (most, numbers) = (max_sources as usize, scores.numbers());
        prop_assert!(numbers.sources.max(numbers.prefixes).max(numbers.remembered) <= most);
        for suspects in [&scores.sources, &scores.prefixes] {
            let (kept, most_kept) = suspects.kept();
            prop_assert!(kept <= most_kept, "{} of {}", kept, most_kept);
        }
        prop_assert!(scores.good.len() <= 2 * most);
    }

    #[test]
    fn ceilings_hold(
        steps in steps(anything(), 40), bans in 1_u32..6, share in 0_u32..500_000,
    ) {
        let mut config = config(1, 60_000);
        config.rules.truncate(2);
        let good_share = Share::per_million(share);
        config.ceiling = Ceiling { bans_per_minute: bans, good_share };
        let mut scores = Scores::new(&Arc::new(config), 64);
        let (mut now, mut enforced) = (0, Vec::<(u64, u64)>::new());
        for step in &steps {
            now += step.millis;
            let Some(report) = report(step, millis(now)) else { continue };
            for decision in scores.observe(&report).into_iter().filter(|one| one.held.is_none()) {
                let at = millis(now).boot;
                let (hits, all) = (scores.hit_at(decision.subject, at), scores.good.total(at));
                let recent = |within: u64| enforced.iter().filter(move |(at, _)| at + within > now);
                prop_assert!(recent(60_000).count() < bans as usize);
                let hit: u64 = recent(600_000).map(|(_, hits)| hits).sum::<u64>() + hits;
                if recent(600_000).count() >= 3 && hits > 0 {
                    prop_assert!(good_share.compare(hit, all) != std::cmp::Ordering::Greater);
                }
                enforced.push((now, hits));
            }
        }
    }

    #[test]
    fn good_requests_are_those_of_all_who_are_remembered(
        steps in steps(anything(), 40), max_sources in 1_u32..50,
    ) {
        let config = Feedback { max_sources, ..config(1000, 60_000) };
        let (scores, _) = run(&config, &steps);
        let now = millis(*times(&steps).last().unwrap()).boot;
        let own = (0..40).map(|number| {
            scores.good.requests(&kernel(&source(number).ip().to_string()), now).0
        });
        let (sum, (_, all)) = (own.sum::<u64>(), scores.good.requests(&kernel("192.0.2.0/24"), now));
        prop_assert_eq!(sum, all);
        prop_assert_eq!(scores.good.requests(&kernel("192.0.2.0/24"), now).0, all);
    }
}

fn any_decision() -> Decision {
    Decision {
        subject: kernel("192.0.2.0/32"),
        rule: "by_source".into(),
        measure: Measure::Ban,
        lasts: Duration::ZERO,
        times: 1,
        at: at(0),
        story: crate::feedback::decision::Story::default(),
        held: None,
    }
}

/// Whom a decision of somebody else is about: any length, in one of four /16 of IPv4 or of IPv6.
fn prefixes() -> impl Strategy<Value = (IpNet, bool)> {
    let v4 = (0_u8..4, 0_u8..3, 0_u8..3, 8_u8..=32).prop_map(|(b, c, d, length)| {
        IpNet::new(IpAddr::from([10, b, c, d * 85]), length).unwrap()
    });
    let v6 = (0_u16..4, 0_u16..3, 16_u8..=128).prop_map(|(c, d, length)| {
        IpNet::new(IpAddr::from([0x2001, 0xdb8, c, d, 0, 0, 0, 1]), length).unwrap()
    });
    (prop_oneof![v4, v6].prop_map(|prefix| prefix.trunc()), any::<bool>())
}

proptest! {
    /// What a prefix would hit is never less than what was served to addresses in it, and exactly that where the prefix
    /// is no part of those that sources are added up by.
    #[test]
    fn what_a_prefix_would_hit_is_what_was_served_there(
        served in prop::collection::vec((prefixes(), 1_u32..9), 1..40),
        asked in prop::collection::vec(prefixes(), 1..20),
    ) {
        let mut scores = scores(vec![]);
        let mut all: Vec<((IpNet, bool), u64)> = Vec::new();
        for ((prefix, is_believed), requests) in served {
            let address = prefix.addr().to_string();
            let source = if is_believed { believed(&address) } else { peer(&address) };
            scores.observe(&good(source, None, requests, at(0)));
            let bits = bits_of(prefix.addr(), scores.source_bits);
            let source = IpNet::new(prefix.addr(), bits).unwrap().trunc();
            let counted = all.iter_mut().find(|(known, _)| *known == (source, is_believed));
            match counted {
                Some((_, sum)) => *sum = (*sum + u64::from(requests)).min(100),
                None => all.push(((source, is_believed), u64::from(requests))),
            }
        }
        for (prefix, is_believed) in asked {
            let place = if is_believed { Place::UserSpace } else { Place::Kernel };
            let subject = Subject { prefix, place };
            let (hits, total) = scores.hit_by(&subject, at(0).boot);
            let touches = |one: &IpNet| prefix.contains(one) || one.contains(&prefix);
            let within = all.iter().filter(|((one, other), _)| {
                touches(one) && (*other || place == Place::Kernel)
            });
            let model: u64 = within.map(|(_, sum)| sum).sum();
            prop_assert_eq!(total, all.iter().map(|(_, sum)| sum).sum::<u64>());
            let length = prefix.prefix_len();
            let is_part = length > bits_of(prefix.addr(), scores.config.prefix_bits)
                && length < bits_of(prefix.addr(), scores.source_bits);
            match is_part {
                true => prop_assert!(hits >= model),
                false => prop_assert_eq!(hits, model),
            }
        }
    }
}
