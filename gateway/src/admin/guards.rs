//! How the guards of services stand, as `gateway status` shows them.

use serde::{Deserialize, Serialize};

/// What stands before one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardView {
    /// Its name.
    pub upstream: String,
    /// Its breaker, and those of its endpoints.
    pub breakers: Vec<BreakerView>,
    /// Its limit of concurrency.
    pub concurrency: Option<ConcurrencyView>,
}

/// One breaker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerView {
    /// `None`: of the service as a whole.
    pub endpoint: Option<String>,
    /// `closed`, `open` or `half_open`.
    pub state: String,
    /// How often it opened.
    pub opened: u64,
    /// Where it goes by the share of failures: what it has seen of late.
    pub recent: Option<RecentView>,
}

/// What a breaker has seen while it was closed, within its window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentView {
    /// Requests that ended.
    pub requests: u64,
    /// How many of them failed.
    pub failures: u64,
}

/// A limit and what is below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConcurrencyView {
    /// Requests at once, as it is now.
    pub limit: u32,
    /// Requests that the service has.
    pub active: u32,
    /// Requests that wait.
    pub waiting: u32,
}

/// One line a guard, for people.
pub fn lines(guards: &[GuardView]) -> impl Iterator<Item = String> {
    guards.iter().flat_map(|GuardView { upstream, breakers, concurrency }| {
        let breakers =
            breakers.iter().map(move |BreakerView { endpoint, state, opened, recent }| {
                let of =
                    endpoint.as_ref().map(|address| format!(" of {address}")).unwrap_or_default();
                let recent = recent.as_ref().map(|RecentView { requests, failures }| {
                    format!(", {failures} of {requests} requests failed lately")
                });
                let recent = recent.unwrap_or_default();
                format!("{upstream}: breaker{of} {state}, opened {opened} times{recent}")
            });
        let concurrency = concurrency.iter().map(move |view| {
            let ConcurrencyView { limit, active, waiting } = view;
            format!("{upstream}: {active} of {limit} requests at once, {waiting} wait")
        });
        breakers.chain(concurrency)
    })
}
