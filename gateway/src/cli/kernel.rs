//! `gateway kernel detach`: ends all enforcement in the kernel, with or without a running gateway.

use super::output::Output;
use super::place::Place;
use super::{Failure, unexpected};
use crate::admin::api::{Answer, Done, Request};
use crate::admin::client::{self, ClientError};
use crate::kernel::pins::Pins;

pub(super) fn detach(place: &Place, output: &Output) -> Result<(), Failure> {
    match client::ask(&place.socket()?, &Request::Detach) {
        // What is pinned all the same is left from an earlier gateway.
        Ok(Answer::Done(done)) if done.done.is_empty() => leftovers(place, done.notes, output),
        Ok(Answer::Done(done)) => {
            // The daemon may be unable to remove its own folder where whoever asks can. Only when it is empty: it could
            // be another gateway's.
            if let Ok(path) = place.pins() {
                drop(std::fs::remove_dir(path));
            }
            Ok(output.done(&done)?)
        }
        Ok(_) => Err(unexpected()),
        Err(ClientError::NotRunning(_)) => {
            leftovers(place, vec!["no gateway was running".to_owned()], output)
        }
        Err(error) => Err(error.into()),
    }
}

fn leftovers(place: &Place, notes: Vec<String>, output: &Output) -> Result<(), Failure> {
    let path = place.pins()?;
    let pins = Pins::at(&path);
    if !pins.exist().map_err(|error| Failure::Failed(error.to_string()))? {
        let done = vec![format!("nothing is pinned at {}", path.display())];
        return Ok(output.done(&Done { done, notes })?);
    }
    let interfaces = pins.remove_all().map_err(|error| Failure::Failed(error.to_string()))?;
    let mut done: Vec<String> =
        interfaces.iter().map(|interface| format!("{interface}: detached")).collect();
    done.push(format!("{} removed", path.display()));
    Ok(output.done(&Done { done, notes })?)
}
