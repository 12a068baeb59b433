//! What is measured: each case says which listener of a subject is loaded, with what, and who takes part.

use anyhow::bail;

use super::load::{self, H2load, Load, Wrk};
use super::subjects::Subject;
use super::{Figures, Run, idle, websocket};

/// One thing that is measured.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// The listener that is loaded.
    pub(super) port: Port,
    /// Who takes part besides the HTTP proxies.
    pub(super) field: With,
    work: Work,
}

/// A listener of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// HTTP/1.1.
    Plain,
    /// TLS with HTTP/1.1 and HTTP/2.
    Tls,
    /// HTTP/2 without TLS.
    H2c,
}

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum With {
    /// The HTTP proxies alone.
    Http,
    /// The TCP relay too.
    Relay,
    /// The gateway with few routes and with many.
    Routes,
}

enum Work {
    Wrk(Wrk),
    H2load(H2load),
    /// As `H2load`, at this share of what the slowest subject can do.
    Paced(H2load, f64),
    WebSocket,
    Idle,
    Reload,
}

const KEPT: Wrk = Wrk { path: "/", connections: 64, close: false };
const H1: H2load = H2load { path: "/", clients: 64, streams: 1, kind: load::Kind::Http1 };
const H2: H2load = H2load { path: "/", clients: 16, streams: 16, kind: load::Kind::Http2 };

/// In the order of a run.
static CASES: [Case; 14] = [
    wrk("http1_keepalive_small", Port::Plain, With::Relay, KEPT),
    wrk(
        "http1_body_64k",
        Port::Plain,
        With::Relay,
        Wrk { path: "/64k", connections: 32, close: false },
    ),
    wrk(
        "http1_body_10m",
        Port::Plain,
        With::Relay,
        Wrk { path: "/10m", connections: 8, close: false },
    ),
    wrk("http1_new_connections", Port::Plain, With::Relay, Wrk { close: true, ..KEPT }),
    h2load("http2_small", Port::H2c, H2),
    wrk("tls13_keepalive", Port::Tls, With::Http, KEPT),
    wrk("tls13_handshakes", Port::Tls, With::Http, Wrk { close: true, connections: 32, ..KEPT }),
    h2load("tls13_http2", Port::Tls, H2),
    Case { name: "websocket_echo", port: Port::Plain, field: With::Http, work: Work::WebSocket },
    h2load("grpc_unary", Port::H2c, H2load { path: "/grpc/answer", kind: load::Kind::Grpc, ..H2 }),
    Case { name: "idle_connections", port: Port::Plain, field: With::Http, work: Work::Idle },
    Case {
        name: "latency_at_80_percent",
        port: Port::Plain,
        field: With::Http,
        work: Work::Paced(H1, 0.8),
    },
    wrk("routes", Port::Plain, With::Routes, Wrk { path: "/service-7/x", ..KEPT }),
    Case { name: "reload_40k_routes", port: Port::Plain, field: With::Http, work: Work::Reload },
];

const fn wrk(name: &'static str, port: Port, field: With, wrk: Wrk) -> Case {
    Case { name, port, field, work: Work::Wrk(wrk) }
}

const fn h2load(name: &'static str, port: Port, h2load: H2load) -> Case {
    Case { name, port, field: With::Http, work: Work::H2load(h2load) }
}

impl Case {
    /// Those that are named, all if none is.
    pub(super) fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static Self>> {
        if let Some(name) = names.iter().find(|name| CASES.iter().all(|case| case.name != **name)) {
            let known: Vec<&str> = CASES.iter().map(|case| case.name).collect();
            bail!("there is no case {name}: {}", known.join(", "));
        }
        let is_chosen = |case: &&Self| names.is_empty() || names.iter().any(|n| n == case.name);
        Ok(CASES.iter().filter(is_chosen).collect())
    }

    /// Whether it is of the gateway alone, for [`super::reload`] to measure.
    pub(super) fn is_reload(&self) -> bool {
        matches!(self.work, Work::Reload)
    }

    /// Whether memory is measured, which is right only once in the life of a subject: it uses again what it freed.
    pub(super) fn wants_fresh_subjects(&self) -> bool {
        matches!(self.work, Work::Idle)
    }

    /// Answers the requests per second that the subject managed.
    pub(super) fn warm_up(&self, subject: &Subject, run: &Run) -> anyhow::Result<f64> {
        let target = subject.port(self.port);
        Ok(match &self.work {
            Work::Wrk(wrk) => wrk.run(target, run)?.requests_per_second,
            Work::H2load(h2load) | Work::Paced(h2load, _) => {
                h2load.run(target, run, None)?.requests_per_second
            }
            Work::WebSocket => websocket::run(target.address, run)?.requests_per_second,
            Work::Idle | Work::Reload => 0.0,
        })
    }

    /// One round. `least` is what the slowest subject managed while it warmed up.
    pub(super) fn measure(
        &self,
        subject: &Subject,
        run: &Run,
        least: f64,
    ) -> anyhow::Result<Figures> {
        let target = subject.port(self.port);
        let before = subject.cpu_ns()?;
        let load = match &self.work {
            Work::Wrk(wrk) => wrk.run(target, run)?,
            Work::H2load(h2load) => h2load.run(target, run, None)?,
            Work::Paced(h2load, share) => h2load.run(target, run, Some(least * share))?,
            Work::WebSocket => websocket::run(target.address, run)?,
            Work::Idle => return idle::measure(subject, target.address),
            Work::Reload => bail!("it is of the gateway alone"),
        };
        let Load { requests, requests_per_second, p50_us, p99_us } = load;
        let cpu_us = (subject.cpu_ns()? - before) / 1000.0;
        Ok(vec![
            ("requests_per_second", requests_per_second),
            ("cpu_us_per_request", (cpu_us / requests * 1000.0).round() / 1000.0),
            ("latency_p50_us", p50_us),
            ("latency_p99_us", p99_us),
            ("rss_kib", subject.rss_kib()?),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_chosen_by_name_and_unknown_names_are_errors() {
        assert_eq!(Case::chosen(&[]).unwrap().len(), CASES.len());
        let names = ["routes".to_owned(), "http2_small".to_owned()];
        assert_eq!(Case::chosen(&names).unwrap().len(), 2);
        let error = Case::chosen(&["http3".to_owned()]).err().unwrap().to_string();
        assert!(error.contains("http3") && error.contains("grpc_unary"), "{error}");
    }
}
