//! `gateway drain`: the running gateway ends in order.

use super::output::Output;
use super::place::Place;
use super::{Failure, ask, unexpected};
use crate::admin::api::{Answer, Request};

pub(super) fn run(place: &Place, output: &Output) -> Result<(), Failure> {
    match ask(place, &Request::Drain)? {
        Answer::Done(done) => Ok(output.done(&done)?),
        _ => Err(unexpected()),
    }
}
