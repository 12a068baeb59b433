//! Who is connected to the management ports, for how long. Whoever only knocks there, as scanners do, is no operator:
//! SSH ends a connection by which nobody logs in within `LoginGraceTime`, two minutes by default (sshd_config(5)).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Once;

use crate::base::time::BootTime;
use crate::rules::sockets::established_peers;

/// Connections that are older than this are sessions (unit: nanoseconds).
const LASTING_NS: u64 = 150 * 1_000_000_000;

/// Established connections to the management ports, each with when it was first seen; 0 for those that are sessions
/// whatever their age.
#[derive(Debug, Default)]
pub struct Sessions {
    since: HashMap<SocketAddr, BootTime>,
    /// When they were last looked at.
    seen: BootTime,
}

impl Sessions {
    /// Looks who is connected. Every connection is a session from now on: one of them may be that of whoever asks for a
    /// change, who must not be locked out by it.
    pub fn look_all(&mut self, ports: &[u16]) {
        self.since.clear();
        self.update(established(ports), BootTime(0));
    }

    /// Looks who is connected.
    pub fn look(&mut self, ports: &[u16], now: BootTime) {
        self.seen = now;
        self.update(established(ports), now);
    }

    /// The peers of sessions.
    pub fn peers(&self) -> impl Iterator<Item = IpAddr> {
        let age_ns = |since: BootTime| self.seen.0.saturating_sub(since.0);
        let is_session = move |since: BootTime| since.0 == 0 || age_ns(since) >= LASTING_NS;
        let sessions = self.since.iter().filter(move |(_, since)| is_session(**since));
        sessions.map(|(peer, _)| peer.ip())
    }

    /// Takes note of who is connected, of those who were not before as connected `since` then.
    fn update(&mut self, connected: Vec<SocketAddr>, since: BootTime) {
        let first = |peer: SocketAddr| (peer, self.since.get(&peer).copied().unwrap_or(since));
        self.since = connected.into_iter().map(first).collect();
    }
}

fn established(ports: &[u16]) -> Vec<SocketAddr> {
    established_peers(ports).unwrap_or_else(|error| {
        static TOLD: Once = Once::new();
        TOLD.call_once(|| {
            tracing::warn!(%error, "who is connected to management ports cannot be found out");
        });
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn who_knocks_is_no_session_until_it_lasts_or_a_command_comes() {
        let [one, two] =
            ["192.0.2.1:40000", "192.0.2.2:40000"].map(|peer| peer.parse::<SocketAddr>().unwrap());
        let mut sessions = Sessions::default();
        let mut look = |connected: &[SocketAddr], seconds: u64| {
            sessions.seen = BootTime((1000 + seconds) * 1_000_000_000);
            sessions.update(connected.to_vec(), sessions.seen);
            sessions.peers().collect::<BTreeSet<IpAddr>>()
        };
        assert!(look(&[one], 0).is_empty());
        assert!(look(&[one, two], 100).is_empty());
        assert_eq!(look(&[one, two], 150), BTreeSet::from([one.ip()]));
        assert!(look(&[two], 160).is_empty(), "it has gone");
        assert!(look(&[one, two], 170).is_empty(), "and comes anew");
        // A command.
        sessions.since.clear();
        sessions.update(vec![one, two], BootTime(0));
        assert_eq!(sessions.peers().count(), 2);
        sessions.update(vec![one], sessions.seen);
        assert_eq!(sessions.peers().collect::<Vec<_>>(), [one.ip()], "it stays one");
    }
}
