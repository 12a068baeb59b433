//! URLs of identity providers: whoever can change what comes from there, or read what is sent, can be anybody.

use std::net::IpAddr;

use http::Uri;

use crate::config::at::At;
use crate::config::lists::url;
use crate::config::tree::shorten;

/// https, or http that does not leave this host.
pub(super) fn private_url(text: &str, example: &str, at: At<'_>) -> Option<Uri> {
    let url = url(text, example, at)?;
    if url.scheme_str() == Some("https") || url.host().is_some_and(is_loopback) {
        return Some(url);
    }
    let secure = shorten(text).replacen("http://", "https://", 1);
    at.error_with_help(
        "anybody on the way could say who is calling",
        format!("write {secure}: without TLS only addresses of this host are asked"),
    );
    None
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
