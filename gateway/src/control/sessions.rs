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
}

impl Sessions {
    /// The peers of every connection, all of which are sessions from now on: one of them may be that of whoever asks
    /// for a change, who must not be locked out by it.
    pub fn all(&mut self, ports: &[u16]) -> Vec<IpAddr> {
        self.since.clear();
        self.update(established(ports), BootTime(0), BootTime(LASTING_NS))
    }

    /// The peers of sessions.
    pub fn lasting(&mut self, ports: &[u16], now: BootTime) -> Vec<IpAddr> {
        self.update(established(ports), now, now)
    }

    /// Takes note of who is connected, of those who were not before as connected `since` then.
    fn update(
        &mut self,
        connected: Vec<SocketAddr>,
        since: BootTime,
        now: BootTime,
    ) -> Vec<IpAddr> {
        let first = |peer: SocketAddr| (peer, self.since.get(&peer).copied().unwrap_or(since));
        self.since = connected.into_iter().map(first).collect();
        let is_session =
            |since: BootTime| since.0 == 0 || now.0.saturating_sub(since.0) >= LASTING_NS;
        let sessions = self.since.iter().filter(|(_, since)| is_session(**since));
        sessions.map(|(peer, _)| peer.ip()).collect()
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

    #[test]
    fn who_knocks_is_no_session_until_it_lasts_or_a_command_comes() {
        let [one, two] = ["192.0.2.1:40000", "192.0.2.2:40000"].map(|peer| peer.parse().unwrap());
        let seconds = |seconds: u64| BootTime((1000 + seconds) * 1_000_000_000);
        let mut sessions = Sessions::default();
        let mut look =
            |connected: &[SocketAddr], now| sessions.update(connected.to_vec(), now, now);
        assert!(look(&[one], seconds(0)).is_empty());
        assert!(look(&[one, two], seconds(100)).is_empty());
        assert_eq!(look(&[one, two], seconds(150)), [one.ip()]);
        assert!(look(&[two], seconds(160)).is_empty(), "it has gone");
        assert!(look(&[one, two], seconds(170)).is_empty(), "and comes anew");
        assert_eq!(sessions.update(vec![one, two], BootTime(0), seconds(180)).len(), 0);
        sessions.since.clear();
        assert_eq!(sessions.update(vec![one, two], BootTime(0), seconds(181)).len(), 2);
        let later = seconds(182);
        assert_eq!(sessions.update(vec![one, two], later, later).len(), 2, "they stay sessions");
    }
}
