//! A change that covers so much that somebody has to say yes to it: whoever sits at a terminal is asked.

use std::io::{self, IsTerminal as _};

use super::Failure;
use crate::admin::api::{Answer, Refusal, Request};

/// Asks by `ask`, and where only a yes is missing, for that, and once more. Where nobody can be asked the refusal
/// stays, which names --yes.
pub(super) fn sure(
    mut request: Request,
    ask: impl Fn(&Request) -> Result<Answer, Failure>,
) -> Result<Answer, Failure> {
    match ask(&request) {
        Err(Failure::Refused(Refusal { covers: Some(covers), .. })) if somebody_is_there() => {
            if !agrees(&covers)? {
                return Err(Failure::Failed("nothing was changed".to_owned()));
            }
            request.insist();
            ask(&request)
        }
        answer => answer,
    }
}

fn somebody_is_there() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

fn agrees(covers: &str) -> io::Result<bool> {
    anstream::eprint!("{covers}. Is that meant? [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}
