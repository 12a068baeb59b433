//! The last of the dropped packets that the program reported: a sample, kept for whoever asks. Its length is bounded;
//! who falls behind is told how many went by.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use gateway_common::event::Event;
use gateway_common::rule::{Action, Origin};
use gateway_common::verdict::Reason;
use ipnet::IpNet;
use nix::net::if_::if_indextoname;
use tokio::sync::watch;

use crate::base::time::{BootTime, Now, UtcMillis};

/// Events that are kept.
pub const KEPT_EVENTS: usize = 4096;

/// A packet that was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Counts the events of this process from 1.
    pub number: u64,
    /// When.
    pub time: UtcMillis,
    /// Whose packet.
    pub source: IpAddr,
    /// Why.
    pub reason: Reason,
    /// The rule that decided, where one did.
    pub rule: Option<RuleMet>,
    /// `tcp`, `udp` or `other`.
    pub protocol: &'static str,
    /// Its source and destination ports, where they are known.
    pub ports: Option<(u16, u16)>,
    /// Where it came in: a name, or the index of an interface that has none here.
    pub interface: Arc<str>,
    /// It passed all the same, for this is a dry run.
    pub dry_run: bool,
}

/// A rule as a packet met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleMet {
    /// Whose packets it is about.
    pub prefix: IpNet,
    /// What it does.
    pub action: Action,
    /// Who made it.
    pub origin: Origin,
}

/// Which events are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those of sources in this prefix.
    pub source: Option<IpNet>,
    /// Those with this reason.
    pub reason: Option<Reason>,
}

impl Filter {
    fn wants(&self, event: &Dropped) -> bool {
        self.source.is_none_or(|prefix| prefix.contains(&event.source))
            && self.reason.is_none_or(|reason| reason == event.reason)
    }
}

/// What the log has for somebody who has read up to a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The events, oldest first.
    pub events: Vec<Dropped>,
    /// The number to go on after.
    pub last: u64,
    /// Events that came and went since the number that was asked for.
    pub missed: u64,
}

/// The last events.
#[derive(Debug)]
pub struct Log {
    events: VecDeque<Dropped>,
    last: watch::Sender<u64>,
    interfaces: HashMap<u32, Arc<str>>,
}

impl Default for Log {
    fn default() -> Self {
        Self { events: VecDeque::new(), last: watch::Sender::new(0), interfaces: HashMap::new() }
    }
}

impl Log {
    /// Takes an event in.
    pub fn push(&mut self, event: &Event, now: Now) {
        let Some(reason) = event.reason() else { return };
        let source = IpAddr::from(event.source());
        let (head, length) = (event.rule().head(), event.rule().length());
        let rule = head.action().zip(head.origin()).and_then(|(action, origin)| {
            let prefix = IpNet::new(source, u8::try_from(length).ok()?).ok()?.trunc();
            Some(RuleMet { prefix, action, origin })
        });
        let number = *self.last.borrow() + 1;
        let dropped = Dropped {
            number,
            time: now.utc_of(BootTime(event.time_ns)),
            source,
            reason,
            rule,
            protocol: event.transport().name(),
            ports: event.ports(),
            interface: self.interface(event.interface),
            dry_run: event.dry_run != 0,
        };
        if self.events.len() == KEPT_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(dropped);
        self.last.send_replace(number);
    }

    /// The number of the last event, and word of each further one.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// How many events there have been.
    pub fn count(&self) -> u64 {
        *self.last.borrow()
    }

    /// The last `limit` events after the number `after` that the filter lets through. A number that has not been given
    /// out yet stands for the beginning.
    pub fn page(&self, after: u64, limit: usize, filter: &Filter) -> Page {
        let last = self.count();
        let after = if after > last { 0 } else { after };
        let oldest = self.events.front().map_or(last, |event| event.number - 1);
        let missed = if after == 0 { 0 } else { oldest.saturating_sub(after) };
        let newer = self.events.iter().rev().take_while(|event| event.number > after);
        let mut events: Vec<Dropped> =
            newer.filter(|event| filter.wants(event)).take(limit).cloned().collect();
        events.reverse();
        Page { events, last, missed }
    }

    /// The sources with most events since `since`, at most so many, each with its number of events and its last one.
    pub fn sources(&self, since: UtcMillis, most: usize) -> Vec<(u64, &Dropped)> {
        let mut by_source: HashMap<IpAddr, (u64, &Dropped)> = HashMap::new();
        for event in self.events.iter().filter(|event| event.time >= since) {
            let entry = by_source.entry(event.source).or_insert((0, event));
            *entry = (entry.0 + 1, event);
        }
        let mut sources: Vec<_> = by_source.into_values().collect();
        sources.sort_by_key(|(count, event)| (std::cmp::Reverse(*count), event.source));
        sources.truncate(most);
        sources
    }

    /// The name of an interface. Names of indices are asked for once, and forgotten when they are many.
    fn interface(&mut self, index: u32) -> Arc<str> {
        const NAMES_MAX: usize = 256;
        if let Some(name) = self.interfaces.get(&index) {
            return Arc::clone(name);
        }
        if self.interfaces.len() == NAMES_MAX {
            self.interfaces.clear();
        }
        let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
        // nix takes the null pointer of a missing interface for success, and the name is empty then.
        let name = name.filter(|name| !name.is_empty());
        let name: Arc<str> = name.unwrap_or_else(|| index.to_string()).into();
        self.interfaces.insert(index, Arc::clone(&name));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_common::event::Ruled;
    use gateway_common::packet::{Packet, Transport};
    use gateway_common::table::Head;

    const NOW: Now = Now { boot: BootTime(10_000_000_000), utc: UtcMillis(1_800_000_010_000) };

    fn event(last: u8, reason: Reason) -> Event {
        let rule = Ruled::new(Head::new(Action::Deny, Origin::Feed, 0, false), 24);
        let source = u32::from_be_bytes([192, 0, 2, last]);
        Event {
            time_ns: 9_000_000_000,
            interface: u32::MAX,
            rule: rule.bits(),
            reason: reason as u32,
            source_port: 40_000,
            ..Event::of(Packet::v4(source, Transport::tcp(443, 2)))
        }
    }

    #[test]
    fn an_event_says_what_the_packet_met() {
        let mut log = Log::default();
        log.push(&event(7, Reason::Deny), NOW);
        let page = log.page(0, 10, &Filter::default());
        let [event] = page.events.as_slice() else { panic!("{page:?}") };
        assert_eq!(event.time, UtcMillis(1_800_000_009_000));
        assert_eq!(event.source, IpAddr::from([192, 0, 2, 7]));
        let prefix = "192.0.2.0/24".parse().unwrap();
        let rule = RuleMet { prefix, action: Action::Deny, origin: Origin::Feed };
        assert_eq!(event.rule, Some(rule));
        assert_eq!((event.protocol, event.ports), ("tcp", Some((40_000, 443))));
        assert_eq!(&*event.interface, "4294967295");
    }

    #[test]
    fn the_log_is_bounded_and_says_what_went_by() {
        let mut log = Log::default();
        let news = log.watch();
        for _ in 0..KEPT_EVENTS + 10 {
            log.push(&event(7, Reason::Deny), NOW);
        }
        assert!(news.has_changed().unwrap());
        let all = log.page(0, usize::MAX, &Filter::default());
        assert_eq!((all.events.len(), all.missed), (KEPT_EVENTS, 0));
        let late = log.page(3, usize::MAX, &Filter::default());
        assert_eq!((late.events.len(), late.missed), (KEPT_EVENTS, 7));
        let last = log.page(all.last - 2, usize::MAX, &Filter::default());
        let numbers: Vec<u64> = last.events.iter().map(|event| event.number).collect();
        assert_eq!((numbers, last.missed), (vec![all.last - 1, all.last], 0));
        assert_eq!(log.page(all.last, 10, &Filter::default()).events, []);
        let ahead = log.page(all.last + 1, 1, &Filter::default());
        assert_eq!(ahead.events[0].number, all.last, "of another process: from the beginning");
    }

    #[test]
    fn filters_and_sources() {
        let mut log = Log::default();
        for (last, reason) in [(1, Reason::Deny), (2, Reason::Limit), (2, Reason::Deny)] {
            log.push(&event(last, reason), NOW);
        }
        let numbers = |filter: Filter| {
            let page = log.page(0, 10, &filter);
            page.events.iter().map(|event| event.number).collect::<Vec<_>>()
        };
        let source = Some("192.0.2.2/32".parse().unwrap());
        assert_eq!(numbers(Filter { source, reason: None }), [2, 3]);
        assert_eq!(numbers(Filter { source, reason: Some(Reason::Limit) }), [2]);
        let sources = log.sources(UtcMillis(0), 1);
        assert_eq!(sources.len(), 1);
        assert_eq!((sources[0].0, sources[0].1.number), (2, 3));
        assert_eq!(log.sources(UtcMillis(u64::MAX), 9), []);
    }
}
