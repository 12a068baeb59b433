//! Answers that a route gives itself.

use bytes::Bytes;
use http::header::LOCATION;
use http::request::Parts;
use http::{HeaderMap, Response};

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
