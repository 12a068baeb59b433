//! The Redis of the configuration: made, kept over reloads where nothing about it changed, shown.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::{MissedTickBehavior, interval};

use crate::admin::redis::{RedisView, ServerView};
use crate::config::Config;
use crate::limit::EXCHANGE_EVERY;
use crate::observe::prometheus::Page;
use crate::request::Snapshot;
use crate::shared::{NodeStatus, Redis, Status, Unavailable};

/// The one that `config` names, with its secrets read. `before` stays where it still is that.
pub(super) fn made(config: &Config, before: Option<&Redis>) -> Result<Option<Redis>, String> {
    let Some(wanted) = &config.state.redis else { return Ok(None) };
    let before = before.filter(|before| before.config() == wanted);
    match (Redis::read(wanted), before) {
        (Ok(new), Some(before)) if new.is_same(before) => Ok(Some(before.clone())),
        // What only root may read was read at the start.
        (Err(_), Some(before)) => Ok(Some(before.clone())),
        (new, _) => new.map(Some),
    }
}

/// The addresses of it, and why they are talked to.
pub(super) fn peers(redis: Option<&Redis>) -> impl Iterator<Item = (String, IpAddr)> + use<> {
    let peers = redis.map(Redis::peers).unwrap_or_default();
    peers.into_iter().map(|address| ("state.redis".to_owned(), address))
}

/// Has what limits tell each other exchanged from now on, by those of `snapshot` as it is then.
pub(super) fn exchange(redis: Option<&Redis>, snapshot: &Arc<ArcSwap<Snapshot>>) {
    let Some(redis) = redis else { return };
    let snapshot = Arc::clone(snapshot);
    redis.beside(async move {
        let mut due = interval(EXCHANGE_EVERY);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            let limits = Arc::clone(snapshot.load().limits());
            limits.exchange().await;
        }
    });
}

pub(super) fn view(redis: &Redis) -> RedisView {
    let Status { nodes, error } = &redis.status();
    let sum = redis.sum();
    let server = |node: &NodeStatus| ServerView {
        address: node.address.to_string(),
        round_trip_us: node.round_trip.map(micros),
    };
    RedisView {
        mode: redis.config().mode.name().to_owned(),
        up: redis.status().is_up(),
        error: error.clone(),
        servers: nodes.iter().map(server).collect(),
        answered: sum.took.count(),
        failed: sum.errors.iter().sum(),
    }
}

/// The same as metrics, with how long answers took.
pub(super) fn page(redis: Option<&Redis>) -> String {
    let mut page = Page::default();
    let Some(redis) = redis else { return page.text() };
    let (status, sum) = (redis.status(), redis.sum());
    page.gauge("gateway_redis_up", "1 if every server that has keys answers in time.")
        .only(status.is_up().into());
    let help = "1 if the server answered in time when it was last asked, at most a second ago.";
    let mut servers = page.gauge("gateway_redis_server_up", help);
    for node in &status.nodes {
        servers.with(&[("server", &node.address.to_string())], node.round_trip.is_some().into());
    }
    let help = "How long answers took, redirects and all, from the caller's view.";
    page.histogram("gateway_redis_call_duration_seconds", help).durations(&[], &sum.took);
    let help = "Calls without an answer, by reason.";
    let mut errors = page.counter("gateway_redis_errors_total", help);
    for (reason, count) in Unavailable::ALL.iter().zip(sum.errors) {
        errors.with(&[("reason", reason.name())], count);
    }
    page.text()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
