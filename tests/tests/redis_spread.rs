//! Gateways that tell each other about sources in a real Redis: what one does is known to all, whatever happens to
//! Redis meanwhile, and what nobody has signed is believed by none.
#![expect(clippy::disallowed_methods, reason = "patience is measured by the clock")]
#![expect(clippy::unwrap_used, reason = "what helps tests fails as they do")]

use std::time::{Duration, Instant};

use gateway::base::secret::Secret;
use gateway::base::time::{UtcMillis, utc};
use gateway::config::{self, Measure, RedisAddress, RedisMode};
use gateway::feedback::decision::{Place, Story, Subject};
use gateway::feedback::spread::Spread;
use gateway::feedback::spread::ledger::Ledger;
use gateway::feedback::spread::message::{Ban, Keys, Message, Refused, What};
use gateway::shared::Redis;
use harness::redis::{Cluster, Redis as Server, Watched};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
const LOG: &str = "test:{bans}:log";
const STATE: &str = "test:{bans}:state";

/// What one gateway has of it.
struct Gateway {
    name: &'static str,
    folder: TempDir,
    redis: Redis,
    spread: Option<Spread>,
}

impl Gateway {
    async fn start(name: &'static str, config: &config::Redis) -> Self {
        let redis = Redis::read(config).unwrap();
        redis.start().unwrap();
        redis.looked_at().await;
        let folder = tempfile::tempdir().unwrap();
        let mut gateway = Self { name, folder, redis, spread: None };
        gateway.start_again();
        gateway.link();
        gateway
    }

    fn stop(&mut self) {
        self.spread = None;
    }

    /// Starts it with what it has on its disk, and nobody to talk to.
    fn start_again(&mut self) {
        self.spread = Some(Spread::start(self.folder.path(), self.name).unwrap());
    }

    fn link(&self) {
        self.of().link(Some((&self.redis, keys(&[1]))));
    }

    fn of(&self) -> &Spread {
        self.spread.as_ref().unwrap()
    }

    fn ban(&self, number: u8) {
        self.of().tell(
            subject(number),
            What::Ban(ban(utc().after(Duration::from_hours(1)))),
            utc(),
        );
    }

    fn lift(&self, number: u8) {
        self.of().tell(subject(number), What::Lift, utc());
    }

    fn is_banned(&self, number: u8) -> bool {
        self.of().known(&subject(number)).is_some_and(|known| known.ban(utc()).is_some())
    }

    fn refused(&self, why: Refused) -> u64 {
        self.of().counts().refused.get(why as usize).copied().unwrap()
    }
}

fn config(addresses: &[&Server], mode: RedisMode) -> config::Redis {
    config::Redis {
        addresses: addresses.iter().map(|s| RedisAddress::Address(s.address)).collect(),
        mode,
        database: 0,
        user: None,
        password: None,
        tls: None,
        prefix: "test".to_owned(),
        timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_secs(2),
    }
}

fn alone(server: &Server) -> config::Redis {
    config(&[server], RedisMode::Standalone)
}

async fn three(config: &config::Redis) -> [Gateway; 3] {
    [
        Gateway::start("one", config).await,
        Gateway::start("two", config).await,
        Gateway::start("three", config).await,
    ]
}

fn keys(secrets: &[u8]) -> Keys {
    let secrets: Vec<Secret> = secrets.iter().map(|byte| Secret::new([*byte; 32])).collect();
    Keys::new("test", &secrets).unwrap()
}

fn subject(number: u8) -> Subject {
    let prefix = format!("192.0.2.{number}/32").parse().unwrap();
    Subject { prefix, place: Place::Kernel }
}

fn ban(until: UtcMillis) -> Ban {
    let story = Story { score: 20.0, wanted: 20.0, ..Story::default() };
    Ban { measure: Measure::Ban, rule: "stuffing".to_owned(), until, times: 1, story }
}

/// What a gateway says that does this.
fn said(what: What, now: UtcMillis) -> Message {
    let mut ledger = Ledger::new(99);
    ledger.make(subject(9), what, "another", now);
    ledger.known(&subject(9)).unwrap().clone()
}

async fn until(what: &str, mut wanted: impl FnMut() -> bool) {
    let start = Instant::now();
    while !wanted() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until all of them know these to be banned, and no others below 20.
async fn agree(what: &str, gateways: &[Gateway], banned: &[u8]) {
    until(what, || {
        (0..20).all(|number| {
            gateways.iter().all(|one| one.is_banned(number) == banned.contains(&number))
        })
    })
    .await;
}

async fn all_up(gateways: &[Gateway]) {
    until("all follow", || gateways.iter().all(|one| one.of().health().up)).await;
    until("all is told", || gateways.iter().all(|one| one.of().health().outgoing == 0)).await;
}

fn add(server: &Server, text: &[u8]) {
    let text = std::str::from_utf8(text).unwrap();
    server.ask(&["XADD", LOG, "*", "m", text]).unwrap();
}

#[tokio::test]
async fn what_one_gateway_does_all_know_and_what_another_takes_back_is_gone() {
    let server = Server::start().unwrap();
    let gateways = three(&alone(&server)).await;
    gateways[0].ban(1);
    gateways[1].ban(2);
    agree("two bans", &gateways, &[1, 2]).await;
    gateways[1].of().arrived().await;
    let news = gateways[1].of().news(9);
    assert_eq!(news.len(), 1);
    let news: Vec<Message> = news.into_iter().map(|news| news.message).collect();
    let What::Ban(told) = &news[0].what else { panic!("{news:?}") };
    assert_eq!((news[0].gateway.as_str(), told.story.score), ("one", 20.0));
    gateways[2].lift(1);
    agree("a lift", &gateways, &[2]).await;
    gateways[0].of().tell(subject(2), What::Forget, utc());
    agree("what is forgotten", &gateways, &[]).await;
    let pin = What::Pin(ban(utc()));
    gateways[0].of().tell(subject(3), pin, utc());
    agree("a pin", &gateways, &[3]).await;
    // A late one learns what was said before it came.
    let late = Gateway::start("late", &alone(&server)).await;
    agree("a newcomer", &[late], &[3]).await;
    for key in server.ask(&["KEYS", "test:*"]).unwrap().lines() {
        let left: i64 = server.ask(&["TTL", key]).unwrap().parse().unwrap();
        assert!((1..=33 * 24 * 60 * 60).contains(&left), "{key} stays for {left} s");
    }
    assert_eq!(server.ask(&["HLEN", STATE]).unwrap(), "3");
    for gateway in &gateways {
        let health = gateway.of().health();
        assert!(health.up && health.outgoing == 0 && health.known == 3, "{health:?}");
        // What was said while the state was read is heard twice.
        let refused = Refused::ALL.into_iter().filter(|why| *why != Refused::Replayed);
        assert_eq!(refused.map(|why| gateway.refused(why)).sum::<u64>(), 0);
    }
    assert!(gateways[0].of().health().ahead_ms.unwrap().abs() < 60_000);
}

#[tokio::test]
async fn without_redis_each_goes_on_alone_and_afterwards_all_agree() {
    let mut server = Server::start().unwrap();
    let mut gateways = three(&alone(&server)).await;
    gateways[0].ban(1);
    gateways[1].ban(2);
    gateways[2].ban(3);
    agree("three bans", &gateways, &[1, 2, 3]).await;
    server.kill().unwrap();
    until("it is gone", || gateways.iter().all(|one| !one.of().health().up)).await;
    gateways[0].lift(2);
    gateways[1].ban(4);
    gateways[2].ban(5);
    gateways[2].lift(5);
    // Within one millisecond either may count as the later one.
    tokio::time::sleep(Duration::from_millis(20)).await;
    gateways[0].ban(5);
    assert_eq!(gateways[1].of().health().outgoing, 1);
    assert!(gateways[1].is_banned(2) && !gateways[0].is_banned(4), "each is alone");
    // A restart loses nothing of it.
    gateways[1].stop();
    gateways[1].start_again();
    gateways[1].link();
    assert_eq!(gateways[1].of().health().outgoing, 1);
    // What comes back is another one, and empty.
    server.start_again().unwrap();
    agree("an empty Redis", &gateways, &[1, 3, 4, 5]).await;
    all_up(&gateways).await;
    assert_eq!(server.ask(&["HLEN", STATE]).unwrap(), "5");
}

#[tokio::test]
async fn what_was_changed_while_redis_hung_is_told_when_it_goes_on() {
    let server = Server::start().unwrap();
    let gateways = three(&alone(&server)).await;
    gateways[0].ban(1);
    gateways[0].ban(2);
    agree("two bans", &gateways, &[1, 2]).await;
    server.pause().unwrap();
    gateways[1].lift(1);
    // Within one millisecond either may count as the later one.
    tokio::time::sleep(Duration::from_millis(20)).await;
    gateways[2].ban(1);
    gateways[2].ban(3);
    gateways[0].lift(2);
    until("it hangs", || gateways.iter().all(|one| !one.of().health().up)).await;
    server.resume().unwrap();
    // The ban of `three` is the last that was said of 1, and nobody bans 2 again.
    agree("a Redis that goes on", &gateways, &[1, 3]).await;
    all_up(&gateways).await;
    // Emptied under open connections: the next word shows it.
    server.ask(&["FLUSHALL"]).unwrap();
    gateways[0].ban(4);
    until("all is told again", || server.ask(&["HLEN", STATE]).is_ok_and(|n| n == "4")).await;
    agree("an emptied Redis", &gateways, &[1, 3, 4]).await;
}

#[tokio::test]
async fn who_has_missed_too_much_of_the_log_reads_the_state() {
    let server = Server::start().unwrap();
    let mut gateways = three(&alone(&server)).await;
    gateways[0].ban(1);
    gateways[0].ban(2);
    agree("two bans", &gateways, &[1, 2]).await;
    all_up(&gateways).await;
    gateways[2].stop();
    gateways[0].lift(1);
    gateways[0].ban(3);
    all_up(&gateways[..2]).await;
    gateways[2].start_again();
    gateways[2].link();
    agree("what was in the log", &gateways, &[2, 3]).await;
    assert_eq!(gateways[2].of().counts().received, 2, "nothing was read twice");
    gateways[2].stop();
    gateways[1].lift(2);
    gateways[1].ban(4);
    all_up(&gateways[..2]).await;
    server.ask(&["XTRIM", LOG, "MAXLEN", "0"]).unwrap();
    gateways[0].ban(5);
    all_up(&gateways[..2]).await;
    gateways[2].start_again();
    gateways[2].link();
    agree("what was in the state", &gateways, &[3, 4, 5]).await;
}

#[tokio::test]
async fn what_is_malformed_forged_or_old_is_refused_and_counted() {
    let server = Server::start().unwrap();
    let config = alone(&server);
    let gateways = [Gateway::start("one", &config).await];
    gateways[0].ban(1);
    all_up(&gateways).await;
    let (ours, theirs, now) = (keys(&[1]), keys(&[2]), utc());
    let good = ours.seal(&said(What::Ban(ban(now.after(Duration::from_hours(1)))), now));
    let lift = said(What::Lift, now);
    let lift_of_one = Message { subject: subject(1), ..lift.clone() };
    add(&server, &theirs.seal(&lift_of_one));
    add(&server, &Keys::new("another", &[Secret::new([1; 32])]).unwrap().seal(&lift_of_one));
    add(&server, b"hello");
    server.ask(&["XADD", LOG, "*", "x", "y"]).unwrap();
    add(&server, &[b'1'; 100_000]);
    add(&server, b"9 what comes after us");
    let hours = Duration::from_hours(1);
    add(&server, &ours.seal(&said(What::Lift, now.after(hours))));
    let long_ago = UtcMillis(now.0 - u64::try_from((hours * 24 * 40).as_millis()).unwrap());
    add(&server, &ours.seal(&said(What::Lift, long_ago)));
    add(&server, &good);
    add(&server, &good);
    let before = UtcMillis(now.0 - 1000);
    add(&server, &ours.seal(&said(What::Lift, before)));
    let one = &gateways[0];
    until("the last one", || one.refused(Refused::Old) == 1).await;
    agree("the good one alone", &gateways, &[1, 9]).await;
    for (why, count) in [
        (Refused::Forged, 2),
        (Refused::Malformed, 2),
        (Refused::Oversized, 1),
        (Refused::Version, 1),
        (Refused::Future, 1),
        (Refused::Over, 1),
        (Refused::Replayed, 1),
        (Refused::Full, 0),
    ] {
        assert_eq!(one.refused(why), count, "{}", why.name());
    }
    // What is wrong in the state is put right by whoever knows better, and believed by none.
    let forged = String::from_utf8(theirs.seal(&lift_of_one)).unwrap();
    server.ask(&["HSET", STATE, "kernel 192.0.2.1/32", &forged]).unwrap();
    server.ask(&["HSET", STATE, "kernel 192.0.2.8/32", "junk"]).unwrap();
    let moved = String::from_utf8(good).unwrap();
    server.ask(&["HSET", STATE, "kernel 192.0.2.7/32", &moved]).unwrap();
    let gateways = [gateways.into_iter().next().unwrap(), Gateway::start("two", &config).await];
    until("the newcomer follows", || gateways[1].of().health().up).await;
    assert_eq!(gateways[1].refused(Refused::Forged), 1);
    server.ask(&["SET", "test:{bans}:epoch", "another"]).unwrap();
    gateways[0].ban(2);
    agree("what was put right", &gateways, &[1, 2, 9]).await;
    assert_ne!(server.ask(&["HGET", STATE, "kernel 192.0.2.1/32"]).unwrap(), forged);
}

#[tokio::test]
async fn a_clock_that_is_wrong_wins_nothing() {
    let server = Server::start().unwrap();
    let gateways = three(&alone(&server)).await;
    let hour_ms = 3_600_000;
    gateways[0].ban(1);
    agree("a ban", &gateways, &[1]).await;
    // An hour behind: what is done there knowing of the ban comes after it.
    gateways[1].of().tell(subject(1), What::Lift, UtcMillis(utc().0 - hour_ms));
    agree("a lift by a clock that is behind", &gateways, &[]).await;
    // An hour ahead: nobody else believes it before its time.
    let ahead = UtcMillis(utc().0 + hour_ms);
    gateways[2].of().tell(subject(2), What::Ban(ban(ahead.after(Duration::from_hours(1)))), ahead);
    until("it is refused", || gateways[..2].iter().all(|one| one.refused(Refused::Future) == 1))
        .await;
    assert!(!gateways[0].is_banned(2) && !gateways[1].is_banned(2));
    // All else still goes both ways.
    gateways[2].ban(3);
    gateways[0].ban(4);
    until("the others hear", || gateways.iter().all(|one| one.is_banned(3) && one.is_banned(4)))
        .await;
}

#[tokio::test]
async fn keys_are_changed_one_gateway_after_the_other() {
    let server = Server::start().unwrap();
    let gateways = three(&alone(&server)).await;
    let link = |gateway: &Gateway, secrets: &[u8]| {
        gateway.of().link(Some((&gateway.redis, keys(secrets))));
    };
    gateways[0].ban(1);
    agree("the old key", &gateways, &[1]).await;
    for (number, secrets) in [(2, &[1, 2][..]), (3, &[2, 1]), (4, &[2])] {
        for (gateway, sub) in gateways.iter().zip(0..) {
            link(gateway, secrets);
            gateway.ban(number + sub * 4);
        }
        all_up(&gateways).await;
        let all: Vec<u8> = (2..=number).flat_map(|n| [n, n + 4, n + 8]).chain([1]).collect();
        agree("both keys", &gateways, &all).await;
    }
    assert!(gateways.iter().all(|one| one.refused(Refused::Forged) == 0));
    // What the old key has signed is signed anew, so that who comes now believes all of it.
    server.ask(&["FLUSHALL"]).unwrap();
    gateways[1].lift(1);
    until("all is told again", || server.ask(&["HLEN", STATE]).is_ok_and(|n| n == "10")).await;
}

#[tokio::test]
async fn a_cluster_and_a_failover_make_no_difference() {
    let cluster = Cluster::start().unwrap();
    let nodes: Vec<&Server> = cluster.nodes.iter().collect();
    let gateways = three(&config(&nodes, RedisMode::Cluster)).await;
    gateways[0].ban(1);
    gateways[1].ban(2);
    agree("a cluster", &gateways, &[1, 2]).await;

    let mut watched = Watched::start().unwrap();
    let sentinels: Vec<&Server> = watched.sentinels.iter().collect();
    let mode = RedisMode::Sentinel { master: "main".to_owned(), user: None, password: None };
    let gateways = three(&config(&sentinels, mode)).await;
    gateways[0].ban(1);
    agree("a master", &gateways, &[1]).await;
    watched.master.kill().unwrap();
    gateways[0].lift(1);
    gateways[1].ban(2);
    agree("another master", &gateways, &[2]).await;
    all_up(&gateways).await;
}
