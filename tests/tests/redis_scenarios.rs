//! Redis as several gateways share it, against real servers: what is asked is answered within a deadline, whatever
//! happens to the servers, and all is well again by itself.
#![expect(clippy::disallowed_methods, reason = "what is measured is the time that somebody waits")]
#![expect(clippy::unwrap_used, reason = "what helps tests fails as they do")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use gateway::config::{self, RedisAddress, RedisMode, RedisTls};
use gateway::shared::registry::{Cursor, FRESH};
use gateway::shared::script::Script;
use gateway::shared::{Redis, Unavailable};
use harness::authority::Authority;
use harness::gateway::Gateway;
use harness::metrics::{Page, family};
use harness::redis::{Cluster, Redis as Server, Watched};
use serde_json::{Value, json};

const DOCUMENTED: &str = include_str!("../../docs/metrics.md");

/// No test depends on how fast the machine is; a wait without a bound would be longer than this.
const PATIENCE: Duration = Duration::from_secs(20);
/// A deadline that a server on a busy machine keeps, and that shows when it is kept.
const TIMEOUT: Duration = Duration::from_millis(300);

fn config(servers: &[&Server]) -> config::Redis {
    config::Redis {
        addresses: servers.iter().map(|s| RedisAddress::Address(s.address)).collect(),
        mode: RedisMode::Standalone,
        database: 0,
        user: None,
        password: None,
        tls: None,
        prefix: "test".to_owned(),
        timeout: TIMEOUT,
        connect_timeout: Duration::from_secs(2),
    }
}

async fn connect(config: &config::Redis) -> Redis {
    let redis = Redis::read(config).unwrap();
    redis.start().unwrap();
    redis.looked_at().await;
    redis
}

async fn count(redis: &Redis, key: &str) -> Result<i64, Unavailable> {
    let script = Script::new("return redis.call('INCR', KEYS[1])");
    let answer = script.run(redis, &[key], &[""; 0], redis.config().timeout).await?;
    Ok(format!("{answer:?}").trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap())
}

/// Asks until `wanted`, with a bound.
async fn until(what: &str, mut wanted: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !wanted().await {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_script_is_sent_once_and_known_from_then_on() {
    let server = Server::start().unwrap();
    let redis = connect(&config(&[&server])).await;
    for expected in 1..=5 {
        assert_eq!(count(&redis, "a").await, Ok(expected));
    }
    let stats = server.ask(&["INFO", "commandstats"]).unwrap();
    assert!(stats.contains("cmdstat_eval:calls=1,"), "{stats}");
    assert!(stats.contains("cmdstat_evalsha:calls=5,"), "{stats}");
    server.ask(&["SCRIPT", "FLUSH"]).unwrap();
    assert_eq!(count(&redis, "a").await, Ok(6));
    assert!(redis.status().error.is_none());
    until("a ping", async || redis.status().is_up()).await;
    assert_eq!(redis.peers()[0], server.address.ip());
}

#[tokio::test]
async fn a_dead_server_costs_nothing_after_the_first_few_and_comes_back_by_itself() {
    let mut server = Server::start().unwrap();
    let redis = connect(&config(&[&server])).await;
    assert_eq!(count(&redis, "a").await, Ok(1));
    server.kill().unwrap();
    until("an error", async || count(&redis, "a").await.is_err()).await;
    let start = Instant::now();
    for _ in 0..1000 {
        assert_eq!(count(&redis, "a").await, Err(Unavailable::Down));
    }
    assert!(start.elapsed() < PATIENCE, "1000 requests waited {:?}", start.elapsed());
    until("down", async || !redis.status().is_up()).await;
    server.start_again().unwrap();
    // It is another one, which knows neither keys nor scripts.
    until("an answer", async || count(&redis, "b").await.is_ok()).await;
    until("a ping", async || redis.status().is_up()).await;
    assert_eq!(redis.sum().errors[Unavailable::Refused as usize], 0);
}

#[tokio::test]
async fn a_paused_server_costs_a_deadline_three_times_and_comes_back_by_itself() {
    let server = Server::start().unwrap();
    let redis = connect(&config(&[&server])).await;
    assert_eq!(count(&redis, "a").await, Ok(1));
    server.pause().unwrap();
    let mut timeouts = 0;
    until("down", async || {
        let start = Instant::now();
        let answer = count(&redis, "a").await;
        assert!(start.elapsed() < PATIENCE / 4, "{:?}", start.elapsed());
        timeouts += u32::from(answer == Err(Unavailable::Timeout));
        answer == Err(Unavailable::Down)
    })
    .await;
    assert!((1..=3).contains(&timeouts), "{timeouts}");
    let start = Instant::now();
    for _ in 0..1000 {
        assert_eq!(count(&redis, "a").await, Err(Unavailable::Down));
    }
    assert!(start.elapsed() < PATIENCE, "1000 requests waited {:?}", start.elapsed());
    server.resume().unwrap();
    until("an answer", async || count(&redis, "a").await.is_ok()).await;
}

#[tokio::test]
async fn requests_at_once_wait_together_while_a_server_sleeps() {
    let server = Server::start().unwrap();
    let redis = connect(&config(&[&server])).await;
    assert_eq!(count(&redis, "a").await, Ok(1));
    server.pause().unwrap();
    let start = Instant::now();
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..6000 {
        let redis = redis.clone();
        requests.spawn(async move { count(&redis, "a").await });
    }
    let mut by_reason = [0; 4];
    while let Some(done) = requests.join_next().await {
        by_reason[done.unwrap().unwrap_err() as usize] += 1;
    }
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    assert!(by_reason[Unavailable::Busy as usize] > 0, "{by_reason:?}");
    server.resume().unwrap();
    until("an answer", async || count(&redis, "a").await.is_ok()).await;
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_of_a_script_answers_nobody_and_nobody_waits() {
    let mut server = Server::start().unwrap();
    let redis = connect(&config(&[&server])).await;
    let endless = Script::new("while true do end");
    let start = Instant::now();
    let (first, second) =
        tokio::join!(endless.run(&redis, &["a"], &[""; 0], redis.config().timeout), async {
            tokio::time::sleep(TIMEOUT / 3).await;
            server.kill().unwrap();
            Ok::<_, Unavailable>(())
        });
    assert!(first.is_err(), "{first:?}");
    assert!(second.is_ok() && start.elapsed() < PATIENCE / 4);
    server.start_again().unwrap();
    until("an answer", async || count(&redis, "a").await.is_ok()).await;
}

#[tokio::test]
async fn a_script_that_does_not_end_costs_others_a_deadline_and_no_more() {
    let server = Server::with(&["--busy-reply-threshold", "100"]).unwrap();
    let redis = connect(&config(&[&server])).await;
    let endless = Script::new("while true do end");
    assert_eq!(
        endless.run(&redis, &["a"], &[""; 0], redis.config().timeout).await,
        Err(Unavailable::Timeout)
    );
    // The server answers BUSY by now, to everybody.
    until("down", async || count(&redis, "a").await == Err(Unavailable::Down)).await;
    until("an end of it", async || server.ask(&["SCRIPT", "KILL"]).is_ok_and(|s| s == "OK")).await;
    until("an answer", async || count(&redis, "a").await.is_ok()).await;
}

#[tokio::test]
async fn a_full_server_refuses_and_is_not_taken_for_dead() {
    let server = Server::with(&["--maxmemory", "1"]).unwrap();
    let redis = connect(&config(&[&server])).await;
    for _ in 0..10 {
        let nonce = redis.is_first("signed/k1", b"n", Duration::from_secs(60)).await;
        assert_eq!(nonce, Err(Unavailable::Refused));
    }
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    assert_eq!(redis.is_first("signed/k1", b"n", Duration::from_secs(60)).await, Ok(true));
}

#[tokio::test]
async fn passwords_databases_and_tls_are_what_the_configuration_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "open sesame\n").unwrap();
    let server = Server::with(&["--requirepass", "open sesame"]).unwrap();
    let mut config_of = config(&[&server]);
    let redis = connect(&config_of).await;
    assert!(count(&redis, "a").await.is_err(), "without a password");
    config_of.password = Some(config::SecretSource::File(file));
    config_of.database = 3;
    let redis = connect(&config_of).await;
    until("an answer", async || count(&redis, "a").await.is_ok()).await;
    assert!(!format!("{redis:?}").contains("sesame"));

    let authority = Authority::new().unwrap();
    let server = Server::with_tls(&authority).unwrap();
    let mut config_of = config(&[&server]);
    let redis = connect(&config_of).await;
    assert!(count(&redis, "a").await.is_err(), "without TLS");
    config_of.tls = Some(RedisTls { ca: None, server_name: None });
    let redis = connect(&config_of).await;
    assert!(count(&redis, "a").await.is_err(), "of somebody whom nobody trusts");
    config_of.tls = Some(RedisTls { ca: Some(authority.ca()), server_name: None });
    let redis = connect(&config_of).await;
    until("an answer", async || count(&redis, "a").await.is_ok()).await;
    let other = Some("other.test".to_owned());
    config_of.tls = Some(RedisTls { ca: Some(authority.ca()), server_name: other });
    let redis = connect(&config_of).await;
    assert!(count(&redis, "a").await.is_err(), "of another name");
}

#[tokio::test]
async fn a_nonce_is_accepted_once_by_all_and_never_without_redis() {
    let mut server = Server::start().unwrap();
    let (one, two) = (connect(&config(&[&server])).await, connect(&config(&[&server])).await);
    let keep = Duration::from_secs(60);
    assert_eq!(one.is_first("signed/k1", b"n1", keep).await, Ok(true));
    assert_eq!(two.is_first("signed/k1", b"n1", keep).await, Ok(false));
    assert_eq!(two.is_first("signed/k2", b"n1", keep).await, Ok(true), "another key's");
    assert_eq!(two.is_first("signed/k1", b"n2", Duration::from_millis(30)).await, Ok(true));
    until("the end of it", async || {
        one.is_first("signed/k1", b"n2", Duration::from_millis(1)).await == Ok(true)
    })
    .await;
    // Of many who show it at the same time one is first.
    let mut shown = tokio::task::JoinSet::new();
    for number in 0..100 {
        let redis = if number % 2 == 0 { one.clone() } else { two.clone() };
        shown.spawn(async move { redis.is_first("signed/k1", b"n3", keep).await == Ok(true) });
    }
    assert_eq!(shown.join_all().await.into_iter().filter(|first| *first).count(), 1);
    server.kill().unwrap();
    assert!(one.is_first("signed/k1", b"n4", keep).await.is_err());
}

#[tokio::test]
async fn a_revoked_key_is_no_longer_remembered_within_a_second_on_every_gateway() {
    let server = Server::start().unwrap();
    let (one, two) = (connect(&config(&[&server])).await, connect(&config(&[&server])).await);
    let (one, two) = (one.registry(), two.registry());
    let digest = |number: u16| {
        let mut digest = [7; 32];
        digest[..2].copy_from_slice(&number.to_be_bytes());
        digest
    };
    assert_eq!(one.exchange(&digest(1), None, Some(b"a")).await, Ok(true));
    assert_eq!(one.exchange(&digest(1), None, Some(b"b")).await, Ok(false), "it is there");
    assert_eq!(two.find(&digest(1)).await, Ok(Some(b"a".to_vec())));
    assert_eq!(two.find(&digest(2)).await, Ok(None));
    until("a number", async || two.generation().is_some()).await;
    let before = two.generation();
    assert_eq!(one.exchange(&digest(1), Some(b"a"), Some(b"revoked")).await, Ok(true));
    let start = Instant::now();
    until("another number", async || two.generation() != before).await;
    // Not known to be the same is as good as another one, so this holds however slow the machine is.
    assert!(start.elapsed() < FRESH + Duration::from_millis(100), "{:?}", start.elapsed());
    assert_eq!(two.find(&digest(1)).await, Ok(Some(b"revoked".to_vec())));
    assert_eq!(two.exchange(&digest(1), Some(b"revoked"), None).await, Ok(true));
    assert_eq!(one.find(&digest(1)).await, Ok(None));

    for number in 0..300 {
        assert_eq!(one.exchange(&digest(number * 200), None, Some(b"x")).await, Ok(true));
    }
    let (mut cursor, mut found) = (Some(Cursor::default()), Vec::new());
    while let Some(at) = cursor {
        let page = two.page(at, 100).await.unwrap();
        found.extend(page.records.into_iter().map(|(digest, _)| digest));
        cursor = page.next;
    }
    found.sort_unstable();
    found.dedup();
    assert_eq!(found.len(), 300);

    server.pause().unwrap();
    until("nobody knows", async || two.generation().is_none()).await;
    assert!(two.find(&digest(1)).await.is_err());
    server.resume().unwrap();
    until("a number", async || two.generation().is_some()).await;
}

#[tokio::test]
async fn sentinels_name_another_master_and_it_is_asked_from_then_on() {
    let mut watched = Watched::start().unwrap();
    let mut config_of = config(&watched.sentinels.iter().collect::<Vec<_>>());
    let master = "main".to_owned();
    config_of.mode = RedisMode::Sentinel { master, user: None, password: None };
    let redis = connect(&config_of).await;
    until("an answer", async || count(&redis, "a").await.is_ok()).await;
    let master = Some(watched.master.address);
    until("the master", async || redis.status().nodes.first().map(|node| node.address) == master)
        .await;
    watched.master.kill().unwrap();
    until("an answer of the other", async || count(&redis, "a").await.is_ok()).await;
    until("a ping", async || redis.status().is_up()).await;
    assert_eq!(redis.status().nodes[0].address, watched.replica.address);
}

#[tokio::test]
async fn a_cluster_is_asked_where_the_key_is_also_after_it_has_moved() {
    let cluster = Cluster::start().unwrap();
    let mut config_of = config(&[&cluster.nodes[0]]);
    config_of.mode = RedisMode::Cluster;
    let redis = connect(&config_of).await;
    for number in 0..100 {
        assert_eq!(count(&redis, &format!("k{number}")).await, Ok(1), "{number}");
    }
    until("pings", async || redis.status().nodes.len() == 3 && redis.status().is_up()).await;
    assert_eq!(redis.peers().len(), 1, "all of them are at one address");
    for node in &cluster.nodes {
        assert_ne!(node.ask(&["DBSIZE"]).unwrap(), "0");
    }
    // `foo` is in the slot 12182, of the third node.
    cluster.give(12_182, 0).unwrap();
    assert_eq!(count(&redis, "foo").await, Ok(1), "it has moved, as the third node says");
    assert_eq!(cluster.nodes[0].ask(&["GET", "foo"]).unwrap(), "1");
    assert_eq!(redis.is_first("signed/k1", b"n1", PATIENCE).await, Ok(true));
    assert_eq!(redis.is_first("signed/k1", b"n1", PATIENCE).await, Ok(false));
}

/// The connections of each thread are its own, and end with it.
#[test]
fn every_thread_has_a_connection_of_its_own_and_none_is_left() {
    let server = Server::start().unwrap();
    let redis = Redis::read(&config(&[&server])).unwrap();
    redis.start().unwrap();
    let barrier = Arc::new(std::sync::Barrier::new(5));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (redis, barrier) = (redis.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().build().unwrap();
                let counted = runtime.block_on(count(&redis, "a"));
                barrier.wait();
                barrier.wait();
                counted
            })
        })
        .collect();
    barrier.wait();
    let clients = || server.ask(&["INFO", "clients"]).unwrap();
    // Four, that of the thread which looks after the server, and the one that asks.
    harness::wait_for("connections", PATIENCE, || {
        Ok(clients().contains("connected_clients:6").then_some(()))
    })
    .unwrap();
    barrier.wait();
    for thread in threads {
        assert!(thread.join().unwrap().is_ok());
    }
    drop(redis);
    harness::wait_for("their end", PATIENCE, || {
        Ok(clients().contains("connected_clients:1\r").then_some(()))
    })
    .unwrap();
}

/// Through the real binary: what status and metrics say, what is protected, and what a reload changes.
#[test]
fn the_gateway_says_how_redis_is_and_never_blocks_it() -> harness::Result {
    let mut server = Server::start()?;
    let folder = tempfile::tempdir()?;
    let (address, password) =
        (std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?, folder.path().join("password"));
    let at = server.address.to_string();
    let redis = |timeout: &str| {
        json!({
            "addresses": [at], "timeout": timeout, "connect_timeout": "2s",
        })
    };
    let config = |redis: Value| {
        json!({
            "listen": [{"address": address.to_string()}], "workers": 1, "state": {"redis": redis},
        })
    };
    let mut gateway = Gateway::unprivileged(None, config(redis("300ms")))?;
    gateway.start()?;
    let status = || gateway.status();
    let is = |up: bool| {
        let wanted = Duration::from_secs(20);
        harness::wait_for(if up { "up" } else { "down" }, wanted, || {
            let view = &status()?["redis"];
            Ok((view["up"] == up && view["mode"] == "standalone").then_some(()))
        })
    };
    is(true)?;
    let page = Page::of(&gateway.cli(&["metrics"])?.ok()?.stdout)?;
    assert_eq!(page.value("gateway_redis_up"), Some(1));
    for series in page.samples.keys() {
        let name = family(series);
        assert!(DOCUMENTED.contains(&format!("`{name}`")), "{name} is not documented");
    }
    let refused = gateway.cli(&["deny", "add", "127.0.0.1"])?;
    assert!(format!("{refused:?}").contains("state.redis"), "{refused:?}");
    server.kill()?;
    is(false)?;
    server.start_again()?;
    is(true)?;
    let secret = json!({"file": password.display().to_string()});
    let with_secret = |timeout: &str| {
        let mut redis = redis(timeout);
        redis["password"] = secret.clone();
        redis
    };
    gateway.write_config(config(with_secret("200ms")))?;
    let refused = gateway.cli(&["reload"])?;
    assert!(format!("{refused:?}").contains("state.redis.password"), "{refused:?}");
    is(true)?;
    gateway.write_config(config(Value::Null))?;
    gateway.cli(&["reload"])?.ok()?;
    assert_eq!(status()?["redis"], Value::Null);
    gateway.write_config(config(redis("200ms")))?;
    gateway.cli(&["reload"])?.ok()?;
    is(true)?;
    gateway.stop()
}
