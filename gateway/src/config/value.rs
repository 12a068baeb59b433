//! The small texts that every section uses: addresses, prefixes, durations, sizes, rates, names, paths. Each is read
//! whole or refused with what to write instead.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gateway_common::bucket::Bucket;
use humantime::format_duration;
use ipnet::IpNet;

use super::Share;
use super::at::At;
use super::tree::shorten;
use crate::base::prefix;

/// No wait is longer than this.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// `ip:port`, the port not 0.
pub(super) fn socket_address(text: &str, at: At<'_>) -> Option<SocketAddr> {
    let shown = shorten(text);
    let Ok(address) = text.parse::<SocketAddr>() else {
        let (message, help) = if text.parse::<IpAddr>().is_ok() {
            let example =
                if text.contains(':') { format!("[{text}]:80") } else { format!("{text}:80") };
            (format!("`{shown}` has no port"), format!("write the port too, such as {example}"))
        } else if text.parse::<u16>().is_ok() {
            let help = format!("write the address too: 0.0.0.0:{text} for every IPv4 interface");
            (format!("`{shown}` is only a port"), help)
        } else {
            let message = format!("`{shown}` is no IP address with a port");
            let help = "write one such as 127.0.0.1:8080 or [::1]:8080; no name of a host";
            (message, help.to_owned())
        };
        at.error_with_help(message, help);
        return None;
    };
    if address.port() == 0 {
        at.error_with_help(
            format!("port 0 of `{shown}` stands for any free port"),
            "write the port that is meant, from 1 to 65535",
        );
        return None;
    }
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// `ip` or `ip:port`, the port not 0.
pub(super) fn port_or(text: &str, port: u16, at: At<'_>) -> Option<SocketAddr> {
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
    let address = address.or_else(|_| text.parse::<SocketAddr>()).ok();
    match address.filter(|address| address.port() != 0) {
        Some(address) => Some(SocketAddr::new(address.ip().to_canonical(), address.port())),
        None => {
            at.error_with_help(
                format!("`{}` is no IP address", shorten(text)),
                "write one such as 10.0.0.2, 10.0.0.2:5353 or \"[::1]:5353\"",
            );
            None
        }
    }
}

/// A list of prefixes, each once.
pub(super) fn prefixes(texts: &[String], at: At<'_>) -> Vec<(IpNet, usize)> {
    let mut lines: HashMap<IpNet, usize> = HashMap::new();
    let mut found = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let at = at.item(index);
        let Some(net) = one_prefix(text, at) else { continue };
        match lines.get(&net) {
            Some(line) => at.error_with_help(
                format!("`{}` is given twice", prefix::display(&net)),
                format!("the first is in line {line}: remove one of the two"),
            ),
            None => {
                lines.insert(net, at.line());
                found.push((net, index));
            }
        }
    }
    found
}

/// A prefix without host bits.
pub(super) fn one_prefix(text: &str, at: At<'_>) -> Option<IpNet> {
    match prefix::parse(&shorten(text)) {
        Ok(net) => Some(net),
        Err(error) => {
            at.error(error.to_string());
            None
        }
    }
}

/// A duration above zero and of at most a day.
pub(super) fn duration(text: &str, at: At<'_>) -> Option<Duration> {
    let shown = shorten(text);
    let duration = any_duration(text, at)?;
    if duration.is_zero() {
        at.error_with_help(
            format!("`{shown}` leaves no time at all"),
            "every wait has a bound above zero, such as 10s",
        );
        return None;
    }
    if duration > DURATION_MAX {
        at.error_with_help(
            format!("`{shown}` is longer than a day"),
            "every wait has a bound: at most 24h",
        );
        return None;
    }
    Some(duration)
}

/// A duration within bounds of its own.
pub(super) fn interval(
    text: &str,
    bounds: RangeInclusive<Duration>,
    at: At<'_>,
) -> Option<Duration> {
    let duration = any_duration(text, at)?;
    if bounds.contains(&duration) {
        return Some(duration);
    }
    let [min, max] = [bounds.start(), bounds.end()].map(|bound| format_duration(*bound));
    at.error_with_help(
        format!("`{}` is out of bounds", shorten(text)),
        format!("write {min} to {max}"),
    );
    None
}

fn any_duration(text: &str, at: At<'_>) -> Option<Duration> {
    let duration = humantime::parse_duration(text.trim());
    if duration.is_err() {
        at.error_with_help(
            format!("`{}` is no duration", shorten(text)),
            "write a number with its unit, such as 500ms, 10s, 1m30s or 1h",
        );
    }
    duration.ok()
}

/// `50%` or `0.5%`, within bounds.
pub(super) fn share(text: &str, bounds: RangeInclusive<Share>, at: At<'_>) -> Option<Share> {
    let Some(share) = share_of(text) else {
        at.error_with_help(
            format!("`{}` is no share", shorten(text)),
            "write a number of percent, such as 50% or 0.5%",
        );
        return None;
    };
    if !bounds.contains(&share) {
        at.error_with_help(
            format!("{share} is out of bounds"),
            format!("write {} to {}", bounds.start(), bounds.end()),
        );
        return None;
    }
    Some(share)
}

pub(super) fn share_of(text: &str) -> Option<Share> {
    /// Parts per million have four digits behind the point of a percentage.
    const DECIMALS: usize = 4;
    let number = text.trim().strip_suffix('%')?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > DECIMALS {
        return None;
    }
    let fraction = digits(&format!("{fraction:0<DECIMALS$}"))?;
    let per_million = digits(whole)?.checked_mul(10_000)?.checked_add(fraction)?;
    u32::try_from(per_million).ok().map(Share::per_million)
}

/// A size in bytes, `KiB`, `MiB` or `GiB`, within bounds.
pub(super) fn size(text: &str, bounds: RangeInclusive<u64>, at: At<'_>) -> Option<u64> {
    let text = text.trim();
    let split = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at_checked(split).unwrap_or_default();
    let factor = match unit.trim_start() {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let bytes = digits
        .parse::<u64>()
        .ok()
        .zip(factor)
        .and_then(|(number, factor): (u64, u64)| number.checked_mul(factor));
    let Some(bytes) = bytes else {
        at.error_with_help(
            format!("`{}` is no size", shorten(text)),
            "write bytes or a unit of 1024, such as 65536, 64KiB or 10MiB",
        );
        return None;
    };
    within(bytes, bounds, "bytes", at)
}

/// A count within bounds.
pub(super) fn count(number: u64, bounds: RangeInclusive<u64>, at: At<'_>) -> Option<usize> {
    within(number, bounds, "", at).and_then(|number| usize::try_from(number).ok())
}

/// A small count within bounds.
pub(super) fn within_u32(number: u64, bounds: RangeInclusive<u64>, at: At<'_>) -> Option<u32> {
    within(number, bounds, "", at).and_then(|number| u32::try_from(number).ok())
}

fn within(number: u64, bounds: RangeInclusive<u64>, unit: &str, at: At<'_>) -> Option<u64> {
    if bounds.contains(&number) {
        return Some(number);
    }
    let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
    at.error_with_help(
        format!("{number}{unit} is out of bounds"),
        format!("write {} to {}{unit}", bounds.start(), bounds.end()),
    );
    None
}

/// `20000/s burst 40000`, `100/min`, `10/h` or `unlimited`. Without `burst` it is what one second brings, at least 1.
pub(super) fn rate(text: &str, at: At<'_>) -> Option<Bucket> {
    if text.trim() == "unlimited" {
        return Some(Bucket::UNLIMITED);
    }
    let Some((count, seconds, burst)) = rate_parts(text) else {
        at.error_with_help(
            format!("`{}` is no rate", shorten(text)),
            "write a count and s, min or h, such as 20000/s, 100/min or 20000/s burst 40000, \
             or unlimited",
        );
        return None;
    };
    let bucket = Bucket::per(seconds, count, burst.unwrap_or((count / seconds).max(1)));
    if bucket.is_none() {
        at.error_with_help(
            format!("the rate `{}` cannot be kept", shorten(text)),
            format!(
                "write 1/h to {}/s and a burst from 1 whose refill takes less than 500 years, \
                 or unlimited",
                Bucket::MAX_RATE
            ),
        );
    }
    bucket
}

/// A count, the seconds that it comes in, and what may come at once, as in `5/15min burst 10`.
pub(super) fn rate_parts(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let mut words = text.split_whitespace();
    let (count, unit) = words.next()?.split_once('/')?;
    let number = unit.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = unit.split_at_checked(number)?;
    let number = if number.is_empty() { 1 } else { digits(number).filter(|number| *number > 0)? };
    let seconds = match unit {
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        _ => return None,
    };
    let seconds = number.checked_mul(seconds)?;
    let burst = match words.next() {
        None => None,
        Some("burst") => Some(digits(words.next()?)?),
        Some(_) => return None,
    };
    words.next().is_none().then_some((digits(count)?, seconds, burst))
}

fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A name that is safe in a log line, a metric label and a command line.
pub(super) fn name(text: &str, what: &str, at: At<'_>) -> bool {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let good = first && rest && text.len() <= 64;
    if !good {
        at.error_with_help(
            format!("`{}` is no name for {what}", shorten(text)),
            "write letters, digits, `-`, `_` and `.`, the first a letter or digit, at most 64",
        );
    }
    good
}

/// An absolute path.
pub(super) fn absolute_path(text: &str, at: At<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(text);
    let ordinary = |part| !matches!(part, std::path::Component::ParentDir);
    if path.is_absolute() && path.components().all(ordinary) && !text.contains('\0') {
        return Some(path);
    }
    at.error_with_help(
        format!("`{}` is no absolute path", shorten(text)),
        "write the whole path from `/`, without `..`: the daemon's working directory is not yours",
    );
    None
}

/// A path from the root or from the folder of the configuration.
pub(super) fn file_path(text: &str, folder: &Path, at: At<'_>) -> Option<PathBuf> {
    let path = Path::new(text);
    let ordinary = |part| !matches!(part, std::path::Component::ParentDir);
    let good = path.file_name().is_some() && !text.ends_with('/') && !text.contains('\0');
    if good && path.components().all(ordinary) {
        return Some(folder.join(path));
    }
    at.error_with_help(
        format!("`{}` is no path of a file", shorten(text)),
        "write it from `/` or from the folder of this file, without `..`",
    );
    None
}

/// Ports, none of them 0, each once.
pub(super) fn ports(numbers: &[u16], at: At<'_>) -> Vec<u16> {
    let mut found: Vec<u16> = Vec::new();
    for (index, port) in numbers.iter().copied().enumerate() {
        let at = at.item(index);
        if port == 0 {
            at.error_with_help("there is no port 0", "write a port from 1 to 65535");
        } else if found.contains(&port) {
            at.error_with_help(format!("port {port} is given twice"), "remove one of the two");
        } else {
            found.push(port);
        }
    }
    found
}
