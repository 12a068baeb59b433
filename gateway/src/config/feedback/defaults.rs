//! What holds where the file says nothing. docs/feedback.md has the reason of each.

use std::time::Duration;

use super::{FeedbackBy, FeedbackRule, Measure};
use crate::base::signal::Signal;

/// Paths that public lists of scanners' requests have in common, in lower case. Not among them is what honest software
/// asks for where it is not: Outlook `/autodiscover/`, monitors `/server-status`, old pages `/wp-content/`.
pub(super) const SCANNER_PATHS: [&str; 42] = [
    "/.aws/*",
    "/.bash_history",
    "/.docker/*",
    "/.ds_store",
    "/.env*",
    "/.git/*",
    "/.gitlab-ci.yml",
    "/.hg/*",
    "/.htaccess",
    "/.htpasswd",
    "/.npmrc",
    "/.ssh/*",
    "/.svn/*",
    "/.vscode/*",
    "/_ignition/*",
    "/adminer*",
    "/backup.sql*",
    "/backup.zip",
    "/boaform/*",
    "/cgi-bin/*",
    "/dump.sql*",
    "/ecp/*",
    "/geoserver/*",
    "/hnap1*",
    "/id_rsa",
    "/info.php",
    "/manager/html*",
    "/myadmin*",
    "/phpinfo*",
    "/phpmyadmin*",
    "/pma/*",
    "/sdk/webs*",
    "/setup.cgi",
    "/solr/*",
    "/telescope/*",
    "/vendor/phpunit/*",
    "/web.config",
    "/wordpress/wp-*",
    "/wp-admin/*",
    "/wp-config*",
    "/wp-login.php",
    "/xmlrpc.php",
];

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

pub(super) fn rules() -> Vec<FeedbackRule> {
    use Measure::{Ban, Reset};
    use Signal::{
        AuthFailed, Forbidden, Malformed, NotFound, RateLimited, Scanner, SlowRequest, TlsFailed,
        WebsocketAbuse,
    };
    let distributed = FeedbackRule {
        by: FeedbackBy::Prefix { sources: 10 },
        ..rule("distributed_credential_stuffing", (AuthFailed, 200, 600), Ban, (600, 600))
    };
    vec![
        rule("credential_stuffing", (AuthFailed, 20, MINUTE), Ban, (600, DAY)),
        rule("slow_credential_stuffing", (AuthFailed, 100, HOUR), Reset, (HOUR, DAY)),
        distributed,
        rule("scanner", (Scanner, 5, 600), Ban, (HOUR, DAY)),
        rule("slow_request", (SlowRequest, 60, MINUTE), Ban, (600, 600)),
        rule("malformed", (Malformed, 20, MINUTE), Reset, (600, 600)),
        rule("tls_failed", (TlsFailed, 60, MINUTE), Reset, (300, 300)),
        rule("forbidden", (Forbidden, 100, MINUTE), Reset, (300, 300)),
        rule("rate_limited", (RateLimited, 100, 10), Reset, (MINUTE, HOUR)),
        rule("not_found", (NotFound, 300, MINUTE), Reset, (300, 300)),
        rule("websocket_abuse", (WebsocketAbuse, 30, MINUTE), Reset, (300, 300)),
    ]
}

/// By source: so many of a signal in so many seconds, and for how many seconds at first and at last.
fn rule(
    name: &str,
    (signal, count, per): (Signal, u32, u64),
    measure: Measure,
    (lasts, doubling_up_to): (u64, u64),
) -> FeedbackRule {
    FeedbackRule {
        name: name.into(),
        signals: vec![signal],
        limit: None,
        count,
        per: Duration::from_secs(per),
        by: FeedbackBy::Source,
        under_pressure: false,
        measure,
        lasts: Duration::from_secs(lasts),
        doubling_up_to: Duration::from_secs(doubling_up_to),
    }
}

/// What a signal counts, in thousandths. A connection without a request is what browsers and balancers make, too.
pub(super) fn weight(signal: Signal) -> u32 {
    match signal {
        Signal::NoRequest => 0,
        _ => 1000,
    }
}
