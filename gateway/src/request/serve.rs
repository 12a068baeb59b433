//! The life of a request, in order.

use std::rc::Rc;

use http::header::STRICT_TRANSPORT_SECURITY;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response};

use crate::base::address::ClientAddr;
use crate::base::error::{Error, Kind};
use crate::http::body::{Incoming, RequestBody};
use crate::http::deadline::Deadline;
use crate::http::{forwarded, problem};
use crate::request::account::{Account, Answer, ResponseBody};
use crate::request::{Connection, Current, prepare, target};
use crate::route::{Refused, Routed};
use crate::upstream::balance::Choice;
use crate::upstream::send::Way;

/// Answers one request within its `deadline`. Whatever goes wrong becomes an answer, and every answer is accounted for.
pub async fn serve(
    connection: Rc<Connection>,
    deadline: Rc<Deadline>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let current = connection.worker.current();
    let account = Account::open(Rc::clone(&connection), Rc::clone(&deadline), Rc::clone(&current));
    let trusted = &current.snapshot.config.trusted_proxies;
    let exchange = Exchange {
        connection: &connection,
        deadline: &deadline,
        account: &account,
        current: &current,
        peer_is_trusted: forwarded::is_trusted(trusted, connection.client.ip()),
    };
    let id = prepare::request_id(request.headers(), exchange.peer_is_trusted);
    let mut answer = match exchange.answer(request, id.clone()).await {
        Ok(response) => prepare::response(response, id),
        Err(error) => {
            account.failed(&error);
            problem::response(&error, id).map(Answer::Gateway)
        }
    };
    if let Some(hsts) = &connection.listener.hsts {
        answer.headers_mut().insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
    account.answer(answer)
}

/// The answer to what is no request.
pub fn refuse(
    connection: &Rc<Connection>,
    deadline: &Rc<Deadline>,
    error: &Error,
) -> Response<ResponseBody> {
    let current = connection.worker.current();
    let account = Account::open(Rc::clone(connection), Rc::clone(deadline), current);
    account.failed(error);
    let id = prepare::request_id(&HeaderMap::new(), false);
    account.answer(problem::response(error, id).map(Answer::Gateway))
}

struct Exchange<'a> {
    connection: &'a Rc<Connection>,
    deadline: &'a Rc<Deadline>,
    account: &'a Account,
    current: &'a Rc<Current>,
    peer_is_trusted: bool,
}

impl Exchange<'_> {
    async fn answer(
        &self,
        request: Request<Incoming>,
        id: HeaderValue,
    ) -> Result<Response<Answer>, Error> {
        let Connection { worker, client, addresses, listener, .. } = &**self.connection;
        let Current { snapshot, views, locals } = &**self.current;
        let (mut head, body) = request.into_parts();

        target::normalise(&mut head, self.connection.scheme())?;
        let client = forwarded::client(*client, &snapshot.config.trusted_proxies, &head.headers);
        self.rules(client)?;
        if let Some(port) = listener.redirect {
            return Ok(target::redirect(&head, port)?.map(Answer::Gateway));
        }
        let routed = self.route(&head)?;
        self.account.routed(routed);
        let body = RequestBody::new(body, snapshot.config.bounds.body_bytes, self.deadline)?;
        let request = prepare::request(head, body, id, self.connection, self.peer_is_trusted);

        let index = routed.upstream();
        let upstream = snapshot.upstreams.get(index).zip(views.get(index)).zip(locals.get(index));
        let ((upstream, view), local) = upstream.ok_or(Kind::NoRoute)?;
        let way = Way {
            choice: Choice { upstream, view, key: upstream.key(&request, client.ip()) },
            local,
            addresses: *addresses,
            deadline: self.deadline,
        };
        let response = worker.client.send(way, request).await?;
        Ok(response.map(Answer::Upstream))
    }

    fn route(&self, head: &Parts) -> Result<Routed, Error> {
        let routes = &self.current.snapshot.routes;
        routes.find(&head.method, target::host(head), head.uri.path()).map_err(|refused| {
            match refused {
                Refused::NotFound => Kind::NoRoute.into(),
                Refused::MethodNotAllowed { allow, .. } => {
                    let allow: Vec<_> = allow.iter().map(http::Method::as_str).collect();
                    Error::method_not_allowed(allow.join(", "))
                }
                Refused::BadPath => {
                    Error::new(Kind::BadRequest, "the path can be read in two ways")
                }
            }
        })
    }

    fn rules(&self, client: ClientAddr) -> Result<(), Error> {
        let Connection { worker, peer, .. } = &**self.connection;
        let forwarded = client.ip() != peer.ip();
        if !self.connection.admits_peer() || forwarded && worker.denies(client.ip()) {
            return Err(Kind::Denied.into());
        }
        Ok(())
    }
}
