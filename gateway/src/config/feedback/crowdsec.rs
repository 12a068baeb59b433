//! `feedback.crowdsec`: a crowdsec whose decisions are carried out here. Looks at no file and asks nobody.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use serde::Deserialize;

use crate::config::at::At;
use crate::config::lists::url;
use crate::config::secret::{RawSecret, SecretSource, secret};
use crate::config::tree::shorten;
use crate::config::value::{file_path, interval};

const EVERY: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);
const EXAMPLE: &str = "http://127.0.0.1:8080";
/// What is asked for below `url`.
const PATH: &str = "/v1/decisions/stream";

/// A crowdsec that is asked whom to hold off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedbackCrowdsec {
    /// Its Local API, `http` or `https`, without a query.
    pub url: Uri,
    /// PEM file of the authorities that are trusted; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// What it knows this gateway by.
    pub key: SecretSource,
    /// How often it is asked.
    pub every: Duration,
}

impl FeedbackCrowdsec {
    /// The address of its URL, if that has one instead of a name.
    pub fn address(&self) -> Option<IpAddr> {
        let host = self.url.host()?.trim_start_matches('[').trim_end_matches(']');
        host.parse().ok().map(|address: IpAddr| address.to_canonical())
    }

    /// What is asked: for all that holds, or for what has changed since.
    pub fn question(&self, whole: bool) -> String {
        let base = self.url.to_string();
        format!("{}{PATH}?startup={whole}&scopes=ip,range", base.trim_end_matches('/'))
    }
}

/// `feedback.crowdsec` as typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCrowdsec {
    url: String,
    /// Default: the system's authorities.
    #[serde(default)]
    ca: Option<String>,
    key: RawSecret,
    /// Default: 10s.
    #[serde(default)]
    every: Option<String>,
}

/// All that is wrong with it at once.
pub(super) fn crowdsec(raw: &RawCrowdsec, folder: &Path, at: At<'_>) -> Option<FeedbackCrowdsec> {
    let url = url(&raw.url, EXAMPLE, at.key("url")).filter(|url| {
        let is_base = url.query().is_none() && !url.path().trim_end_matches('/').ends_with("/v1");
        if !is_base || url.path().contains("/v1/") {
            at.key("url").error_with_help(
                format!("`{}` is more than the address of a Local API", shorten(&raw.url)),
                format!("write one such as {EXAMPLE}: {PATH} is asked for below it"),
            );
        }
        true
    });
    let ca = raw.ca.as_ref().map(|ca| file_path(ca, folder, at.key("ca")));
    let key = secret(&raw.key, folder, at.key("key"));
    let every = interval(raw.every.as_deref().unwrap_or("10s"), EVERY, at.key("every"));
    Some(FeedbackCrowdsec { url: url?, ca: ca.flatten(), key: key?, every: every? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn with(section: &str) -> Result<FeedbackCrowdsec, String> {
        let text = format!("listen: [{{address: 127.0.0.1:1}}]\nfeedback: {{crowdsec: {section}}}");
        let parsed = parse("/etc/gateway.yaml", &text).map_err(|errors| errors.to_string())?;
        Ok(parsed.feedback.as_ref().unwrap().crowdsec.clone().unwrap())
    }

    #[test]
    fn the_shortest_section_asks_every_ten_seconds() {
        let crowdsec = with("{url: 'http://[::1]:8080', key: {file: key}}").unwrap();
        assert_eq!(crowdsec.key, SecretSource::File("/etc/key".into()));
        assert_eq!((crowdsec.every, &crowdsec.ca), (Duration::from_secs(10), &None));
        assert_eq!(crowdsec.address(), Some("::1".parse().unwrap()));
        assert_eq!(
            crowdsec.question(true),
            "http://[::1]:8080/v1/decisions/stream?startup=true&scopes=ip,range"
        );
        let below = with("{url: 'https://c.example/lapi/', key: {env: K}, every: 1m}").unwrap();
        assert_eq!((below.address(), below.every), (None, Duration::from_secs(60)));
        assert_eq!(
            below.question(false),
            "https://c.example/lapi/v1/decisions/stream?startup=false&scopes=ip,range"
        );
    }

    #[test]
    fn mistakes_are_named_with_their_place_and_what_to_do() {
        let key = "key: {env: K}";
        for (section, message) in [
            (format!("{{{key}}}"), "`url`"),
            ("{url: 'http://127.0.0.1:8080'}".to_owned(), "`key`"),
            (format!("{{url: 127.0.0.1, {key}}}"), "write one such as http://127.0.0.1:8080"),
            (format!("{{url: 'ftp://a', {key}}}"), "is no http:// or https:// URL"),
            (format!("{{url: 'http://a/v1/decisions/stream', {key}}}"), "is asked for below it"),
            (format!("{{url: 'http://a/v1/', {key}}}"), "is asked for below it"),
            (format!("{{url: 'http://a/?startup=true', {key}}}"), "is asked for below it"),
            ("{url: 'http://a', key: hunter2}".to_owned(), "write {file: PATH} or {env: NAME}"),
            (format!("{{url: 'http://a', {key}, every: 0s}}"), "write 1s to 1h"),
            (format!("{{url: 'http://a', {key}, every: 2h}}"), "write 1s to 1h"),
            (format!("{{url: 'http://a', {key}, evry: 1s}}"), "did you mean `every`?"),
        ] {
            let said = with(&section).expect_err(&section);
            let shown = said.contains(message) && said.contains(":2:") && !said.contains("hunter2");
            assert!(shown, "{section}: {said}");
        }
    }
}
