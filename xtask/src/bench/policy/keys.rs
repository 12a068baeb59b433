//! What registered API keys cost in the embedded store: room on the disk, processor time of a look-up, and memory. They
//! are put in random order, as digests are, many in one transaction: one by one each would wait for the disk.

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, bail, ensure};
use gateway::base::random::mix;
use gateway::base::time::UtcMillis;
use gateway::store::keys::{Digest, KeyRecord, Keys};

use super::super::Args;
use super::super::report::Report;
use super::processor_time;

/// As the report calls it.
const STORE: &str = "store";
/// Keys of one transaction.
const BATCH: u64 = 100_000;
/// Keys of one consumer.
const OF_CONSUMER: u64 = 100;

pub(super) fn keys(args: &Args, case: &str, report: &mut Report) -> anyhow::Result<()> {
    let (count, look_ups) = if args.quick { (200_000, 50_000) } else { (10_000_000, 500_000) };
    let folder = tempfile::Builder::new().prefix("gateway-bench-").tempdir()?;
    // A thread of its own, whose memory nobody takes over: what the look-ups take is new.
    let put = thread::scope(|scope| scope.spawn(|| put(folder.path(), count)).join());
    let Ok(put_us) = put else { bail!("a thread of the bench panicked") };
    let put_us = put_us?;
    let before_kib = resident_kib()?;
    let keys = Keys::open(folder.path())?;
    ensure!(keys.count()? == count, "{} keys are there", keys.count()?);
    let mut bytes = 0;
    for file in fs::read_dir(folder.path())? {
        bytes += file?.metadata()?.len();
    }
    // The first round brings the pages into memory, as far as they fit, and is not measured.
    for round in 0..=args.rounds {
        let mut state = u64::from(round);
        let wanted: Vec<Digest> = (0..look_ups)
            .map(|_| {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                digest(mix(state) % count)
            })
            .collect();
        let began = processor_time();
        for digest in &wanted {
            ensure!(keys.find(digest)?.is_some(), "a key is lost");
        }
        let spent = processor_time().saturating_sub(began);
        if round == 0 {
            continue;
        }
        let figures = [
            ("keys", count as f64),
            ("ns_per_look_up", spent.as_nanos() as f64 / f64::from(look_ups)),
            ("bytes_per_key", bytes as f64 / count as f64),
            ("resident_mib", (resident_kib()? - before_kib) / 1024.0),
            ("cpu_us_per_put", put_us),
        ];
        report.round(case, STORE, round, &figures);
    }
    Ok(())
}

/// Puts so many keys; microseconds of processor time for each.
fn put(folder: &Path, count: u64) -> anyhow::Result<f64> {
    let keys = Keys::open(folder)?;
    let began = processor_time();
    for first in (0..count).step_by(usize::try_from(BATCH)?) {
        let batch: Vec<_> = (first..count.min(first + BATCH)).map(key).collect();
        keys.put(&batch)?;
    }
    let spent = processor_time().saturating_sub(began);
    Ok(spent.as_nanos() as f64 / 1000.0 / count as f64)
}

fn key(number: u64) -> (Digest, KeyRecord) {
    let record = KeyRecord {
        consumer: format!("consumer-{}", number / OF_CONSUMER),
        plan: None,
        scopes: vec!["read".to_owned(), "write".to_owned()],
        label: String::new(),
        created: UtcMillis(1_800_000_000_000),
        expires: Some(UtcMillis(1_800_000_000_000 + number)),
        revoked: None,
        replaced_by: None,
    };
    (digest(number), record)
}

/// As good as that of a secret.
fn digest(number: u64) -> Digest {
    let mut digest = [0; 32];
    for (part, eight) in digest.chunks_exact_mut(8).enumerate() {
        eight.copy_from_slice(&mix(number << 2 | part as u64).to_le_bytes());
    }
    digest
}

/// Memory of this process without pages of files.
fn resident_kib() -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no RssAnon")?;
    Ok(kib.trim().parse()?)
}
