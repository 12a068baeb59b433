//! `gateway ban` and `gateway unban`: what a program that watches has decided, and that it takes it back.

use std::time::Duration;

use clap::Args;

use super::output::Output;
use super::place::Place;
use super::{Failure, ask, unexpected};
use crate::admin::api::{Answer, Request};
use crate::admin::bans::{BanRequest, MakeBans, Means, WithdrawBans};

#[derive(Debug, Args)]
pub(super) struct BanArgs {
    /// Addresses or prefixes: all of them or none
    #[arg(required = true)]
    prefixes: Vec<String>,
    /// How long, as 10m, 4h or 7d; at most 31d
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    lasts: Duration,
    /// Why, for whoever asks later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// What is done
    #[arg(long, value_enum, default_value_t = Means::Ban)]
    measure: Means,
    /// Name of the profile of `slow_down`
    #[arg(long, value_name = "NAME", required_if_eq("measure", "slow_down"))]
    profile: Option<String>,
    /// The program that has decided; `gateway unban` with the same name takes it back
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
    /// These are addresses that a trusted proxy names, whose packets never arrive here
    #[arg(long)]
    believed: bool,
}

#[derive(Debug, Args)]
pub(super) struct UnbanArgs {
    /// Addresses or prefixes
    #[arg(required = true)]
    prefixes: Vec<String>,
    /// The program that had decided; what others have decided stays
    #[arg(long, value_name = "NAME")]
    from: String,
}

pub(super) fn ban(place: &Place, arguments: BanArgs, output: &Output) -> Result<(), Failure> {
    let BanArgs { prefixes, lasts, reason, measure, profile, from, believed } = arguments;
    let for_ms = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
    done(
        place,
        BanRequest::Make(MakeBans { prefixes, for_ms, reason, measure, profile, from, believed }),
        output,
    )
}

pub(super) fn unban(place: &Place, arguments: UnbanArgs, output: &Output) -> Result<(), Failure> {
    let UnbanArgs { prefixes, from } = arguments;
    done(place, BanRequest::Withdraw(WithdrawBans { prefixes, from }), output)
}

fn done(place: &Place, request: BanRequest, output: &Output) -> Result<(), Failure> {
    match ask(place, &Request::Bans(request))? {
        Answer::Done(done) => Ok(output.done(&done)?),
        _ => Err(unexpected()),
    }
}
