//! `gateway explain`: which route a request would take and why no other, and every policy and endpoint that it would
//! meet. It reads the configuration alone; the request is not sent.

mod caller;
mod listeners;
mod policies;
mod request;
mod routes;

use std::cell::Cell;
use std::fmt;
use std::mem;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use http::Uri;
use http::header::LOCATION;
use http::request::Parts;
use serde::Serialize;

use self::caller::Caller;
use self::policies::{Policy, Way};
use self::routes::Tried;
use super::Failure;
use super::check::report;
use super::output::Output;
use crate::base::error::Error;
use crate::config::{self, Action, Config, Route};
use crate::http::problem;
use crate::http::unread::Unread;
use crate::request::target;
use crate::route::{Routed, Table};
use crate::tls::session::ClientCertificate;
use crate::transform;

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Configuration file
    file: PathBuf,
    /// Method, as GET
    method: String,
    /// URL, as https://api.example.com/users/42?page=2
    url: String,
    /// Header field, as 'Name: value', or @FILE for those of a file, one a line, and @- for those of
    /// the standard input, for others see what is on a command line; may be given several times
    #[arg(short = 'H', long = "header", value_name = "FIELD")]
    headers: Vec<String>,
    /// File with the body, which a signature may be over
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// Address of the client: says what the rules of the configuration make of it, and whether its
    /// request would be read at all
    #[arg(long, value_name = "ADDRESS")]
    from: Option<IpAddr>,
    /// PEM file of the certificate that the client shows
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
}

/// What would become of a request.
#[derive(Debug, Default, Serialize)]
struct Explanation {
    method: String,
    host: Option<String>,
    path: String,
    query: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<policies::Source>,
    /// `forward`, `redirect`, `respond`, `refuse`, or `deny` if no request of the source is read.
    outcome: &'static str,
    /// Of an answer that the gateway gives itself.
    status: Option<u16>,
    detail: String,
    /// What would become of it if its source were let in, as all that follows says.
    #[serde(skip_serializing_if = "Option::is_none")]
    otherwise: Option<Otherwise>,
    route: Option<String>,
    /// In the order in which they are tried; with none, those that match but for the host, or are most like it.
    routes: Vec<Tried>,
    captures: Vec<(String, String)>,
    /// Who calls, where the route asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<Caller>,
    /// What the service would be asked for.
    target: Option<String>,
    upstreams: Vec<Way>,
    policies: Vec<Policy>,
}

/// An outcome that does not come about.
#[derive(Debug, Serialize)]
struct Otherwise {
    outcome: &'static str,
    status: Option<u16>,
    detail: String,
}

impl fmt::Display for Otherwise {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.outcome)?;
        self.status.iter().try_for_each(|status| write!(formatter, " {status}"))?;
        write!(formatter, ": {}", self.detail)
    }
}

pub(super) fn run(arguments: &ExplainArgs, output: &Output) -> Result<(), Failure> {
    let config = match config::read(&arguments.file) {
        Ok(config) => config,
        Err(errors) => {
            report(&errors, output)?;
            return Err(Failure::Configuration);
        }
    };
    let (head, scheme) = request::head(arguments).map_err(Failure::Usage)?;
    let certificate = arguments.cert.as_deref().map(caller::certificate).transpose();
    let certificate = certificate.map_err(Failure::Usage)?;
    let body = arguments.body.as_deref().map(|file| request::body(file, &config.bounds));
    let body = body.transpose().map_err(Failure::Usage)?;
    let from = (arguments.from, certificate.as_ref(), body.as_ref());
    let explanation = explain(&config, head, scheme, from).of_its_source(&config);
    if output.is_json() { Ok(output.object(&explanation)?) } else { show(&explanation, output) }
}

fn explain(
    config: &Config,
    mut head: Parts,
    scheme: &str,
    (from, certificate, body): (Option<IpAddr>, Option<&ClientCertificate>, Option<&Unread>),
) -> Explanation {
    let mut found = Explanation {
        method: head.method.to_string(),
        policies: policies::bounds(&config.bounds),
        source: from.map(|address| policies::source(config, address)),
        ..Explanation::default()
    };
    let table = Table::new(&config.routes);
    let normal = target::normalise(&mut head, Some(scheme));
    found.host = target::host(&head).map(str::to_owned);
    found.path = head.uri.path().to_owned();
    found.query = head.uri.query().map(str::to_owned);
    if let Err(error) = normal {
        return found.refused(&error);
    }
    match found.ends_before_routes(config, scheme, &head) {
        Err(error) => return found.refused(&error),
        Ok(true) => return found,
        Ok(false) => {}
    }
    found.routes = routes::tried(config, &table, &head);
    let (routed, as_sent) = match target::route(&table, &mut head) {
        Ok(routed) => routed,
        Err(error) => return found.refused(&error),
    };
    found.path = head.uri.path().to_owned();
    let Some(route) = config.routes.get(routed.route()) else { return found };
    found.route = Some(route.name.clone());
    let values = route.path.values(head.uri.path()).into_iter().map(str::to_owned);
    found.captures = route.path.captures().map(str::to_owned).zip(values).collect();
    found.policies.retain(|policy| policies::holds(policy, route));
    found.policies.extend(policies::of_route(config, route));
    let asked = Asked { config, route, routed, from, as_sent, certificate, body };
    let caller = caller::find(&asked, &head, scheme == "https");
    if let Some(Ok(caller)) = &caller {
        found.policies.extend(caller.limits(config));
    }
    let name = caller.as_ref().and_then(|caller| caller.as_ref().ok()?.name());
    if let Err(error) = found.act(&asked, head, name) {
        return found.refused(&error);
    }
    match caller {
        None => found,
        Some(Ok(caller)) => Explanation { caller: Some(caller), ..found },
        Some(Err((caller, error))) => Explanation { caller: Some(caller), ..found }.refused(&error),
    }
}

/// An address where it makes no difference which.
const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Asked<'a> {
    config: &'a Config,
    route: &'a Route,
    routed: Routed,
    from: Option<IpAddr>,
    /// Its target, where that was not in its normal form.
    as_sent: Option<Uri>,
    certificate: Option<&'a ClientCertificate>,
    body: Option<&'a Unread>,
}

impl Explanation {
    /// Whether the gateway answers before any route is asked.
    fn ends_before_routes(
        &mut self,
        config: &Config,
        scheme: &str,
        head: &Parts,
    ) -> Result<bool, Error> {
        let listeners = listeners::of(config, scheme, head);
        self.policies.extend(listeners::policies(&listeners));
        let told = config.told.as_ref();
        let keys = told.and_then(|told| told.token.as_ref()?.jwks_path.as_deref());
        let answer = if let Some(port) = listeners::redirect(&listeners) {
            let answer = target::redirect(head, port)?;
            let to = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            self.outcome = "redirect";
            self.detail = format!("to {}, by its listener", to.unwrap_or_default());
            answer
        } else if keys == Some(head.uri.path()) {
            self.outcome = "respond";
            self.detail = "with the keys of identity.token".to_owned();
            transform::answer::jwks(&Bytes::new(), &head.method)?
        } else {
            return Ok(false);
        };
        self.status = Some(answer.status().as_u16());
        Ok(true)
    }

    fn act(
        &mut self,
        asked: &Asked<'_>,
        mut head: Parts,
        caller: Option<&str>,
    ) -> Result<(), Error> {
        match &asked.route.action {
            Action::Redirect(redirect) => {
                let host = target::host(&head);
                let to =
                    transform::target::expand(&redirect.to, &asked.route.path, &head.uri, host)?;
                self.outcome = "redirect";
                self.status = Some(redirect.status.as_u16());
                self.detail = format!("to {to}");
            }
            Action::Respond(respond) => {
                self.outcome = "respond";
                self.status = Some(respond.status.as_u16());
                self.detail = format!("with {} bytes of its own", respond.body.len());
            }
            Action::Forward(forward) => {
                let by_chance = Cell::new(false);
                // Which address it is without one makes no difference but for `client_address`.
                let client = asked.from.unwrap_or(SOMEWHERE);
                let chance = || {
                    by_chance.set(true);
                    0
                };
                let destination = asked.routed.choose(forward, &head.headers, client, chance);
                let destination = destination.of_caller(forward, caller, chance);
                let is_known = !by_chance.get()
                    && (asked.from.is_some() || forward.sticky != policies::BY_ADDRESS);
                let chosen = destination.upstream().filter(|_| is_known);
                if let Some(template) = &forward.rewrite {
                    transform::target::rewrite(template, &asked.route.path, &mut head.uri)?;
                }
                self.outcome = "forward";
                self.detail = policies::of_choice(forward, asked.config, chosen);
                self.target = Some(head.uri.to_string());
                self.upstreams = policies::ways(forward, asked.config, chosen);
            }
        }
        Ok(())
    }

    /// The same of a source that may be kept out before anybody reads its request.
    fn of_its_source(mut self, config: &Config) -> Self {
        if let Some(how) = self.source.as_ref().and_then(|source| source.is_denied(config)) {
            let detail = mem::replace(&mut self.detail, how);
            let (outcome, status) = (mem::replace(&mut self.outcome, "deny"), self.status.take());
            self.otherwise = Some(Otherwise { outcome, status, detail });
        }
        self
    }

    fn refused(mut self, error: &Error) -> Self {
        self.outcome = "refuse";
        self.status = Some(problem::status(error.kind()).as_u16());
        self.detail = error.detail().to_owned();
        self
    }
}

fn show(found: &Explanation, output: &Output) -> Result<(), Failure> {
    let status = found.status.map(|status| format!(" {status}")).unwrap_or_default();
    let query = found.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
    let mut facts = vec![
        ("host", found.host.clone().unwrap_or_else(|| "none".to_owned())),
        ("path", format!("{}{query}", found.path)),
        ("outcome", format!("{}{status}: {}", found.outcome, found.detail)),
    ];
    facts.extend(found.otherwise.iter().map(|other| ("otherwise", other.to_string())));
    facts.extend(found.source.iter().map(|source| ("source", source.to_string())));
    facts.extend(found.route.iter().map(|route| ("route", route.clone())));
    facts.extend(found.caller.iter().map(|caller| ("caller", caller.line())));
    for (name, value) in &found.captures {
        facts.push(("capture", format!("{name} = {value}")));
    }
    facts.extend(found.target.iter().map(|target| ("asks for", target.clone())));
    for (name, value) in facts {
        output.line(&format!("{name:<9} {value}"))?;
    }
    if !found.routes.is_empty() {
        output.line("")?;
        let row = |tried: &Tried| vec![tried.route.clone(), tried.verdict.clone()];
        output.table(&["route", "verdict"], found.routes.iter().map(row).collect())?;
    }
    for way in &found.upstreams {
        output.line("")?;
        let row = |policy: &Policy| vec![policy.name.clone(), policy.value.clone()];
        output.table(&["upstream", &way.name], way.policies.iter().map(row).collect())?;
    }
    output.line("")?;
    let row = |policy: &Policy| vec![policy.name.clone(), policy.value.clone()];
    output.table(&["policy", "value"], found.policies.iter().map(row).collect())?;
    Ok(())
}
