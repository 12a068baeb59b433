//! `gateway check`: everything that is wrong with a configuration file, at once.

use std::path::Path;

use nix::unistd::{Uid, User};

use super::Failure;
use super::output::Output;
use crate::config::{self, Config};
use crate::control::certificates;
use crate::control::sources::files::{self, Unread};
use crate::tls::store::Store;

pub(super) fn run(file: &Path, output: &Output) -> Result<(), Failure> {
    match config::read(file) {
        Ok(config) => {
            check_lists(&config, output)?;
            check_certificates(&config, output)?;
            if output.is_json() {
                return Ok(output.object(&serde_json::json!({ "errors": 0 }))?);
            }
            let (routes, upstreams) = (config.routes.len(), config.upstreams.len());
            let listeners = config.listen.len();
            Ok(output.line(&format!(
                "{}: fine; {listeners} listeners, {routes} routes, {upstreams} upstreams",
                file.display()
            ))?)
        }
        Err(errors) => {
            report(&errors, output)?;
            Err(Failure::Configuration)
        }
    }
}

/// Refuses lists that are files and cannot be read by whoever asks.
fn check_lists(config: &Config, output: &Output) -> Result<(), Failure> {
    let readings = files::read_all(config, &user());
    let unread = readings.iter().filter_map(|reading| reading.entries.as_ref().err());
    let errors: Vec<String> = unread.flat_map(Unread::in_full).collect();
    for error in &errors {
        match output.is_json() {
            true => output.object(&serde_json::json!({ "message": error }))?,
            false => anstream::eprintln!("error: {error}"),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::Configuration) }
}

/// Refuses certificates and keys that cannot be used, or not by whoever asks.
fn check_certificates(config: &Config, output: &Output) -> Result<(), Failure> {
    let read = certificates::read_again(config, &Store::default(), &user());
    read.map(drop).or_else(|errors| {
        report(&errors, output)?;
        Err(Failure::Configuration)
    })
}

/// What whoever asks is called.
fn user() -> String {
    let user = User::from_uid(Uid::effective()).ok().flatten();
    user.map_or_else(|| Uid::effective().to_string(), |user| user.name)
}

/// Shows the errors of a configuration: as JSON lines on the output, or as text on the error stream.
pub(super) fn report(errors: &config::Errors, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        for error in errors.iter() {
            output.object(error)?;
        }
    } else {
        anstream::eprintln!("{errors}");
    }
    Ok(())
}
