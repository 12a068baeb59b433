//! `gateway metrics`: all figures, as Prometheus reads them.

use std::io::{self, Write as _};

use super::place::Place;
use super::{Failure, ask, unexpected};
use crate::admin::api::{Answer, Request};

pub(super) fn run(place: &Place) -> Result<(), Failure> {
    let Answer::Metrics(page) = ask(place, &Request::Metrics)? else { return Err(unexpected()) };
    Ok(io::stdout().lock().write_all(page.as_bytes())?)
}
