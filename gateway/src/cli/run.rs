//! `gateway run`: serve, and say in a few lines what is listening, what enforces, and what to try next.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use super::Failure;
use super::check;
use super::output::Output;
use crate::admin::api::Status;
use crate::control::{self, Ended, RunError};

pub(super) fn run(file: Option<PathBuf>, replace: bool, output: &Output) -> Result<(), Failure> {
    let people = std::io::stderr().is_terminal();
    log(people);
    let announce = |status: &Status| match people {
        true => banner(status, file.as_deref()),
        false => {
            let kernel = serde_json::to_string(&status.kernel.interfaces).unwrap_or_default();
            let Status { version, config, user, workers, listen, .. } = status;
            let absent = status.listen_absent.join(", ");
            if !absent.is_empty() {
                tracing::warn!(listen = absent, "no interface has these addresses yet");
            }
            let note = status.kernel.note.as_deref();
            let listen = listen.join(", ");
            tracing::info!(version, config, user, workers, listen, kernel, note, "serving");
        }
    };
    match control::run(file.as_deref(), replace, announce) {
        Ok(ended) => {
            farewell(&ended, people);
            Ok(())
        }
        Err(RunError::Configuration(errors)) => {
            check::report(&errors, output)?;
            Err(Failure::Configuration)
        }
        Err(RunError::Failed(error)) => Err(Failure::Failed(error)),
    }
}

/// Events go to the error stream: lines for people, JSON for everybody else.
fn log(people: bool) {
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false);
    if people {
        builder.with_target(false).compact().init();
    } else {
        builder.json().flatten_event(true).init();
    }
}

fn banner(status: &Status, file: Option<&Path>) {
    let kernel = &status.kernel;
    let mut door: Vec<String> = kernel
        .interfaces
        .iter()
        .map(|on| match (on.mode, &on.note) {
            (Some(mode), _) => format!("{} in {} mode", on.name, mode.name()),
            (None, Some(note)) => format!("{} not attached: {note}", on.name),
            (None, None) => format!("{} not attached", on.name),
        })
        .collect();
    door.extend(kernel.note.clone());
    let capabilities = match status.capabilities.as_slice() {
        [] => "without capabilities".to_owned(),
        some => format!("with {}", some.join(" ")),
    };
    let Status { version, config, user, workers, .. } = status;
    let listen = status.listen.join(", ");
    anstream::eprintln!("gateway {version}, {config}");
    anstream::eprintln!("  listening    {listen} ({workers} workers)");
    if !status.listen_absent.is_empty() {
        let absent = status.listen_absent.join(", ");
        anstream::eprintln!("               no interface has the address of {absent} yet");
    }
    anstream::eprintln!("  kernel door  {}", door.join("; "));
    anstream::eprintln!("  running as   {user}, {capabilities}");
    if let (None, Some(address)) = (file, status.listen.first()) {
        let me = std::env::args().next().unwrap_or_else(|| "gateway".to_owned());
        anstream::eprintln!("  try          curl -i http://{address}/hello");
        anstream::eprintln!("               {me} deny add 127.0.0.2 --for 10m");
        anstream::eprintln!("               curl -m 3 --interface 127.0.0.2 http://{address}/");
        anstream::eprintln!("               {me} why 127.0.0.2");
    }
}

fn farewell(ended: &Ended, people: bool) {
    match (ended, people) {
        (Ended::Replaced, true) => anstream::eprintln!("ended; another gateway has taken over"),
        (Ended::Replaced, false) => tracing::info!("ended; another gateway has taken over"),
        (Ended::Detached, true) => anstream::eprintln!("ended; nothing is left in the kernel"),
        (Ended::Detached, false) => tracing::info!("ended; nothing is left in the kernel"),
        (Ended::Enforcing(interfaces), _) if interfaces.is_empty() => {
            let text = "ended; no interface of the configuration is here, so nothing is enforced";
            if people { anstream::eprintln!("{text}") } else { tracing::info!("{text}") }
        }
        (Ended::Enforcing(interfaces), true) => anstream::eprintln!(
            "ended; the kernel goes on enforcing on {}: `gateway kernel detach` ends that",
            interfaces.join(", ")
        ),
        (Ended::Enforcing(interfaces), false) => tracing::info!(
            interfaces = interfaces.join(", "),
            "ended; the kernel goes on enforcing: `gateway kernel detach` ends that"
        ),
    }
}
