//! How much four gateways give together of a limit that each counts by itself and tells the others of, beyond what
//! there is: with a known number of requests a second, the time that the word takes to get round.
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use gateway::limit::EXCHANGE_EVERY;
use harness::client::Client;
use harness::redis::Redis;
use serde_json::{Value, json};

use super::super::proxy::configs::Places;
use super::super::proxy::subjects::{self, Setting, Subject};
use super::super::report::{Comparison, Report};
use super::redis::calls;
use super::requests::{Bed, on_cpu, rounded};
use crate::test;

const GATEWAYS: [&str; 4] = ["gateway-1", "gateway-2", "gateway-3", "gateway-4"];
/// All of them together, as the report calls them, and what docs/redis.md says.
const TOGETHER: &str = "gateways";
const DOCUMENTED: &str = "documented";
const OVERSHOOT: &str = "overshoot_ms";
/// Requests a second to each of them: so few that none of them waits for the CPU that they share.
const PER_SECOND: u32 = 250;
/// A gateway that has refused so many in a row, more than a second of them, has learnt that nothing is left.
const REFUSED: u32 = 300;
const PATIENCE: Duration = Duration::from_secs(10);

/// What is held against what is documented.
pub(super) fn comparisons() -> [Comparison; 1] {
    [Comparison { figure: OVERSHOOT, subject: TOGETHER, peer: DOCUMENTED }]
}

pub(super) fn synchronised(bed: &Bed, case: &str, report: &mut Report) -> anyhow::Result<()> {
    if !test::found("redis-server") {
        report.skip(case, "redis-server is not installed");
        return Ok(());
    }
    for round in 1..=bed.rounds {
        measure(bed, (case, round), report)?;
    }
    Ok(())
}

fn measure(bed: &Bed, (case, round): (&str, u32), report: &mut Report) -> anyhow::Result<()> {
    // What comes in a round of the others, so that all know of each other before it ends.
    let limit = PER_SECOND * GATEWAYS.len() as u32 * bed.run.seconds;
    let redis = on_cpu(bed.run.cpus.rest, Redis::start)?;
    let folder = tempfile::Builder::new().prefix("gateway-bench-").tempdir()?;
    // As root, workers run as users who must still reach it.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    let setting = Setting { folder: folder.path(), cpus: bed.run.cpus, binary: &bed.binary };
    let start = |name: &'static str| {
        let [plain] = subjects::free_addresses()?;
        let config = config((folder.path(), name), [plain, redis.address], limit);
        setting.configured(name, Places { plain, tls: plain, h2c: plain }, &config)
    };
    let gateways = GATEWAYS.into_iter().map(start).collect::<anyhow::Result<Vec<_>>>()?;
    let mut given = 0;
    for gateway in &gateways {
        let mut client = connect(gateway)?;
        ensure!(client.get("/")?.status == 204, "{} gives nothing", gateway.name);
        given += 1;
    }
    harness::wait_for("a report of each gateway", PATIENCE, || {
        Ok((calls(&redis)? >= GATEWAYS.len() as f64).then_some(()))
    })?;
    let began = Instant::now() + Duration::from_millis(50);
    let loads = on_cpu(bed.run.cpus.rest, || {
        thread::scope(|scope| {
            let loads: Vec<_> =
                gateways.iter().map(|gateway| scope.spawn(move || load(gateway, began))).collect();
            let loads = loads.into_iter().map(|load| match load.join() {
                Ok(load) => load,
                Err(_) => bail!("a thread of the bench panicked"),
            });
            loads.collect::<anyhow::Result<Vec<(u32, Duration)>>>()
        })
    })?;
    given += loads.iter().map(|(given, _)| given).sum::<u32>();
    let last = loads.iter().map(|(_, last)| *last).max().unwrap_or_default();
    ensure!(given >= limit, "only {given} of {limit} were given");
    let per_second = f64::from(PER_SECOND * GATEWAYS.len() as u32);
    let overshoot = f64::from(given - limit);
    let figures = [
        ("requests_per_second", per_second),
        ("limit", f64::from(limit)),
        ("given", f64::from(given)),
        ("overshoot", overshoot),
        (OVERSHOOT, rounded(overshoot / per_second * 1000.0)),
        ("last_given_after_ms", rounded(last.as_secs_f64() * 1000.0)),
    ];
    report.round(case, TOGETHER, round, &figures);
    let delay_ms = EXCHANGE_EVERY.as_secs_f64() * 1000.0;
    let documented =
        [("overshoot", rounded(per_second * delay_ms / 1000.0)), (OVERSHOOT, delay_ms)];
    report.round(case, DOCUMENTED, round, &documented);
    Ok(())
}

/// At an even pace until it refuses for good: how many it gave, and when the last one.
fn load(gateway: &Subject, began: Instant) -> anyhow::Result<(u32, Duration)> {
    const REQUESTS_MAX: u32 = 60 * PER_SECOND;
    let mut client = connect(gateway)?;
    let (mut given, mut refused, mut last) = (0, 0, Duration::ZERO);
    for number in 0..REQUESTS_MAX {
        let due = began + Duration::from_secs(1) / PER_SECOND * number;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        match client.get("/")?.status {
            204 => (given, refused, last) = (given + 1, 0, began.elapsed()),
            429 => refused += 1,
            other => bail!("{} answered {other}", gateway.name),
        }
        if refused == REFUSED {
            return Ok((given, last));
        }
    }
    bail!("{} goes on and on", gateway.name)
}

fn connect(gateway: &Subject) -> anyhow::Result<Client> {
    Client::connect_here(None, gateway.plain().address, PATIENCE).context("no gateway")
}

fn config((folder, name): (&Path, &str), [listen, redis]: [SocketAddr; 2], limit: u32) -> Value {
    let limit = json!({"per": "global", "quota": format!("{limit}/day"), "count": "synchronised"});
    json!({
        "listen": [{"address": listen}],
        "workers": 1,
        "state": {"dir": folder.join(format!("{name}.state")), "redis": {"addresses": [redis]}},
        "admin": {"socket": folder.join(format!("{name}.sock"))},
        "access_log": {"path": folder.join(format!("{name}.access"))},
        "kernel": {"attach": "off"},
        "routes": [
            {"match": {"path": "/{rest*}"}, "limits": [limit], "respond": {"status": 204}},
        ],
    })
}
