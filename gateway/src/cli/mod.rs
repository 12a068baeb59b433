//! The command line: one file per command.
//!
//! Listings are tables on a terminal and JSON lines in a pipe or with `--json`. Exit status: 0 done, 1 refused or
//! failed, 2 bad usage or bad configuration.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::admin::api::{Answer, Refusal, Request};
use crate::admin::client::{self, ClientError};
use crate::control::offline;
use crate::rules::list_file::ActionName;

mod background;
mod ban;
mod bans;
mod check;
mod drain;
mod events;
mod explain;
mod export;
mod import;
mod insist;
mod kernel;
mod keys;
mod list;
mod lists;
mod metrics;
mod output;
mod place;
mod progress;
mod reload;
mod run;
mod status;
mod top;
mod why;

use output::Output;
use place::Place;

/// An API gateway with two doors: XDP for packets, a proxy for requests.
#[derive(Debug, Parser)]
#[command(name = "gateway", version, arg_required_else_help = true)]
struct Cli {
    /// Configuration of the gateway that is meant [default: /etc/gateway/gateway.yaml if it is
    /// there, else the embedded one]
    #[arg(long, global = true, env = "GATEWAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Admin socket of the gateway that is meant [default: what the configuration says]
    #[arg(long, global = true, env = "GATEWAY_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// JSON lines instead of tables; in a pipe they are the default
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve; without a file the embedded default on 127.0.0.1:8080
    Run {
        /// Configuration file
        file: Option<PathBuf>,
        /// Take the place of the gateway that runs, if one does: its listening sockets, rules and
        /// programs; no connection is refused meanwhile
        #[arg(long)]
        replace: bool,
        /// Return once it serves; for service managers
        #[arg(long, requires = "replace")]
        background: bool,
    },
    /// Check a configuration file and say everything that is wrong with it
    Check {
        /// Configuration file
        file: PathBuf,
    },
    /// Which route of a configuration a request would take and why no other, and every policy and
    /// endpoint that it would meet; nothing is sent
    Explain(explain::ExplainArgs),
    /// How the running gateway stands
    Status,
    /// Let the running gateway read its configuration again, whole or not at all
    Reload,
    /// End the running gateway in order: no new connections, requests in flight finish
    Drain,
    /// Sources whose packets are dropped
    #[command(subcommand)]
    Deny(ListVerb),
    /// Sources that are always let in
    #[command(subcommand)]
    Allow(ListVerb),
    /// Sources that are held to a profile of `kernel.profiles`
    #[command(subcommand)]
    Limit(LimitVerb),
    /// Keep the changes that wait to be confirmed, see --confirm-within
    Confirm,
    /// The lists that are in force and those of the configuration, with what is wrong with them
    Lists {
        #[command(subcommand)]
        verb: Option<ListsVerb>,
    },
    /// API keys of callers, for `auth.NAME.api_key`
    #[command(subcommand)]
    Keys(keys::KeysVerb),
    /// Hold sources off for a while, as the gateway itself does, for a program that watches something else
    Ban(ban::BanArgs),
    /// Take back what a program had banned; `gateway bans lift` takes back anything
    Unban(ban::UnbanArgs),
    /// Sources that the gateway itself holds off, see `feedback`
    #[command(subcommand)]
    Bans(bans::BansVerb),
    /// Which rule decides about an address, whose it is, since when, until when, and what it met
    Why {
        /// IPv4 or IPv6 address
        address: IpAddr,
    },
    /// Packets that the kernel door dropped, as they come: a sample
    Events(events::EventsArgs),
    /// All figures, as Prometheus reads them
    Metrics,
    /// What goes on, every second: packets, rules, sources, requests
    Top(top::TopArgs),
    /// The programs in the kernel
    #[command(subcommand)]
    Kernel(KernelVerb),
}

#[derive(Debug, Subcommand)]
enum ListVerb {
    /// Add prefixes: all of them or none
    Add(AddArgs),
    /// Remove prefixes, all of them or none; or a whole list
    Remove {
        /// Addresses or prefixes
        #[arg(required_unless_present = "list")]
        prefixes: Vec<String>,
        /// An imported list, with all of its entries
        #[arg(long, value_name = "NAME", conflicts_with = "prefixes")]
        list: Option<String>,
        /// Put them back unless `gateway confirm` comes in time, as 60s
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        confirm_within: Option<std::time::Duration>,
    },
    /// Show the rules
    List(ListArgs),
    /// Put a list in force, in the place of the one of the same name: as a difference, whole or
    /// not at all
    Import(ImportArgs),
    /// Write the rules so that they can be imported again
    Export {
        /// File to write; - for the standard output
        #[arg(default_value = "-")]
        file: PathBuf,
        /// Of this list alone
        #[arg(long, value_name = "NAME")]
        list: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum LimitVerb {
    /// Hold the sources of prefixes to a profile, each to buckets of its own: all of them or none
    Set {
        /// Addresses or prefixes: 192.0.2.1, 192.0.2.0/24, 2001:db8::/32
        #[arg(required = true)]
        prefixes: Vec<String>,
        /// Name of the profile
        profile: String,
        #[command(flatten)]
        rule: RuleArgs,
    },
    /// Take back what was set, for all of the prefixes or for none
    Remove {
        /// Addresses or prefixes
        #[arg(required = true)]
        prefixes: Vec<String>,
        /// Put them back unless `gateway confirm` comes in time, as 60s
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        confirm_within: Option<std::time::Duration>,
    },
    /// Show the rules, those of the configuration too
    List(RulesArgs),
}

#[derive(Debug, Subcommand)]
enum ListsVerb {
    /// Read a file or fetch a feed of the configuration now
    Refresh {
        /// Name of the list
        name: String,
    },
    /// Put the version of a file or feed in force that is held back
    Accept {
        /// Name of the list
        name: String,
    },
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// File with an address, prefix or range in each line, or JSON lines; - for the standard
    /// input
    file: PathBuf,
    /// Name of the list [default: the file's]
    #[arg(long, value_name = "NAME")]
    list: Option<String>,
    /// Why, for the entries that do not say so themselves
    #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    reason: String,
    /// Count what the list would drop, and drop nothing
    #[arg(long)]
    dry_run: bool,
    /// Import the other lines where some cannot be read
    #[arg(long)]
    skip_invalid: bool,
    /// Yes, that many addresses are meant
    #[arg(long)]
    yes: bool,
    /// Put the version before back unless `gateway confirm` comes in time, as 60s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    confirm_within: Option<std::time::Duration>,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Of this list
    #[arg(long, value_name = "NAME")]
    list: Option<String>,
    #[command(flatten)]
    rules: RulesArgs,
}

/// Which rules are shown.
#[derive(Debug, Args)]
struct RulesArgs {
    /// Made by this origin: operator, configuration, list, feed, ban, forced
    #[arg(long)]
    origin: Option<String>,
    /// Inside of this prefix
    #[arg(long, value_name = "PREFIX")]
    inside: Option<String>,
    /// What comes first
    #[arg(long, value_enum, default_value_t = SortBy::Prefix)]
    sort: SortBy,
    /// Rules to show at most [default: 1000 on a terminal, else all]
    #[arg(long, value_name = "RULES")]
    limit: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SortBy {
    /// Rules made one by one by their prefix, then the entries of each list by theirs
    Prefix,
    /// The rules that met the most packets, at most 10,000 of them
    Packets,
}

#[derive(Debug, Args)]
struct AddArgs {
    /// Addresses or prefixes: 192.0.2.1, 192.0.2.0/24, 2001:db8::/32
    #[arg(required = true)]
    prefixes: Vec<String>,
    /// `deny` alone: answer new connections with TCP RST, so that honest software fails at once
    /// instead of hanging
    #[arg(long)]
    reset: bool,
    #[command(flatten)]
    rule: RuleArgs,
}

/// What is said about a rule besides what it does.
#[derive(Debug, Args)]
struct RuleArgs {
    /// How long it holds, as 30s, 10m, 1h, 7d [default: for ever]
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<std::time::Duration>,
    /// Why, for whoever asks later
    #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    reason: String,
    /// For addresses that must never be blocked, too
    #[arg(long)]
    force: bool,
    /// Yes, that many addresses are meant
    #[arg(long)]
    yes: bool,
    /// Put it back unless `gateway confirm` comes in time, as 60s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    confirm_within: Option<std::time::Duration>,
}

#[derive(Debug, Subcommand)]
enum KernelVerb {
    /// Take the programs off every interface and remove all their pins, with or without a running
    /// gateway
    Detach,
}

/// What went wrong, by exit status.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Refused or failed.
    #[error("{0}")]
    Failed(String),
    /// Refused by the gateway, which says what it would take.
    #[error("{}", .0.error)]
    Refused(Refusal),
    /// Bad usage or configuration.
    #[error("{0}")]
    Usage(String),
    /// The message was printed already.
    #[error("bad configuration")]
    Configuration,
    /// Whoever read the output has gone.
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refusal) if refusal.usage => Self::Usage(refusal.error),
            ClientError::Refused(refusal) => Self::Refused(refusal),
            error => Self::Failed(error.to_string()),
        }
    }
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    match dispatch(cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            if !matches!(failure, Failure::Configuration) {
                output.error(&failure.to_string());
            }
            match failure {
                Failure::Failed(_) | Failure::Refused(_) | Failure::Output(_) => ExitCode::from(1),
                Failure::Usage(_) | Failure::Configuration => ExitCode::from(2),
            }
        }
    }
}

fn dispatch(cli: Cli, output: &Output) -> Result<(), Failure> {
    let place = Place { config: cli.config, socket: cli.socket };
    match cli.verb {
        Verb::Run { file, replace, background } => {
            let place = Place { config: file.or(place.config), ..place };
            match background {
                true => background::run(&place, output),
                false => run::run(place.config, replace, output),
            }
        }
        Verb::Check { file } => check::run(&file, output),
        Verb::Explain(arguments) => explain::run(&arguments, output),
        Verb::Status => status::run(&place, output),
        Verb::Reload => reload::run(&place, output),
        Verb::Drain => drain::run(&place, output),
        Verb::Deny(verb) => list::run(&place, ActionName::Deny, verb, output),
        Verb::Allow(verb) => list::run(&place, ActionName::Allow, verb, output),
        Verb::Limit(verb) => list::limit(&place, verb, output),
        Verb::Confirm => list::confirm(&place, output),
        Verb::Lists { verb } => lists::run(&place, verb, output),
        Verb::Keys(verb) => keys::run(&place, verb, output),
        Verb::Ban(arguments) => ban::ban(&place, arguments, output),
        Verb::Unban(arguments) => ban::unban(&place, arguments, output),
        Verb::Bans(verb) => bans::run(&place, verb, output),
        Verb::Why { address } => why::run(&place, address, output),
        Verb::Events(arguments) => events::run(&place, &arguments, output),
        Verb::Metrics => metrics::run(&place),
        Verb::Top(arguments) => top::run(&place, &arguments, output),
        Verb::Kernel(KernelVerb::Detach) => kernel::detach(&place, output),
    }
}

/// Asks the running gateway; while none runs, what it left in the kernel and in its store.
fn ask(place: &Place, request: &Request) -> Result<Answer, Failure> {
    let answer = client::ask(&place.socket()?, request);
    if matches!(answer, Err(ClientError::NotRunning(_)))
        && place.pins().is_ok()
        && let Some(answer) = offline::answer(place.file(), request)
    {
        anstream::eprintln!("note: no gateway is running; this is what the last one left");
        return Ok(answer.map_err(ClientError::Refused)?);
    }
    Ok(answer?)
}

/// The answer was not one to what was asked: the daemon is of another version.
fn unexpected() -> Failure {
    Failure::Failed(
        "the gateway answered something else than was asked: its version differs from this one's"
            .to_owned(),
    )
}
