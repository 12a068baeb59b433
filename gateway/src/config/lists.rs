//! `kernel.allow_files`, `kernel.deny_files`, `kernel.feeds`: lists that are kept elsewhere, each under a name of its
//! own. Looks at no file and fetches nothing.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gateway_common::rule::Action;
use http::Uri;

use super::at::At;
use super::raw::{RawFeed, RawFeedAction, RawKernel, RawListFile, RawListFileSection};
use super::tree::shorten;
use super::value::{duration, file_path, interval, share, size};

/// Files and feeds together.
const LISTS_MAX: usize = 256;
const MINUTE: Duration = Duration::from_secs(60);
const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// A version is held in memory while it is read.
const FEED_BYTES: std::ops::RangeInclusive<u64> = 1 << 10..=1 << 30;

/// A file of prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListFile {
    /// What its rules are listed under: lower-case letters, digits, `_` and `-`, at most 64.
    pub name: String,
    /// Where it is; absolute in a configuration that was read from a file.
    pub path: PathBuf,
    /// Count what would be dropped, drop nothing.
    pub dry_run: bool,
    /// Entries at least, as a share of those of the version in force, or a new one is held back.
    pub min_entries: Share,
}

/// A list that is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    /// What its rules are listed under: lower-case letters, digits, `_` and `-`, at most 64.
    pub name: String,
    /// `http` or `https`, with a host and without a user.
    pub url: Uri,
    /// Time between two fetches.
    pub every: Duration,
    /// Deny or allow.
    pub action: Action,
    /// Count what would be dropped, drop nothing.
    pub dry_run: bool,
    /// PEM file of the authorities that alone are trusted; `None` for the system's. Absolute as [`ListFile::path`] is.
    pub ca: Option<PathBuf>,
    /// For one fetch as a whole.
    pub timeout: Duration,
    /// Bytes of one version.
    pub max_bytes: u64,
    /// What a new version must keep to.
    pub bounds: FeedBounds,
}

/// What a new version of a feed must keep to, or it is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedBounds {
    /// Entries at least, as a share of those of the last good version.
    pub min_entries: Share,
    /// Entries at most, as a share of those of the last good version.
    pub max_entries: Share,
    /// What it may cover of the addresses of IPv4, and of those of IPv6 that are handed out.
    pub max_address_share: Share,
}

/// A part of something, or a multiple of it (unit: parts per million).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The whole.
    pub const WHOLE: Self = Self(1_000_000);

    /// So many parts of a million.
    pub const fn per_million(parts: u32) -> Self {
        Self(parts)
    }

    /// As parts of a million.
    pub const fn parts_per_million(self) -> u32 {
        self.0
    }

    /// How `part` of `whole` compares with it, exactly.
    pub fn compare(self, part: u64, whole: u64) -> std::cmp::Ordering {
        (u128::from(part) * 1_000_000).cmp(&(u128::from(whole) * u128::from(self.0)))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / 10_000, format!("{:04}", self.0 % 10_000));
        match fraction.trim_end_matches('0') {
            "" => write!(formatter, "{whole}%"),
            fraction => write!(formatter, "{whole}.{fraction}%"),
        }
    }
}

impl Feed {
    /// Where it is fetched from, if its URL says that by an address.
    pub fn address(&self) -> Option<IpAddr> {
        let host = self.url.host()?.trim_start_matches('[').trim_end_matches(']');
        host.parse().ok().map(|address: IpAddr| address.to_canonical())
    }
}

/// All lists that are kept elsewhere.
pub(super) struct Lists {
    pub(super) allow_files: Vec<ListFile>,
    pub(super) deny_files: Vec<ListFile>,
    pub(super) feeds: Vec<Feed>,
}

pub(super) fn lists(raw: &RawKernel, folder: &Path, at: At<'_>) -> Lists {
    let mut names = Names::default();
    let mut paths = HashMap::new();
    let mut files = |raw: &[RawListFile], at: At<'_>| {
        let read = raw.iter().enumerate();
        let read = read.filter_map(|(index, raw)| {
            let file = file(raw, folder, &mut names, at.item(index))?;
            let line = at.item(index).line();
            if let Some(other) = paths.insert(file.path.clone(), line) {
                at.item(index).error_with_help(
                    format!("`{}` is given twice", shorten(&file.path.display().to_string())),
                    format!("the other is in line {other}: remove one of the two"),
                );
            }
            Some(file)
        });
        read.collect()
    };
    let allow_files: Vec<ListFile> = files(&raw.allow_files, at.key("allow_files"));
    let deny_files: Vec<ListFile> = files(&raw.deny_files, at.key("deny_files"));
    let at = at.key("feeds");
    let feeds = raw.feeds.iter().enumerate();
    let feeds: Vec<Feed> =
        feeds.filter_map(|(index, raw)| feed(raw, folder, &mut names, at.item(index))).collect();
    let count = raw.allow_files.len() + raw.deny_files.len() + raw.feeds.len();
    if count > LISTS_MAX {
        at.on_key().error_with_help(
            format!("{count} files and feeds are too many"),
            format!("join some of them: there is room for {LISTS_MAX}"),
        );
    }
    Lists { allow_files, deny_files, feeds }
}

/// Where each name is used first.
#[derive(Default)]
struct Names(HashMap<String, usize>);

impl Names {
    fn add(&mut self, name: &str, help: &str, at: At<'_>) -> Option<String> {
        let known =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(known) {
            at.error_with_help(format!("`{}` is no name for a list", shorten(name)), help);
            return None;
        }
        if let Some(line) = self.0.get(name) {
            at.error_with_help(
                format!("two lists are called `{name}`"),
                format!("the other is in line {line}: give one of them another name"),
            );
            return None;
        }
        self.0.insert(name.to_owned(), at.line());
        Some(name.to_owned())
    }
}

const NAME_HELP: &str = "write lower-case letters, digits, `_` and `-`, at most 64";

fn file(raw: &RawListFile, folder: &Path, names: &mut Names, at: At<'_>) -> Option<ListFile> {
    let (text, name, dry_run, path_at) = match raw {
        RawListFile::Text(text) => (text, None, false, at),
        RawListFile::Section(section) => {
            (&section.path, section.name.as_deref(), section.dry_run, at.key("path"))
        }
    };
    let min_entries = match raw {
        RawListFile::Text(_) => Some(Share::ZERO),
        RawListFile::Section(RawListFileSection { min_entries, .. }) => {
            share(min_entries, Share::ZERO..=Share::WHOLE, at.key("min_entries"))
        }
    };
    let path = file_path(text, folder, path_at)?;
    let name = match name {
        Some(name) => names.add(name, NAME_HELP, at.key("name")),
        None => {
            let stem = Path::new(text).file_stem().unwrap_or_default().to_string_lossy();
            let help = format!("name it: {{path: {}, name: ...}}; {NAME_HELP}", shorten(text));
            names.add(&stem, &help, path_at)
        }
    };
    Some(ListFile { name: name?, path, dry_run, min_entries: min_entries? })
}

/// All that is wrong with it at once.
fn feed(raw: &RawFeed, folder: &Path, names: &mut Names, at: At<'_>) -> Option<Feed> {
    let percent = |percent: u32| Share::per_million(percent * 10_000);
    let most = percent(100_000);
    let least = Share::per_million(1);
    let name = names.add(&raw.name, NAME_HELP, at.key("name"));
    let url = url(&raw.url, "https://feeds.example.com/drop.txt", at.key("url"));
    let every = interval(&raw.every, MINUTE..=MONTH, at.key("every"));
    let timeout = duration(&raw.timeout, at.key("timeout"));
    let max_bytes = size(&raw.max_bytes, FEED_BYTES, at.key("max_bytes"));
    let ca = raw.ca.as_ref().map(|ca| file_path(ca, folder, at.key("ca")));
    let within = |text, bounds, key| share(text, bounds, at.key(key));
    let min_entries = within(&raw.min_entries, Share::ZERO..=Share::WHOLE, "min_entries");
    let max_entries = within(&raw.max_entries, Share::WHOLE..=most, "max_entries");
    let max_address_share =
        within(&raw.max_address_share, least..=Share::WHOLE, "max_address_share");
    Some(Feed {
        name: name?,
        url: url?,
        every: every?,
        action: match raw.action {
            RawFeedAction::Deny => Action::Deny,
            RawFeedAction::Allow => Action::Allow,
        },
        dry_run: raw.dry_run,
        ca: ca.flatten(),
        timeout: timeout?,
        max_bytes: max_bytes?,
        bounds: FeedBounds {
            min_entries: min_entries?,
            max_entries: max_entries?,
            max_address_share: max_address_share?,
        },
    })
}

/// A URL that the gateway itself calls.
pub(super) fn url(text: &str, example: &str, at: At<'_>) -> Option<Uri> {
    let example = format!("write one such as {example}");
    let known = text.parse().ok().filter(|url: &Uri| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
            && url.port_u16() != Some(0)
    });
    let Some(url) = known else {
        let message = format!("`{}` is no http:// or https:// URL", shorten(text));
        at.error_with_help(message, example);
        return None;
    };
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        let message = format!("`{}` has a user in it, which is not sent", shorten(text));
        at.error_with_help(message, example);
        return None;
    }
    Some(url)
}
