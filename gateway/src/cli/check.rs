//! `gateway check`: everything that is wrong with a configuration file, at once.

use std::path::Path;

use super::Failure;
use super::output::Output;
use crate::config;

pub(super) fn run(file: &Path, output: &Output) -> Result<(), Failure> {
    match config::read(file) {
        Ok(config) => {
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
