//! `gateway top`: what goes on, every second: packets by reason, whose are dropped, which rules decide, requests.

use std::time::Duration;

use clap::Args;

use super::output::Output;
use super::place::Place;
use super::{Failure, ask, unexpected};
use crate::admin::api::{Answer, Request};
use crate::admin::monitor::Top;
use crate::admin::query::TOP_RULES_MAX;

mod screen;
mod view;

use screen::{Screen, Wish};
use view::View;

const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// One look, over a second, and no more
    #[arg(long)]
    once: bool,
    /// The busiest so many rules
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = rules)]
    rules: u16,
}

pub(super) fn run(place: &Place, arguments: &TopArgs, output: &Output) -> Result<(), Failure> {
    let look = || match ask(place, &Request::Top(arguments.rules.into()))? {
        Answer::Top(top) => Ok(*top),
        _ => Err(unexpected()),
    };
    if output.is_json() || arguments.once {
        return lines(look, arguments.once, output);
    }
    let mut before = look()?;
    let mut screen = Screen::enter()?;
    let mut view = View::between(&before, &before);
    loop {
        screen.show(&view.lines())?;
        match screen.wait(EVERY)? {
            Wish::End => return Ok(()),
            Wish::Again => {}
            Wish::Next => {
                let now = look()?;
                view = View::between(&before, &now);
                before = now;
            }
        }
    }
}

/// One look after the other, without a terminal.
fn lines(
    look: impl Fn() -> Result<Top, Failure>,
    once: bool,
    output: &Output,
) -> Result<(), Failure> {
    let mut before = look()?;
    loop {
        std::thread::sleep(EVERY);
        let now = look()?;
        let view = View::between(&before, &now);
        if output.is_json() {
            output.object(&view)?;
        } else {
            view.lines().iter().try_for_each(|line| output.line(&line.text))?;
        }
        if once {
            return Ok(());
        }
        before = now;
    }
}

fn rules(text: &str) -> Result<u16, String> {
    let most = u16::try_from(TOP_RULES_MAX).unwrap_or(u16::MAX);
    text.parse()
        .ok()
        .filter(|rules| (1..=most).contains(rules))
        .ok_or_else(|| format!("1 to {most} rules can be shown"))
}
