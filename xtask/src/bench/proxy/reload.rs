//! A reload of many routes under load: latencies at a moderate pace with reloads and without. A failed request ends the
//! run.
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]

use std::time::{Duration, Instant};

use super::Run;
use super::cases::Port;
use super::load::{H2load, Kind};
use super::subjects::{Field, GATEWAY};

/// The same without a reload, as the report calls it.
pub(super) const WITHOUT: &str = "gateway-without-reload";
/// Far below what any machine can do, so that waiting is due to the reload.
const RATE: f64 = 4000.0;
const LOAD: H2load = H2load { path: "/service-7/x", clients: 32, streams: 1, kind: Kind::Http1 };

/// One round; each measurement is told with the name of its subject.
pub(super) fn measure(
    field: &Field,
    run: &Run,
    mut tell: impl FnMut(&'static str, &[(&'static str, f64)]),
) -> anyhow::Result<()> {
    let subject = field.many_routes()?;
    field.write_many_routes()?;
    let longer = Run { seconds: run.seconds + 2, ..run.clone() };
    for (name, reloads) in [(WITHOUT, false), (GATEWAY, true)] {
        let (load, took) = std::thread::scope(|scope| -> anyhow::Result<_> {
            let reloading = scope.spawn(|| -> anyhow::Result<Option<Duration>> {
                if !reloads {
                    return Ok(None);
                }
                std::thread::sleep(Duration::from_secs(1));
                let began = Instant::now();
                field.reload_many_routes()?;
                Ok(Some(began.elapsed()))
            });
            let load = LOAD.run(subject.port(Port::Plain), &longer, Some(RATE));
            let took = reloading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok((load?, took))
        })?;
        let mut figures = vec![
            ("requests_per_second", load.requests_per_second),
            ("latency_p50_us", load.p50_us),
            ("latency_p99_us", load.p99_us),
        ];
        figures.extend(took.map(|took| ("reload_ms", took.as_secs_f64() * 1000.0)));
        tell(name, &figures);
        run.check()?;
    }
    Ok(())
}
