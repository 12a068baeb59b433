//! The questions: A and AAAA for a host, SRV and then those for a service. Everything has a bound: time, attempts,
//! questions at once, hosts of a service. Keeps nothing, for how long an answer holds is said by its records.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{RData, RecordType};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Addresses, Answer, Outcome, Place, Trouble};
use crate::base::stamp::Stamp;
use crate::base::text::excerpt;
use crate::config::{Discovery, Family, Name};

/// Questions at the same time, of all names together.
const QUESTIONS_MAX: usize = 64;
/// The most that a weight of SRV counts; the others are scaled with it.
const WEIGHT_MAX: u32 = 1000;
const ERROR_CHARS_MAX: usize = 120;
/// What the resolvers of the system are read from.
const SYSTEM: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Somebody who asks.
#[derive(Clone)]
pub struct Client {
    terms: Discovery,
    resolver: Result<TokioResolver, String>,
    /// The files of the system that it was made from.
    made_of: Option<[Stamp; 2]>,
    slots: Arc<Semaphore>,
}

impl Client {
    /// Asks as `terms` say.
    pub fn new(terms: &Discovery) -> Self {
        let is_system = terms.resolvers.is_empty();
        let made_of = is_system.then(|| SYSTEM.map(|path| Stamp::at(Path::new(path))));
        let resolver = resolver(terms);
        let slots = Arc::new(Semaphore::new(QUESTIONS_MAX));
        Self { terms: terms.clone(), resolver, made_of, slots }
    }

    /// Whether it would be another one by now.
    pub fn is_stale(&self, terms: &Discovery) -> bool {
        let now = || SYSTEM.map(|path| Stamp::at(Path::new(path)));
        self.terms != *terms || self.made_of.is_some_and(|made_of| made_of != now())
    }

    /// Looks a name up.
    pub async fn lookup(&self, name: &Name) -> Answer {
        let mut ttl = None;
        let places = match name {
            Name::Host { host, port } => {
                Ok(vec![Place { host: host.clone(), port: *port, weight: None }])
            }
            Name::Service(service) => {
                let asked = self.clone().ask(service.clone(), RecordType::SRV).await;
                asked.and_then(|(records, lives)| {
                    ttl = Some(lives);
                    places(records, self.terms.max_addresses)
                })
            }
        };
        let hosts = match &places {
            Ok(places) => self.addresses(places, &mut ttl).await,
            Err(_) => BTreeMap::new(),
        };
        Answer { places, hosts, ttl }
    }

    async fn addresses(
        &self,
        places: &[Place],
        ttl: &mut Option<Duration>,
    ) -> BTreeMap<String, Addresses> {
        let kinds: &[RecordType] = match self.terms.family {
            Family::Any => &[RecordType::A, RecordType::AAAA],
            Family::Ipv4 => &[RecordType::A],
            Family::Ipv6 => &[RecordType::AAAA],
        };
        let names: BTreeSet<&String> = places.iter().map(|place| &place.host).collect();
        let mut asking = JoinSet::new();
        for host in &names {
            for kind in kinds {
                let (host, kind) = ((*host).clone(), *kind);
                let asked = self.clone().ask(host.clone(), kind);
                asking.spawn(async move { (host, kind, asked.await) });
            }
        }
        // What is not said otherwise below: the question broke off by a mistake of the resolver's.
        let broken = |kind: RecordType| kinds.contains(&kind).then(|| Err(Trouble::broken()));
        let broken = || [broken(RecordType::A), broken(RecordType::AAAA)];
        let mut hosts: BTreeMap<String, Addresses> =
            names.into_iter().map(|host| (host.clone(), broken())).collect();
        while let Some(asked) = asking.join_next().await {
            let Ok((host, kind, asked)) = asked else { continue };
            let found = asked.map(|(records, lives)| {
                *ttl = Some(ttl.map_or(lives, |ttl| ttl.min(lives)));
                records.iter().filter_map(RData::ip_addr).collect::<Vec<IpAddr>>()
            });
            let Some([v4, v6]) = hosts.get_mut(&host) else { continue };
            *(if kind == RecordType::A { v4 } else { v6 }) = Some(found);
        }
        hosts
    }

    /// The records of this kind, and how long the shortest-lived one that led to them may be used.
    async fn ask(self, name: String, kind: RecordType) -> Result<(Vec<RData>, Duration), Trouble> {
        let trouble =
            |outcome, why: String| Trouble { outcome, why: format!("{kind} of {name}: {why}") };
        let resolver = self.resolver.map_err(|error| trouble(Outcome::Failed, error))?;
        let _slot = self.slots.acquire().await;
        let asked = timeout(self.terms.timeout, resolver.lookup(name.as_str(), kind)).await;
        let lookup = match asked {
            Ok(Ok(lookup)) => lookup,
            Ok(Err(NetError::Timeout)) | Err(_) => {
                return Err(trouble(Outcome::TimedOut, "no resolver answers".to_owned()));
            }
            Ok(Err(error)) => {
                let (outcome, why) = describe(&error);
                return Err(trouble(outcome, why));
            }
        };
        let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or(0);
        let records = lookup.answers().iter().filter(|record| record.record_type() == kind);
        let records: Vec<RData> = records.map(|record| record.data.clone()).collect();
        match records.is_empty() {
            true => Err(trouble(Outcome::Empty, NO_RECORDS.to_owned())),
            false => Ok((records, Duration::from_secs(ttl.into()))),
        }
    }
}

const NO_RECORDS: &str = "there are no such records";

/// The hosts of the most important records (RFC 2782): a target that is the root says that there is no such service.
fn places(records: Vec<RData>, most: usize) -> Result<Vec<Place>, Trouble> {
    let mut records: Vec<SRV> = records
        .into_iter()
        .filter_map(|record| match record {
            RData::SRV(srv) if !srv.target.is_root() && srv.port != 0 => Some(srv),
            _ => None,
        })
        .collect();
    let Some(first) = records.iter().map(|srv| srv.priority).min() else {
        let why = "the records say that there is no such service".to_owned();
        return Err(Trouble { outcome: Outcome::Empty, why });
    };
    records.retain(|srv| srv.priority == first);
    let top = records.iter().map(|srv| u32::from(srv.weight)).max().unwrap_or(0).max(WEIGHT_MAX);
    let mut places: Vec<Place> = records
        .iter()
        .map(|srv| Place {
            host: srv.target.to_lowercase().to_ascii(),
            port: srv.port,
            weight: Some((u32::from(srv.weight) * WEIGHT_MAX / top).max(1)),
        })
        .collect();
    places.sort();
    places.dedup();
    places.truncate(most);
    Ok(places)
}

fn describe(error: &NetError) -> (Outcome, String) {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => (Outcome::Empty, "there is no such name".to_owned()),
            ResponseCode::NoError => (Outcome::Empty, NO_RECORDS.to_owned()),
            code => (Outcome::Failed, format!("the resolver answers: {code}")),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => {
            (Outcome::Failed, format!("the resolver answers: {code}"))
        }
        other => (Outcome::Failed, excerpt(&other.to_string(), ERROR_CHARS_MAX)),
    }
}

fn resolver(terms: &Discovery) -> Result<TokioResolver, String> {
    let runtime = TokioRuntimeProvider::default();
    let mut builder = match terms.resolvers.as_slice() {
        [] => TokioResolver::builder_tokio()
            .map_err(|error| format!("/etc/resolv.conf names no resolver: {error}"))?,
        resolvers => {
            let servers = resolvers.iter().map(|address| {
                let mut server = NameServerConfig::udp_and_tcp(address.ip());
                let at = |connection: &mut ConnectionConfig| connection.port = address.port();
                server.connections.iter_mut().for_each(at);
                server
            });
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
            let mut builder = TokioResolver::builder_with_config(config, runtime);
            builder.options_mut().use_hosts_file = ResolveHosts::Never;
            builder
        }
    };
    let options: &mut ResolverOpts = builder.options_mut();
    options.timeout = terms.timeout / terms.attempts.max(1);
    options.attempts = usize::try_from(terms.attempts).unwrap_or(1).saturating_sub(1);
    options.cache_size = 0;
    builder.build().map_err(|error| error.to_string())
}
