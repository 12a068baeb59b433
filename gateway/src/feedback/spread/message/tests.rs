//! Tests of messages: what is believed, and each reason why not.

use proptest::prelude::*;

use super::*;
use crate::feedback::decision::SignalView;

const NOW: UtcMillis = UtcMillis(1_800_000_000_000);

fn keys(group: &str, secrets: &[u8]) -> Keys {
    let secrets: Vec<Secret> = secrets.iter().map(|byte| Secret::new([*byte; 32])).collect();
    Keys::new(group, &secrets).unwrap()
}

fn ban(until: UtcMillis) -> Ban {
    let signal = SignalView {
        at: NOW,
        signal: "auth_failed".to_owned(),
        source: "203.0.113.7".parse().unwrap(),
        request_id: Some("r-1".to_owned()),
        route: Some("api".to_owned()),
        limit: None,
        reason: None,
    };
    let story =
        Story { score: 20.0, wanted: 20.0, signals: vec![signal], sources: 1, ..Story::default() };
    let measure = Measure::SlowDown { profile: "tight".to_owned() };
    Ban { measure, rule: "credential_stuffing".to_owned(), until, times: 2, story }
}

fn message(what: What) -> Message {
    Message {
        order: Order { made: NOW, instance: 7, sequence: 9 },
        subject: Subject { prefix: "203.0.113.7/32".parse().unwrap(), place: Place::Kernel },
        what,
        gateway: "one".to_owned(),
    }
}

fn soon() -> UtcMillis {
    NOW.after(Duration::from_mins(10))
}

#[test]
fn what_is_sent_is_what_arrives() {
    let keys = keys("g", &[1]);
    for what in [What::Ban(ban(soon())), What::Pin(ban(soon())), What::Lift, What::Forget] {
        let sent = message(what);
        assert_eq!(keys.open(&keys.seal(&sent), NOW), Ok(sent));
    }
}

#[test]
fn a_forged_lift_is_as_bad_as_a_forged_ban() {
    let ours = keys("g", &[1]);
    for what in [What::Lift, What::Ban(ban(soon())), What::Pin(ban(soon())), What::Forget] {
        let sent = message(what);
        for other in [keys("g", &[2]), keys("another", &[1])] {
            assert_eq!(ours.open(&other.seal(&sent), NOW), Err(Refused::Forged));
        }
        let mut unsigned = ours.seal(&sent);
        unsigned[2..66].fill(b'0');
        assert_eq!(ours.open(&unsigned, NOW), Err(Refused::Forged));
        let empty = [b"1 ", &ours.seal(&sent)[67..]].concat();
        assert_eq!(ours.open(&empty, NOW), Err(Refused::Malformed));
    }
}

#[test]
fn keys_change_without_a_moment_without() {
    let sent = message(What::Lift);
    let (old, both, new) = (keys("g", &[1]), keys("g", &[2, 1]), keys("g", &[2]));
    for (from, to, good) in [(&old, &both, true), (&both, &new, true), (&old, &new, false)] {
        assert_eq!(to.open(&from.seal(&sent), NOW).is_ok(), good);
    }
    assert_eq!(format!("{both:?}"), "2 keys of g");
    let short = Keys::new("g", &[Secret::new(*b"short")]).unwrap_err();
    assert!(short.contains("openssl rand -hex 32"), "{short}");
    assert!(Keys::new("g", &[]).is_err());
}

#[test]
fn each_reason_has_its_name() {
    let keys = keys("g", &[1]);
    let (good, refused) =
        (keys.seal(&message(What::Lift)), |bytes: &[u8], now| keys.open(bytes, now).unwrap_err());
    let early = UtcMillis(NOW.0 - 1 - u64::try_from(AHEAD_MAX.as_millis()).unwrap());
    assert_eq!(refused(&good, early), Refused::Future);
    assert!(keys.open(&good, UtcMillis(early.0 + 1)).is_ok());
    assert_eq!(refused(&good, NOW.after(LASTS_MAX)), Refused::Over);
    assert_eq!(refused(&vec![b'1'; MESSAGE_BYTES_MAX + 1], NOW), Refused::Oversized);
    assert_eq!(refused(&[b"2", &good[1..]].concat(), NOW), Refused::Version);
    for torn in [&good[..100], b"", b"1 ", b"hello", b"\xff"] {
        assert_eq!(refused(torn, NOW), Refused::Malformed);
    }
    let names: std::collections::HashSet<_> = Refused::ALL.map(Refused::name).into();
    assert_eq!(names.len(), Refused::ALL.len());
    for (number, reason) in Refused::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, number);
    }
}

#[test]
fn what_is_signed_and_makes_no_sense_is_refused() {
    let keys = keys("g", &[1]);
    let order = format!("{:016x}{:016x}{:016x}", NOW.0, 1, 1);
    let lift = |prefix: &str| {
        format!(r#"{{"prefix":"{prefix}","place":"kernel","gateway":"a","what":"lift"}}"#)
    };
    assert!(keys.open(&keys.sign(&order, lift("10.0.0.0/8").as_bytes()), NOW).is_ok());
    let of = |ban: Ban| serde_json::to_string(&What::Ban(ban)).unwrap();
    let banned = |what: &str| lift("192.0.2.1").replace("\"lift\"", what);
    let good = banned(&of(ban(soon())));
    assert!(keys.open(&keys.sign(&order, good.as_bytes()), NOW).is_ok());
    let long = ban(NOW.after(LASTS_MAX + Duration::from_millis(1)));
    for nonsense in [
        lift("0.0.0.0/0"),
        lift("::/8"),
        lift("192.0.2.1/24"),
        lift("a"),
        lift("192.0.2.1").replace("kernel", "moon"),
        lift("192.0.2.1").replace("\"a\"", "\"\\u001b[2J\""),
        lift("192.0.2.1").replace("\"a\"", &format!("\"{}\"", "a".repeat(129))),
        banned(&of(long)),
        banned(&of(Ban { times: 0, ..ban(soon()) })),
        good.replace("tight", ""),
        good.replace("20.0", "1e999"),
        good.replace("auth_failed", "\\u202e"),
        "[".repeat(2000),
        String::new(),
    ] {
        let sent = keys.sign(&order, nonsense.as_bytes());
        assert_eq!(keys.open(&sent, NOW), Err(Refused::Malformed), "{nonsense}");
    }
    let pinned = of(ban(NOW.after(LASTS_MAX * 3))).replace("\"ban\":{", "\"pin\":{");
    let renewed_ahead = keys.sign(&order, banned(&pinned).as_bytes());
    assert_eq!(keys.open(&renewed_ahead, NOW), Err(Refused::Future));
}

#[test]
fn a_long_story_is_told_short_and_a_short_one_whole() {
    let keys = keys("g", &[1]);
    let mut long = ban(soon());
    long.rule = "r\u{1b}".repeat(1000);
    long.story.score = f64::INFINITY;
    long.story.notes = vec!["\u{202e}\u{1f980}".repeat(1000); 100];
    long.story.signals = vec![
        SignalView {
            request_id: Some("\u{1f980}".repeat(1000)),
            route: Some("\u{1f980}".repeat(1000)),
            ..long.story.signals[0].clone()
        };
        100
    ];
    let sent = message(What::Ban(long.short()));
    let sealed = keys.seal(&sent);
    assert!(sealed.len() <= MESSAGE_BYTES_MAX, "{}", sealed.len());
    let Ok(Message { what: What::Ban(got), .. }) = keys.open(&sealed, NOW) else {
        panic!("it is refused");
    };
    assert_eq!((got.story.notes.len(), got.story.score), (NOTES_MAX, 0.0));
    let whole = ban(soon());
    assert_eq!(whole.clone().short(), whole);
}

proptest! {
    #[test]
    fn no_bytes_are_believed_and_none_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..5000),
    ) {
        let keys = keys("g", &[1]);
        prop_assert!(keys.open(&bytes, NOW).is_err());
        let order = format!("{:016x}{:016x}{:016x}", NOW.0, 1, 1);
        prop_assert!(read(&order, &bytes, NOW).is_err());
    }

    #[test]
    fn whatever_is_changed_in_a_message_it_is_no_longer_believed(
        at in 0_usize..10_000,
        to in any::<u8>(),
    ) {
        let keys = keys("g", &[1]);
        let good = keys.seal(&message(What::Ban(ban(soon()))));
        let mut bad = good.clone();
        let at = at % bad.len();
        bad[at] = to;
        prop_assume!(bad != good);
        prop_assert!(keys.open(&bad, NOW).is_err());
        prop_assert!(keys.open(&good[..at], NOW).is_err());
    }
}
