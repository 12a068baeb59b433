//! `gateway reload`: the running gateway reads its configuration again, whole or not at all.

use super::output::Output;
use super::place::Place;
use super::{Failure, ask, unexpected};
use crate::admin::api::{Answer, Request};

pub(super) fn run(place: &Place, output: &Output) -> Result<(), Failure> {
    match ask(place, &Request::Reload)? {
        Answer::Done(done) => Ok(output.done(&done)?),
        _ => Err(unexpected()),
    }
}
