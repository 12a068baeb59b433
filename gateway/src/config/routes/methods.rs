//! Methods of requests, in capitals.

use http::Method;

use crate::config::at::At;
use crate::config::diagnostic::did_you_mean;
use crate::config::tree::shorten;

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];

/// Each once.
pub(in crate::config) fn methods(raw: &[String], at: At<'_>) -> Option<Vec<Method>> {
    let mut found: Vec<Method> = Vec::new();
    let mut good = true;
    for (index, text) in raw.iter().enumerate() {
        let at = at.item(index);
        match method(text) {
            Ok(method) if found.contains(&method) => {
                at.error_with_help(format!("`{method}` is given twice"), "remove one of the two");
            }
            Ok(method) => found.push(method),
            Err(help) => {
                at.error_with_help(format!("`{}` is no method", shorten(text)), help);
                good = false;
            }
        }
    }
    good.then_some(found)
}

fn method(text: &str) -> Result<Method, String> {
    if text == "CONNECT" {
        return Err("the gateway makes no tunnels: remove it".to_owned());
    }
    if METHODS.contains(&text) {
        return Method::from_bytes(text.as_bytes()).map_err(|error| error.to_string());
    }
    let extension = text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    match did_you_mean(text, METHODS) {
        Some(known) => Err(format!("did you mean `{known}`?")),
        None if extension && !text.is_empty() && text.len() <= 32 => {
            Method::from_bytes(text.as_bytes()).map_err(|error| error.to_string())
        }
        None => Err(format!("write one in capitals, such as {}", METHODS.join(", "))),
    }
}
