//! Answers that need no service: those that a route gives itself, and the keys of the gateway.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response};

use super::target;
use crate::base::error::{Error, Kind};
use crate::config::{PathPattern, Redirect, Respond};

/// Sends the client elsewhere.
pub fn redirect(
    redirect: &Redirect,
    pattern: &PathPattern,
    head: &Parts,
    host: Option<&str>,
) -> Result<Response<Bytes>, Error> {
    let location = target::expand(&redirect.to, pattern, &head.uri, host)?;
    let location = location.try_into().map_err(|_| Error::from(Kind::BadRequest))?;
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = redirect.status;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// The configured answer.
pub fn respond(respond: &Respond) -> Response<Bytes> {
    let mut response = Response::new(respond.body.clone());
    *response.status_mut() = respond.status;
    let headers: &mut HeaderMap = response.headers_mut();
    for (name, value) in &respond.headers {
        headers.append(name.clone(), value.clone());
    }
    response
}

/// The keys that services verify tokens of the gateway by (RFC 7517).
pub fn jwks(keys: &Bytes, method: &Method) -> Result<Response<Bytes>, Error> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(Error::method_not_allowed("GET, HEAD".to_owned()));
    }
    let mut response = Response::new(keys.clone());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
    // For five minutes: so long before it signs, a key is to be published.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    Ok(response)
}
