//! `gateway run --replace --background`: the gateway is a process of its own, and this command ends once it serves. For
//! service managers, in whose service it stays.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use super::output::Output;
use super::place::Place;
use super::{Failure, unexpected};
use crate::admin::api::{Answer, Done, Request};
use crate::admin::client;
use crate::base::time::instant;

/// More than a handover may take.
const START_MAX: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(50);
/// Exit status of a configuration with mistakes.
const CONFIGURATION: i32 = 2;

pub(super) fn run(place: &Place, output: &Output) -> Result<(), Failure> {
    let Some(file) = &place.config else {
        let usage = "--background wants to know the configuration: name the file";
        return Err(Failure::Usage(usage.to_owned()));
    };
    let failed = |error: std::io::Error| Failure::Failed(format!("cannot be started: {error}"));
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.arg("run").arg("--replace").arg(file).stdin(Stdio::null());
    // Ctrl-C is for this command.
    let mut gateway = command.process_group(0).spawn().map_err(failed)?;
    let serves = wait(&mut gateway, place);
    if serves.is_err() {
        // Whoever ran before goes on then.
        gateway.kill().ok();
        gateway.wait().ok();
    }
    serves?;
    let done = format!("process {} serves", gateway.id());
    Ok(output.done(&Done { done: vec![done], notes: Vec::new() })?)
}

/// Waits until it answers.
fn wait(gateway: &mut Child, place: &Place) -> Result<(), Failure> {
    let socket = place.socket()?;
    let started = instant();
    while started.elapsed() < START_MAX {
        let ended = gateway.try_wait()?;
        match ended.map(|status| (status.code(), status)) {
            Some((Some(CONFIGURATION), _)) => return Err(Failure::Configuration),
            Some((_, status)) => {
                return Err(Failure::Failed(format!("it ended, see above: {status}")));
            }
            None => {}
        }
        match client::ask(&socket, &Request::Status) {
            Ok(Answer::Status(status)) if status.pid == gateway.id() => return Ok(()),
            Ok(Answer::Status(_)) | Err(_) => sleep(PAUSE),
            Ok(_) => return Err(unexpected()),
        }
    }
    let limit = humantime::format_duration(START_MAX);
    Err(Failure::Failed(format!("it does not serve within {limit}")))
}
