//! Others who decide about sources: the gateways of a group, and a crowdsec. Wires them; what they say is carried out
//! by [`spread`] and [`crowdsec`].

use std::net::IpAddr;

use super::crowdsec::{self, Crowdsec};
use super::{Control, spread};
use crate::base::secret::Secret;
use crate::base::time::{BootTime, Now};
use crate::config::{Config, SecretSource};
use crate::feedback::ban::{Author, Change};
use crate::feedback::decision::Subject;
use crate::feedback::spread::Spread;
use crate::shared::Redis;

/// Decisions of each that were not carried out and are looked at again.
pub(super) const WAITING_MAX: usize = 4096;
/// How often that is, where the guard does not judge in another way before: requests that were served are forgotten.
const LOOK_EVERY_NS: u64 = 60_000_000_000;

/// What the configuration says about others, with its secrets read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Secrets {
    pub(super) spread: Vec<Secret>,
    pub(super) crowdsec: Option<Secret>,
}

/// The secrets of `config`. Where they are for root alone, those of `before` stay, if the places are the same.
pub(super) fn secrets(
    config: &Config,
    before: Option<(&Config, &Secrets)>,
) -> Result<Secrets, String> {
    let of_spread = before.map(|(config, known)| (spread::places(config), &*known.spread));
    let of_crowdsec =
        before.map(|(config, known)| (crowdsec::places(config), known.crowdsec.as_slice()));
    let keys = read(spread::places(config), of_spread);
    let keys =
        keys.and_then(spread::checked).map_err(|error| format!("feedback.spread: {error}"))?;
    let key = read(crowdsec::places(config), of_crowdsec).map(|mut keys| keys.pop());
    let key = key.and_then(crowdsec::checked);
    let key = key.map_err(|error| format!("feedback.crowdsec: {error}"))?;
    Ok(Secrets { spread: keys, crowdsec: key })
}

fn read(
    places: &[SecretSource],
    before: Option<(&[SecretSource], &[Secret])>,
) -> Result<Vec<Secret>, String> {
    let read: Result<Vec<Secret>, String> = places.iter().map(SecretSource::read).collect();
    match (read, before) {
        (Err(_), Some((old, known))) if old == places => Ok(known.to_vec()),
        (read, _) => read,
    }
}

/// Those who are heard.
pub(super) struct Others {
    /// `None` where nobody is told and nobody heard.
    pub(super) spread: Option<Spread>,
    pub(super) crowdsec: Option<Crowdsec>,
    pub(super) secrets: Secrets,
    waiting: spread::Waiting,
    /// How the guard judged when it was last looked at what waits, and when that was.
    looked: (u64, BootTime),
}

impl Others {
    /// Begins to tell and to hear those whom the configuration leads to. Inside of a `LocalSet`.
    pub(super) fn start(config: &Config, redis: Option<&Redis>, secrets: Secrets) -> Self {
        let mut others = Self {
            spread: None,
            crowdsec: None,
            secrets: Secrets::default(),
            waiting: spread::Waiting::new(),
            looked: (0, BootTime(0)),
        };
        others.configure(config, redis, secrets);
        others
    }

    /// Takes over a configuration.
    pub(super) fn configure(&mut self, config: &Config, redis: Option<&Redis>, secrets: Secrets) {
        self.secrets = secrets;
        spread::configure(&mut self.spread, (config, redis), &self.secrets.spread);
        let wanted = config.feedback.as_ref().and_then(|feedback| feedback.crowdsec.as_ref());
        let wanted = wanted.zip(self.secrets.crowdsec.as_ref());
        self.crowdsec = wanted.map(|wanted| Crowdsec::new(wanted, self.crowdsec.take()));
    }

    /// Tells other gateways what happened to a ban here.
    pub(super) fn tell(&self, change: &Change, now: Now) {
        if let Some(spread) = self.spread.as_ref().filter(|_| is_told(&change.author)) {
            spread::tell(spread, change, now);
        }
    }

    /// Waits until others have decided something; for ever where there are none.
    pub(super) async fn arrived(&mut self) {
        let Self { spread, crowdsec, .. } = self;
        let spread = async {
            match spread {
                Some(spread) => spread.arrived().await,
                None => std::future::pending().await,
            }
        };
        let crowdsec = async {
            match crowdsec {
                Some(crowdsec) => crowdsec.arrived().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = spread => {}
            () = crowdsec => {}
        }
    }

    /// Whom is asked, and why.
    pub(super) fn peers(&self) -> impl Iterator<Item = (String, IpAddr)> + use<> {
        let peers = self.crowdsec.as_ref().map(|crowdsec| crowdsec.peers().to_vec());
        let peers = peers.unwrap_or_default().into_iter();
        peers.map(|address| ("feedback.crowdsec".to_owned(), address))
    }

    /// Asks nobody any more: a successor does.
    pub(super) fn pause(&mut self) {
        self.crowdsec.iter_mut().for_each(Crowdsec::pause);
    }

    /// There was none.
    pub(super) fn resume(&mut self) {
        self.crowdsec.iter_mut().for_each(Crowdsec::resume);
    }
}

/// Whether another time something else may become of a decision, by the name of what became of it.
pub(super) fn may_change(outcome: &str) -> bool {
    matches!(outcome, "guarded" | "good_share")
}

/// Whether other gateways are told of what somebody did: not what they did themselves, nor what a crowdsec says, which
/// tells each of its bouncers itself.
pub(super) fn is_told(author: &Author) -> bool {
    match author {
        Author::Feedback | Author::User(_) => true,
        Author::Outside(name) => name != crowdsec::NAME,
        Author::Gateway(_) => false,
    }
}

impl Control {
    /// Does what others decided, those of one turn.
    pub(super) fn hear(&mut self) {
        if self.others.crowdsec.as_mut().is_some_and(Crowdsec::has_moved) {
            // What it says may be about the address that it was asked at.
            self.protect(Now::read());
        }
        let (dry_run, now) = (self.is_feedback_dry(), Now::read());
        let Self { others, policy, feedback, .. } = self;
        if let Some(spread) = &others.spread {
            let spread = (spread, &mut others.waiting);
            spread::take((policy, feedback), spread, (dry_run, now));
        }
        if let Some(crowdsec) = &mut others.crowdsec {
            crowdsec.take((policy, feedback), (dry_run, now));
        }
        self.spare_who_must_not_be_banned();
        self.note_bans();
    }

    /// Looks again at what others decided and was not done, where that may have changed.
    pub(super) fn look_again_at_others(&mut self, now: Now) {
        let Self { others, policy, feedback, .. } = self;
        let (guard_changes, at) = others.looked;
        if policy.guard_changes() == guard_changes
            && now.boot.0 < at.0.saturating_add(LOOK_EVERY_NS)
        {
            return;
        }
        others.looked = (policy.guard_changes(), now.boot);
        let mut may = |subject: &Subject| {
            !policy.is_guarded(subject) && !feedback.is_beyond_ceiling(subject, now)
        };
        if let Some(spread) = &others.spread {
            spread::look_again((spread, &mut others.waiting), &mut may, now);
        }
        if let Some(crowdsec) = &mut others.crowdsec {
            crowdsec.look_again(&mut may, now);
        }
    }

    /// Whether decisions are only shown.
    pub(super) fn is_feedback_dry(&self) -> bool {
        self.config.feedback.as_ref().is_some_and(|feedback| feedback.dry_run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_that_only_root_may_read_stay_where_their_place_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let config = |path: &std::path::Path, url: &str| {
            let text = format!(
                "{{listen: [{{address: '127.0.0.1:1'}}], feedback: {{crowdsec: \
                 {{url: '{url}', key: {{file: '{}'}}}}}}}}",
                path.display()
            );
            crate::config::parse("/x.yaml", &text).unwrap()
        };
        let first = config(&path, "http://127.0.0.1:1");
        let missing = secrets(&first, None).unwrap_err();
        assert!(missing.starts_with("feedback.crowdsec: the file "), "{missing}");
        std::fs::write(&path, "k1\n").unwrap();
        let known = secrets(&first, None).unwrap();
        assert_eq!(known.crowdsec, Some(Secret::new(*b"k1")));
        std::fs::remove_file(&path).unwrap();
        let second = config(&path, "http://127.0.0.1:2");
        assert_eq!(secrets(&second, Some((&first, &known))), Ok(known.clone()));
        let elsewhere = config(&folder.path().join("other"), "http://127.0.0.1:1");
        assert!(secrets(&elsewhere, Some((&first, &known))).is_err());
        std::fs::write(&path, "a\nb").unwrap();
        let odd = secrets(&first, None).unwrap_err();
        assert!(odd.contains("no header field") && !odd.contains("a\nb"), "{odd}");
    }
}
