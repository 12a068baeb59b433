//! Asks a crowdsec, for as long as somebody listens: for all that holds at first and after a failure, then for what has
//! changed. Knows nothing of what becomes of the answers.

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::base::random::random;
use crate::base::secret::Secret;
use crate::base::time::Now;
use crate::config::FeedbackCrowdsec;
use crate::feedback::crowdsec::{ANSWER_BYTES_MAX, Heard, read};
use crate::outbound::{Bounds, Client, FetchError, Reason, display};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For all of an answer. Those with everything are long.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Who does not answer is asked again after twice as long each time, but not later than this, unless `every` is.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What became of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Became {
    /// It was understood.
    Understood,
    /// There was no connection.
    Unreachable,
    /// It took too long, or broke off.
    Broken,
    /// The key is not known there.
    Forbidden,
    /// Another status.
    Status,
    /// It was too long.
    TooLarge,
    /// It was no stream of decisions.
    Malformed,
}

impl Became {
    pub(super) const ALL: [(Self, &str); 7] = [
        (Self::Understood, "understood"),
        (Self::Unreachable, "unreachable"),
        (Self::Broken, "broken"),
        (Self::Forbidden, "forbidden"),
        (Self::Status, "status"),
        (Self::TooLarge, "too_large"),
        (Self::Malformed, "malformed"),
    ];

    fn of(reason: &Reason) -> Self {
        match reason {
            Reason::Url
            | Reason::NoAuthorities
            | Reason::Lookup(_)
            | Reason::Connect(..)
            | Reason::Tls(_) => Self::Unreachable,
            Reason::Timeout(..) | Reason::Broken(_) => Self::Broken,
            Reason::Status(status) if matches!(status.as_u16(), 401 | 403) => Self::Forbidden,
            Reason::TooLarge(_) => Self::TooLarge,
            Reason::Html(_) | Reason::Encoding(_) | Reason::Empty => Self::Malformed,
            Reason::Status(_)
            | Reason::Location(_)
            | Reason::Redirects
            | Reason::SecretRedirect
            | Reason::Downgrade => Self::Status,
        }
    }
}

/// What was asked for, and what came of it.
pub(super) struct Answer {
    /// All that holds, or what has changed.
    pub(super) whole: bool,
    /// Addresses that were talked to.
    pub(super) peers: Vec<IpAddr>,
    pub(super) heard: Result<Heard, (Became, String)>,
    pub(super) at: Now,
}

/// Asks for as long as somebody listens. Whoever does not take an answer is not asked for the next one.
pub(super) async fn run(config: FeedbackCrowdsec, key: Secret, answers: mpsc::Sender<Answer>) {
    let (mut client, mut whole, mut failures) = (None, true, 0u32);
    loop {
        let mut peers = Vec::new();
        let heard = ask((&config, &key), &mut client, whole, &mut peers).await;
        failures = if heard.is_ok() { 0 } else { failures.saturating_add(1) };
        let answer = Answer { whole, peers, heard, at: Now::read() };
        // It takes what it has sent as heard, whether or not that has arrived.
        whole = failures > 0;
        if answers.send(answer).await.is_err() {
            return;
        }
        sleep(pause(config.every, failures, random())).await;
    }
}

async fn ask(
    (config, key): (&FeedbackCrowdsec, &Secret),
    client: &mut Option<Client>,
    whole: bool,
    peers: &mut Vec<IpAddr>,
) -> Result<Heard, (Became, String)> {
    let unreachable = |error: &dyn ToString| (Became::Unreachable, error.to_string());
    let known = match client.take() {
        Some(known) => known,
        None => {
            let ca = config.ca.clone();
            // A file is read where nobody waits.
            let made = spawn_blocking(move || Client::new(ca.as_deref())).await;
            let made = made.map_err(|error| unreachable(&error))?;
            made.map_err(|error| unreachable(&error))?
        }
    };
    let url: Uri = config.question(whole).parse().map_err(|error| unreachable(&error))?;
    let mut key = HeaderValue::from_bytes(key.bytes()).map_err(|error| unreachable(&error))?;
    key.set_sensitive(true);
    let bounds = Bounds {
        connect_timeout: CONNECT_TIMEOUT,
        total_timeout: TIMEOUT,
        body_max_bytes: ANSWER_BYTES_MAX,
    };
    let field = (HeaderName::from_static("x-api-key"), &key);
    let bytes = known.get_as(&url, field, bounds, peers).await.map_err(|error| explain(&error))?;
    // After a failure the authorities are read anew.
    *client = Some(known);
    let read = spawn_blocking(move || read(&bytes, whole)).await;
    let malformed = |error: String| (Became::Malformed, format!("{} {error}", display(&url)));
    read.map_err(|error| malformed(error.to_string()))?.map_err(malformed)
}

fn explain(error: &FetchError) -> (Became, String) {
    let became = Became::of(&error.reason);
    let help = match became {
        Became::Forbidden => {
            ": the key of feedback.crowdsec is not one of its bouncers, `cscli bouncers add NAME` \
             makes one"
        }
        _ => "",
    };
    (became, format!("{error}{help}"))
}

/// Time until it is asked again, a tenth more or less, so that not all gateways come at once.
pub(super) fn pause(every: Duration, failures: u32, random: u64) -> Duration {
    let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    let pause = every.saturating_mul(doubled).min(every.max(RETRY_MAX));
    let permille = 900 + u32::try_from(random % 201).unwrap_or(0);
    pause.saturating_mul(permille) / 1000
}
