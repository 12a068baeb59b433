//! What is asked for in the query of a path: events and the busiest rules. Read strictly: what is not understood is an
//! error that says what may be written.

use std::str::FromStr;

use gateway_common::verdict::{Reason, Verdict};

use super::api::Refusal;
use crate::base::prefix;
use crate::kernel::events::{Filter, KEPT_EVENTS};

/// Events that can be asked for at once.
pub const EVENTS_MAX: usize = KEPT_EVENTS;

/// Rules that `top` may ask for.
pub const TOP_RULES_MAX: usize = 100;

/// Which events are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    /// Only those after this number; 0 for all.
    pub after: u64,
    /// The last so many.
    pub limit: usize,
    /// Whose, and why.
    pub filter: Filter,
    /// Where there are none, wait a while for the next.
    pub wait: bool,
}

impl Default for Events {
    fn default() -> Self {
        Self { after: 0, limit: 100, filter: Filter::default(), wait: false }
    }
}

impl Events {
    /// From a query such as `after=7&limit=10&source=192.0.2.0/24&reason=deny&wait=true`, each part of which may be
    /// left out.
    pub fn parse(query: Option<&str>) -> Result<Self, Refusal> {
        let mut events = Self::default();
        for part in query.into_iter().flat_map(|query| query.split('&')) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match key {
                "after" => events.after = number(key, value)?,
                "limit" => events.limit = limit(number(key, value)?)?,
                "source" => {
                    let source = prefix::parse(value).map_err(Refusal::usage)?;
                    events.filter.source = Some(source);
                }
                "reason" => events.filter.reason = Some(reason(value).map_err(Refusal::usage)?),
                "wait" => events.wait = number(key, value)?,
                _ => {
                    let known = "after, limit, source, reason or wait";
                    return Err(Refusal::usage(format!("unknown query `{key}`: {known}")));
                }
            }
        }
        Ok(events)
    }

    /// As a query.
    pub fn query(&self) -> String {
        let Self { after, limit, filter, wait } = self;
        let mut text = format!("after={after}&limit={limit}&wait={wait}");
        if let Some(source) = filter.source {
            text.push_str(&format!("&source={source}"));
        }
        if let Some(reason) = filter.reason {
            text.push_str(&format!("&reason={}", reason.name()));
        }
        text
    }
}

/// The number of rules that `rules=20` asks for.
pub fn top_rules(query: Option<&str>) -> Result<usize, Refusal> {
    let Some(query) = query else { return Ok(0) };
    match query.split_once('=') {
        Some(("rules", value)) => match number("rules", value)? {
            rules @ 0..=TOP_RULES_MAX => Ok(rules),
            rules => Err(Refusal::usage(format!("{rules} rules are too many: {TOP_RULES_MAX}"))),
        },
        _ => Err(Refusal::usage(format!("unknown query `{query}`: rules=20"))),
    }
}

/// The reason of this name for which packets are dropped.
pub fn reason(name: &str) -> Result<Reason, String> {
    let found = reasons().find(|reason| reason.name() == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = reasons().map(Reason::name).collect();
        format!("packets are not dropped for `{name}`: {}", names.join(", "))
    })
}

/// A number of events that can be had.
pub fn limit(number: usize) -> Result<usize, Refusal> {
    match number {
        1..=EVENTS_MAX => Ok(number),
        _ => Err(Refusal::usage(format!("limit {number}: 1 to {EVENTS_MAX} events are kept"))),
    }
}

fn reasons() -> impl Iterator<Item = Reason> {
    Reason::ALL.into_iter().filter(|reason| reason.verdict() == Verdict::Drop)
}

fn number<T: FromStr>(key: &str, value: &str) -> Result<T, Refusal> {
    value.parse().map_err(|_| Refusal::usage(format!("`{key}={value}` is not understood")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_goes_there_and_back() {
        let filter = Filter {
            source: Some("2001:db8::/32".parse().unwrap()),
            reason: Some(Reason::Connections),
        };
        for query in
            [Events::default(), Events { after: u64::MAX, limit: KEPT_EVENTS, filter, wait: true }]
        {
            assert_eq!(Events::parse(Some(&query.query())), Ok(query));
        }
        assert_eq!(Events::parse(None), Ok(Events::default()));
        assert_eq!((top_rules(None), top_rules(Some("rules=100"))), (Ok(0), Ok(100)));
    }

    #[test]
    fn what_cannot_be_asked_is_named() {
        for (query, complaint) in [
            ("limit=0", "1 to 4096"),
            ("limit=4097", "1 to 4096"),
            ("limit=many", "`limit=many`"),
            ("after", "`after=`"),
            ("source=example.com", "no address or prefix"),
            ("reason=allow", "deny, limit"),
            ("wait=1", "`wait=1`"),
            ("colour=red", "unknown query `colour`"),
        ] {
            let refusal = Events::parse(Some(query)).unwrap_err();
            assert!(refusal.usage && refusal.error.contains(complaint), "{query}: {refusal:?}");
        }
        assert!(top_rules(Some("rules=101")).unwrap_err().error.contains("too many: 100"));
        assert!(top_rules(Some("x")).is_err() && top_rules(Some("rules=-1")).is_err());
    }
}
