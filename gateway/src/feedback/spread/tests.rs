//! Tests of what is known without anybody to talk to.

use super::*;
use crate::base::time::utc;
use crate::feedback::decision::Place;

fn subject(number: u8) -> Subject {
    let prefix = format!("192.0.2.{number}/32").parse().unwrap();
    Subject { prefix, place: Place::Kernel }
}

#[test]
fn what_nobody_was_told_yet_is_told_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let first = Spread::start(folder.path(), "one").unwrap();
    first.tell(subject(1), What::Lift, utc());
    first.tell(subject(2), What::Forget, utc());
    let lifted = first.known(&subject(1)).unwrap();
    assert!(first.news(9).is_empty(), "what is done here is no news");
    drop(first);
    let second = Spread::start(folder.path(), "one").unwrap();
    assert_eq!(second.health(), Health { known: 2, outgoing: 2, ..Health::default() });
    assert_eq!(second.known(&subject(1)), Some(lifted));
    let news = second.news(9);
    assert!(
        news.len() == 2 && news.iter().all(|news| news.recalled),
        "whoever enforces compares after a start"
    );
    assert!(second.news(9).is_empty());
}

#[test]
fn what_others_did_is_news_once_and_what_is_done_here_takes_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let spread = Spread::start(folder.path(), "one").unwrap();
    let made = utc();
    let order = message::Order { made, instance: 1, sequence: 1 };
    let of = |number| Message {
        order,
        subject: subject(number),
        what: What::Lift,
        gateway: "other".to_owned(),
    };
    for number in 1..=3 {
        assert_eq!(spread.shared.hear(of(number), made), Ok(Merged::News));
    }
    assert_eq!(spread.shared.hear(of(1), made), Err(Refused::Replayed));
    spread.tell(subject(1), What::Forget, made);
    let news = |number| News { message: of(number), recalled: false };
    assert_eq!(spread.news(1), [news(2)]);
    assert_eq!(spread.news(9), [news(3)]);
    assert!(spread.known(&subject(1)).unwrap().order > order);
    assert_eq!(spread.counts().received, 3);
}
