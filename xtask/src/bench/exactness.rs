//! All CPUs at one bucket at once: whether what they admit together is its burst and its rate, and nothing else.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gateway_common::bucket::Bucket;
use harness::bpf;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::Args;
use super::kernel::CPU;
use super::report::Report;
use super::subject::Subject;

/// Its name.
pub(super) const CASE: &str = "exactness";
const RATE: u64 = 100_000;
/// More than refills while no CPU runs the program, so that nothing overflows.
const BURST: u64 = 20_000;
const SPAN: Duration = Duration::from_secs(2);
/// Times that a round is begun again, each some seconds.
const ATTEMPTS_MAX: u32 = 20;
const SAMPLES_MAX: u32 = 100;
/// An interruption of this thread that hardly shows in the figures: 0.025 percent of the span.
const PAUSE_MAX: Duration = Duration::from_micros(500);
/// Run before, to know how long a packet takes.
const PACKETS_FIRST: u32 = 100_000;
const ROUNDS_QUICK: u32 = 3;

/// Measures `args.rounds` times, each with a new bucket.
pub(super) fn run(args: &Args, frame: &[u8], report: &mut Report) -> Result<()> {
    if aya::util::online_cpus().map_err(|(_, error)| error)?.len() < 2 {
        report.skip(CASE, "it takes two CPUs");
        return Ok(());
    }
    let rounds = if args.quick { args.rounds.min(ROUNDS_QUICK) } else { args.rounds };
    for round in 1..=rounds {
        let mut attempts = (0..ATTEMPTS_MAX).map(|_| once(frame));
        match attempts.find_map(Result::transpose) {
            Some(figures) => {
                let figures = figures.with_context(|| format!("case {CASE}"))?;
                report.round(CASE, "gateway", round, &figures);
            }
            None => report.skip(CASE, "the machine is too busy to see when it begins"),
        }
    }
    Ok(())
}

/// `None` where this thread did not see when it began.
fn once(frame: &[u8]) -> Result<Option<[(&'static str, f64); 6]>> {
    let bucket = Bucket::per_second(RATE, BURST).context("the bucket is none")?;
    let unlimited = [Bucket::UNLIMITED; 2];
    let trial = Subject::limited(bucket, unlimited)?;
    let alone_ns = bpf::test_run(trial.program()?, frame, PACKETS_FIRST)?.ns.max(1);
    // Twice as long as it would take without the other CPUs.
    let packets = u32::try_from(2 * SPAN.as_nanos() / u128::from(alone_ns))?;

    let subject = Subject::limited(bucket, unlimited)?;
    let program = subject.program()?;
    let cpus = aya::util::online_cpus().map_err(|(_, error)| error)?;
    thread::scope(|scope| {
        let hit = |cpu: u32| -> Result<()> {
            let mut own = CpuSet::new();
            own.set(cpu as usize)?;
            sched_setaffinity(Pid::from_raw(0), &own).context("cannot stay on one CPU")?;
            bpf::test_run(program, frame, packets)?;
            Ok(())
        };
        // Ours goes last, so that the first packet is seen when it comes.
        let others = cpus.iter().filter(|cpu| **cpu as usize != CPU);
        let mut threads: Vec<_> = others.map(|cpu| scope.spawn(move || hit(*cpu))).collect();
        let mut nothing_yet = Instant::now();
        while subject.admitted()?[0] == 0 {
            ensure!(threads.iter().any(|thread| !thread.is_finished()), "nothing was admitted");
            nothing_yet = Instant::now();
        }
        let started = Instant::now();
        if started - nothing_yet > PAUSE_MAX {
            return Ok(None);
        }
        threads.push(scope.spawn(move || hit(CPU as u32)));
        thread::sleep(SPAN);
        let (seconds, [admitted, contended]) = sample(&subject, started)?;
        ensure!(threads.iter().all(|thread| !thread.is_finished()), "a CPU ended too early");
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        let expected = BURST as f64 + RATE as f64 * seconds;
        Ok(Some([
            ("cpus", cpus.len() as f64),
            ("seconds", seconds),
            ("admitted", admitted as f64),
            ("burst_and_rate", expected),
            ("contended", contended as f64),
            ("error_percent", (admitted as f64 / expected - 1.0) * 100.0),
        ]))
    })
}

/// What was admitted, and when: read again where this thread was interrupted meanwhile.
fn sample(subject: &Subject, started: Instant) -> Result<(f64, [u64; 2])> {
    for _ in 0..SAMPLES_MAX {
        let before = started.elapsed();
        let admitted = subject.admitted()?;
        let after = started.elapsed();
        if after - before < PAUSE_MAX {
            return Ok((before.as_secs_f64(), admitted));
        }
    }
    bail!("this thread was interrupted {SAMPLES_MAX} times in a row")
}
