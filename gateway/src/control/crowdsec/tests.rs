//! Answers of a crowdsec by example: what becomes of the bans here.

use crate::base::prefix::display;
use crate::control::policy::bans::commands::Verb;
use crate::control::policy::bans::tests::{NOW, after as later, decision, policy, subject};

use super::ask::pause;
use super::*;
use crate::feedback::crowdsec::Heard;

const MINUTE: Duration = Duration::from_secs(60);

struct House {
    policy: Policy,
    feedback: Feedback,
    crowdsec: Crowdsec,
    _folder: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let policy = policy(&folder, NOW);
        let config = crate::config::embedded().unwrap();
        let feedback = Feedback::new(mpsc::channel(1).1, &config, &policy);
        let crowdsec = Crowdsec {
            config: FeedbackCrowdsec {
                url: http::Uri::from_static("http://127.0.0.1:1"),
                ca: None,
                key: SecretSource::Env("K".to_owned()),
                every: MINUTE,
            },
            key: Secret::new(*b"k"),
            asking: None,
            arrived: None,
            work: Work::default(),
            waiting: BTreeMap::new(),
            peers: Vec::new(),
            failure: None,
            figures: Figures::default(),
        };
        Self { policy, feedback, crowdsec, _folder: folder }
    }

    /// Carries an answer out to its end; after how many turns.
    fn says(&mut self, whole: bool, (new, deleted): (&[(&str, u64)], &[&str]), at: Now) -> usize {
        let verdict = |(prefix, seconds): &(&str, u64)| Verdict {
            prefix: prefix.parse().unwrap(),
            lasts: Duration::from_secs(*seconds),
            scenario: "ssh-bf".to_owned(),
        };
        let mut heard = Heard {
            new: new.iter().map(verdict).collect(),
            deleted: deleted.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            ..Heard::default()
        };
        heard.new.sort_by_key(|verdict| verdict.prefix);
        self.hears(whole, Ok(heard), at)
    }

    fn hears(&mut self, whole: bool, heard: Result<Heard, (Became, String)>, at: Now) -> usize {
        self.crowdsec.arrived = Some(Answer { whole, peers: Vec::new(), heard, at });
        for turn in 1.. {
            self.crowdsec.take((&mut self.policy, &mut self.feedback), (false, at));
            if self.crowdsec.work.is_done() {
                return turn;
            }
        }
        unreachable!()
    }

    /// Who is held off, by whom.
    fn holding(&self, at: Now) -> Vec<String> {
        let bans = self.policy.bans().iter().filter(|(_, ban)| ban.holds(at.boot));
        bans.map(|(one, ban)| format!("{} {}", display(&one.prefix), ban.author)).collect()
    }

    fn count(&self, result: &str) -> u64 {
        self.crowdsec.figures.decisions.get(result).copied().unwrap_or_default()
    }

    fn ban(&mut self, prefix: &str, lasts: Duration, at: Now) -> Outcome {
        let one = decision(subject(prefix, Place::Kernel), lasts);
        self.policy.enforce_ban(&Decision { at, ..one }, &Author::User(7), at)
    }
}

#[test]
fn a_long_answer_is_carried_out_in_turns_and_the_next_one_changes_only_what_differs() {
    let mut house = House::new();
    let all: Vec<String> = (0..200).map(|last| format!("192.0.2.{last}/32")).collect();
    let said: Vec<(&str, u64)> = all.iter().map(|one| (one.as_str(), 3600)).collect();
    assert_eq!(house.says(true, (&said, &[]), NOW), 4);
    assert_eq!((house.holding(NOW).len(), house.count("enforced")), (200, 200));
    assert_eq!(house.holding(NOW)[0], "192.0.2.0 outside crowdsec");
    assert_eq!(house.policy.take_ban_changes().len(), 200);
    // The same once more, by answers that took their time; one is gone, and one has become shorter.
    let at = later(MINUTE);
    let mut again: Vec<(&str, u64)> =
        said[1..].iter().map(|(one, seconds)| (*one, seconds - 58)).collect();
    again[0].1 = 600;
    house.says(true, (&again, &[]), at);
    assert_eq!(house.holding(at).len(), 199);
    let told: Vec<&str> =
        house.policy.take_ban_changes().iter().map(|change| change.what.name()).collect();
    assert_eq!(told, ["lifted", "lifted", "made"]);
    assert_eq!((house.count("withdrawn"), house.count("standing")), (2, 198));
    let one = subject("192.0.2.1/32", Place::Kernel);
    let end = house.policy.bans().find(&one).unwrap().end.until().boot;
    assert_eq!(end, later(MINUTE * 11).boot);
}

#[test]
fn whatever_fails_the_bans_stay_and_what_changes_is_done() {
    let mut house = House::new();
    house.says(true, (&[("192.0.2.1/32", 60), ("192.0.2.2/32", 600)], &[]), NOW);
    let failure = (Became::Forbidden, "no".to_owned());
    house.hears(true, Err(failure), NOW);
    let view = house.crowdsec.view(&house.policy, NOW);
    assert_eq!((view.up, view.failures, view.bans), (false, 1, 2));
    house.says(false, (&[("192.0.2.3/32", 60)], &["192.0.2.2/32", "192.0.2.9/32"]), NOW);
    assert_eq!(house.holding(NOW), ["192.0.2.1 outside crowdsec", "192.0.2.3 outside crowdsec"]);
    let view = house.crowdsec.view(&house.policy, NOW);
    assert_eq!((view.up, view.failures, view.bans, view.error), (true, 0, 2, None));
    assert_eq!(house.count("withdrawn"), 1);
    house.policy.expire(later(MINUTE)).unwrap();
    assert!(house.holding(later(MINUTE)).is_empty());
    let text = page(Some(&house.crowdsec), &house.policy, NOW);
    for series in [
        "gateway_feedback_crowdsec_answers_total{result=\"forbidden\"} 1\n",
        "gateway_feedback_crowdsec_answers_total{result=\"understood\"} 2\n",
        "gateway_feedback_crowdsec_decisions_total{result=\"guarded\"} 0\n",
    ] {
        assert!(text.contains(series), "{series}{text}");
    }
}

#[test]
fn nobodys_bans_but_its_own_are_taken_back() {
    let mut house = House::new();
    let long = MINUTE * 100;
    assert!(matches!(house.ban("192.0.2.1/32", long, NOW), Outcome::Enforced(_)));
    assert!(matches!(house.ban("192.0.2.2/32", MINUTE, NOW), Outcome::Enforced(_)));
    let all = [("192.0.2.1/32", 600), ("192.0.2.2/32", 600), ("192.0.2.3/32", 600)];
    house.says(true, (&all, &[]), NOW);
    // Somebody wants the third one, too, for less time than it is held off anyhow.
    assert_eq!(house.ban("192.0.2.3/32", MINUTE * 2, NOW), Outcome::Standing);
    let holding = house.holding(NOW);
    let expected = ["192.0.2.1 user 7", "192.0.2.2 outside crowdsec", "192.0.2.3 outside crowdsec"];
    assert_eq!(holding, expected);
    let deleted = ["192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32"];
    house.says(false, (&[], &deleted), NOW);
    assert_eq!(house.holding(NOW), ["192.0.2.1 user 7", "192.0.2.2 user 7", "192.0.2.3 user 7"]);
    let end = |house: &House, prefix| {
        let ban = house.policy.bans().find(&subject(prefix, Place::Kernel)).unwrap();
        ban.end.until().boot
    };
    assert_eq!(end(&house, "192.0.2.1/32"), later(long).boot);
    assert_eq!(end(&house, "192.0.2.2/32"), later(MINUTE).boot);
    assert_eq!(end(&house, "192.0.2.3/32"), later(MINUTE * 2).boot);
    house.says(false, (&[], &deleted), NOW);
    house.says(true, (&[], &[]), NOW);
    assert_eq!(house.holding(NOW).len(), 3);
}

#[test]
fn what_people_lift_or_pin_holds_against_the_same_answer() {
    let mut house = House::new();
    let all = [("192.0.2.1/32", 6000), ("192.0.2.2/32", 6000)];
    house.says(true, (&all, &[]), NOW);
    let names = |prefix: &str| [prefix.to_owned()];
    let by = (&Author::User(7), NOW);
    house.policy.change_bans(Verb::Lift, &names("192.0.2.1"), by).unwrap();
    house.policy.change_bans(Verb::Pin, &names("192.0.2.2"), by).unwrap();
    house.says(true, (&all, &[]), NOW);
    assert_eq!((house.holding(NOW).len(), house.count("lifted")), (1, 1));
    house.says(true, (&[], &[]), NOW);
    assert_eq!(house.holding(NOW), ["192.0.2.2 outside crowdsec"], "it is pinned");
    // What it decides anew is no mistake of before.
    house.says(false, (&all[..1], &[]), NOW);
    assert_eq!(house.holding(NOW).len(), 2);
    assert!(house.policy.bans().find(&subject("192.0.2.1/32", Place::Kernel)).is_some());
}

#[test]
fn who_is_protected_is_not_banned_and_that_is_shown_with_who_wanted_it() {
    let mut house = House::new();
    house.says(true, (&[("10.0.0.5/32", 600)], &[]), NOW);
    assert_eq!((house.holding(NOW).len(), house.count("guarded")), (0, 1));
    let held = house.policy.bans().held().next().unwrap();
    assert_eq!(
        (held.author.to_string().as_str(), &*held.decision.rule),
        ("outside crowdsec", "ssh-bf")
    );
}

#[test]
fn what_waits_for_the_guard_is_done_later_unless_it_was_taken_back_or_has_ended() {
    let mut house = House::new();
    let all = ["10.0.0.5/32", "10.0.0.6/32", "10.0.0.7/32", "10.0.0.8/32"];
    let mut protected = crate::rules::protected::Protected::default();
    protected.add("10.0.0.0/24".parse().unwrap(), "a test");
    house.policy.refresh(protected, NOW).unwrap();
    let before = house.policy.guard_changes();
    house.says(false, (&[(all[0], 600), (all[1], 600), (all[2], 60)], &[]), NOW);
    assert_eq!((house.count("guarded"), house.crowdsec.waiting.len()), (3, 3));
    house.says(false, (&[], &all[1..2]), NOW);
    house.policy.refresh(crate::rules::protected::Protected::default(), NOW).unwrap();
    assert!(house.policy.guard_changes() > before);
    let late = later(MINUTE);
    house.crowdsec.look_again(&mut |_| false, late);
    assert_eq!(house.crowdsec.waiting.len(), 1, "one was taken back, one has ended");
    house.crowdsec.look_again(&mut |_| true, late);
    house.crowdsec.take((&mut house.policy, &mut house.feedback), (false, late));
    assert!(house.crowdsec.work.is_done() && house.crowdsec.waiting.is_empty());
    assert_eq!(house.holding(late), ["10.0.0.5 outside crowdsec"]);
    let ban = house.policy.bans().find(&subject(all[0], Place::Kernel)).unwrap();
    assert_eq!(ban.end.until().boot, later(MINUTE * 10).boot, "for the rest of its time");
}

#[test]
fn who_does_not_answer_is_asked_later_and_later() {
    let every = Duration::from_secs(10);
    let seconds = |every: Duration, failures| pause(every, failures, 100).as_secs();
    let pauses = [0, 1, 2, 3, 4, 40, u32::MAX].map(|failures| seconds(every, failures));
    assert_eq!(pauses, [10, 10, 20, 40, 60, 60, 60]);
    assert_eq!(seconds(MINUTE * 5, 9), 300);
    for random in 0..1000 {
        assert!((9..=11).contains(&pause(every, 0, random).as_secs()));
    }
}
