//! The life of a request, in order.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{SET_COOKIE, STRICT_TRANSPORT_SECURITY};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response};

use crate::auth::{self, Ask};
use crate::base::address::ClientAddr;
use crate::base::error::{Error, Kind};
use crate::base::random::random;
use crate::config::{Action, Forward, Route};
use crate::http::body::{Incoming, RequestBody};
use crate::http::deadline::Deadline;
use crate::http::trace_context::TraceContext;
use crate::http::unread::Unread;
use crate::http::{forwarded, grpc, problem};
use crate::limit::{Admitted, Caller, Inquiry, Standing};
use crate::request::account::{Account, Answer, ResponseBody};
use crate::request::{Connection, Current, prepare, target};
use crate::route::{Destination, Routed};
use crate::transform;
use crate::upstream::balance::Choice;
use crate::upstream::send::Way;

/// Answers one request within its `deadline`. Whatever goes wrong becomes an answer, and every answer is accounted for.
/// The head stays where it is and becomes the one that the service gets: every copy of it would be seen in a profile.
pub async fn serve(
    connection: &Rc<Connection>,
    deadline: &Rc<Deadline>,
    head: &mut Parts,
    body: Incoming,
) -> Response<ResponseBody> {
    let current = connection.worker.current();
    let trusted = &current.snapshot.config.trusted_proxies;
    let peer_is_trusted = forwarded::is_trusted(trusted, connection.client.ip());
    let id = prepare::request_id(&head.headers, peer_is_trusted);
    let account = Account::open(
        Rc::clone(connection),
        Rc::clone(deadline),
        Rc::clone(&current),
        (Some(head), &id),
    );
    let trace = prepare::trace(&current.snapshot.config, &head.headers, peer_is_trusted, &id);
    trace.iter().for_each(|trace| account.traced(trace));
    let exchange = Exchange {
        connection,
        deadline,
        account: &account,
        current: &current,
        peer_is_trusted,
        trace,
        standing: Cell::new(None),
    };
    let is_grpc = head.method == Method::POST && grpc::is_grpc(&head.headers);
    if is_grpc {
        deadline.client_takes_its_time();
    }
    let mut answer = match exchange.answer(head, body, &id).await {
        Ok(answer) => answer,
        Err(error) => {
            account.failed(&error);
            let problem = problem::response(&error, id);
            let answer = if is_grpc { grpc::response(problem, &error) } else { problem };
            answer.map(Answer::Gateway)
        }
    };
    if let Some(standing) = exchange.standing.get() {
        current.snapshot.limits.tell(standing, answer.headers_mut());
    }
    if let Some(hsts) = &connection.listener.hsts {
        answer.headers_mut().insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
    account.answer(answer)
}

/// The answer to what is no request. `asked` is what could be read of it.
pub fn refuse(
    connection: &Rc<Connection>,
    deadline: &Rc<Deadline>,
    error: &Error,
    asked: Option<&Parts>,
) -> Response<ResponseBody> {
    let current = connection.worker.current();
    let id = prepare::request_id(&HeaderMap::new(), false);
    let mut account =
        Account::open(Rc::clone(connection), Rc::clone(deadline), current, (None, &id));
    asked.iter().for_each(|head| account.would_ask(head));
    account.failed(error);
    account.answer(problem::response(error, id).map(Answer::Gateway))
}

/// Accounts for what was no request because of `error`, and was told so by whoever read it, in no more than a status.
pub fn refused(connection: &Rc<Connection>, deadline: &Rc<Deadline>, error: &Error) {
    refuse(connection, deadline, error, None).into_body().close();
}

struct Exchange<'a> {
    connection: &'a Rc<Connection>,
    deadline: &'a Rc<Deadline>,
    account: &'a Account,
    current: &'a Rc<Current>,
    peer_is_trusted: bool,
    trace: Option<TraceContext<'a>>,
    /// How the caller stands with its limits.
    standing: Cell<Option<Standing>>,
}

/// A request that is to be sent on, and who may have it sent.
struct Outgoing<'a> {
    route: &'a Route,
    forward: &'a Forward,
    client: ClientAddr,
    destination: Destination,
    admitted: Admitted,
}

impl Exchange<'_> {
    async fn answer(
        &self,
        head: &mut Parts,
        body: Incoming,
        id: &HeaderValue,
    ) -> Result<Response<Answer>, Error> {
        let Current { snapshot, .. } = &**self.current;
        let body = Unread::new(body, self.deadline);

        // Who is believed may have ended TLS before us.
        let scheme = (!self.peer_is_trusted).then_some(self.connection.scheme());
        target::normalise(head, scheme)?;
        let client = self.client(head)?;
        if let Some(response) = self.before_routes(head)? {
            self.deadline.refused();
            return Ok(prepare::response(response.map(Answer::Gateway), id.clone()));
        }
        let (routed, as_sent) = target::route(&snapshot.routes.table, head)?;
        self.account.routed(routed);
        let route = snapshot.config.routes.get(routed.route()).ok_or(Kind::NoRoute)?;
        // Part of the route, for limits by upstream may be asked before it is known who calls.
        let way = match &route.action {
            Action::Forward(forward) => {
                Some((forward, routed.choose(forward, &head.headers, client.ip(), random)))
            }
            Action::Redirect(_) | Action::Respond(_) => None,
        };
        let ask = Ask {
            head,
            target: as_sent.as_ref().unwrap_or(&head.uri),
            client,
            certificate: self.connection.client_certificate(),
            is_tls: self.connection.tls.is_some(),
            body: Some(&body),
            moment: &self.deadline.moment,
        };
        let (admitted, way) = self.admitted((routed, route), way, ask).await?;
        let Some((forward, destination)) = way else {
            return self.answer_here(route, head, id);
        };
        let max_bytes = forward.body_bytes.unwrap_or(snapshot.config.bounds.body_bytes);
        let body = body.into_body(max_bytes)?;
        self.forward(Outgoing { route, forward, client, destination, admitted }, head, body, id)
            .await
    }

    /// The believed client, whom no rule keeps out.
    fn client(&self, head: &Parts) -> Result<ClientAddr, Error> {
        let Connection { worker, peer, client, .. } = &**self.connection;
        let trusted = &self.current.snapshot.config.trusted_proxies;
        let client = forwarded::client(*client, trusted, &head.headers);
        self.account.client(client);
        let forwarded = client.ip() != peer.ip();
        if !self.connection.admits_peer() || forwarded && worker.denies_believed(client) {
            return Err(Kind::Denied.into());
        }
        Ok(client)
    }

    /// Whether a request may be sent on: it is within the limits by address, its caller is known and may make it, and
    /// it is within all other limits. The way is whole after it.
    async fn admitted<'r>(
        &self,
        (routed, route): (Routed, &Route),
        way: Option<(&'r Forward, Destination)>,
        ask: Ask<'_>,
    ) -> Result<(Admitted, Option<(&'r Forward, Destination)>), Error> {
        let Current { snapshot, memories, .. } = &**self.current;
        let upstream = |way: &Option<(&Forward, Destination)>| {
            let index = way.as_ref().and_then(|(_, destination)| destination.upstream())?;
            snapshot.config.upstreams.get(index).map(|upstream| &*upstream.name)
        };
        let mut inquiry = Inquiry {
            caller: Caller {
                client: ask.client.ip(),
                headers: &ask.head.headers,
                route: (routed.route(), &route.name),
                upstream: upstream(&way),
            },
            worker: self.connection.worker.counters.worker,
            deadline: self.deadline,
            standing: &self.standing,
        };
        let limits = &*snapshot.limits;
        let limited = |(error, limit)| {
            self.account.limited(limit);
            error
        };
        let screened = limits.screen(&inquiry).await.map_err(limited)?;
        let by = (&*snapshot.authenticators, memories);
        let authorized = match auth::authorize(route.access.as_ref(), by, ask).await {
            Ok(authorized) => authorized,
            Err(error) => {
                // On the heap, for few requests go there.
                Box::pin(limits.turn_away(&inquiry)).await.map_err(limited)?;
                return Err(error);
            }
        };
        self.account.authorized(&authorized);
        let caller = authorized.identity().and_then(|identity| identity.name());
        let way = way.map(|(forward, destination)| {
            (forward, destination.of_caller(forward, caller, random))
        });
        inquiry.caller.upstream = upstream(&way);
        let admitted = limits.admit(authorized, screened, &inquiry).await.map_err(limited)?;
        Ok((admitted, way))
    }

    /// The answer of the service that the route names.
    async fn forward(
        &self,
        outgoing: Outgoing<'_>,
        head: &mut Parts,
        mut body: RequestBody,
        id: &HeaderValue,
    ) -> Result<Response<Answer>, Error> {
        let Outgoing { route, forward, client, destination, admitted } = outgoing;
        let Current { snapshot, views, locals, memories, .. } = &**self.current;
        snapshot.authenticators.strip(route.access.as_ref(), head);
        if let Some(template) = &forward.rewrite {
            transform::target::rewrite(template, &route.path, &mut head.uri)?;
        }
        if let Some(forged) = memories.forged() {
            body = body.without(forged);
        }
        let body = prepare::request(head, body, id, (self.connection, self.peer_is_trusted));
        if let Some(forward) = snapshot.authenticators.forward() {
            let identity = admitted.authorized().identity();
            forward.tell(identity, &mut head.headers, || self.deadline.moment.now());
        }
        self.trace.iter().for_each(|trace| trace.write(&mut head.headers));
        transform::fields::apply(&route.request_headers, &mut head.headers);

        let index = destination.upstream().ok_or(Kind::NoRoute)?;
        self.account.sent_to(index);
        let upstream = snapshot.upstreams.get(index).zip(views.get(index)).zip(locals.get(index));
        let ((upstream, view), local) = upstream.ok_or(Kind::NoRoute)?;
        let series = snapshot.upstream_series.get(index);
        let traffic = series.and_then(|it| it.of(self.connection.worker.counters.worker));
        let caller = admitted.authorized().identity().and_then(|identity| identity.name());
        let key = upstream.key(head, (client.ip(), caller));
        let way = Way {
            choice: Choice { upstream, view, key },
            local,
            addresses: self.connection.addresses,
            deadline: self.deadline,
            priority: route.priority,
            timeouts: &forward.timeouts,
            admitted: &admitted,
            resilience: &traffic.ok_or(Kind::NoRoute)?.resilience,
        };
        let response = match self.connection.worker.client.send(&way, head, body).await {
            Ok((response, permit)) => {
                self.account.hold(permit, admitted);
                response.map(Answer::Upstream)
            }
            Err(error) => {
                let fallback = upstream.fallback(&error).ok_or_else(|| error.clone())?;
                self.account.failed(&error);
                fallback.map(Answer::Gateway)
            }
        };
        let mut response = prepare::response(response, id.clone());
        transform::fields::apply(&route.response_headers, response.headers_mut());
        if let Some(cookie) = destination.cookie(self.connection.tls.is_some()) {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        Ok(response)
    }

    /// The answer to what no route decides.
    fn before_routes(&self, head: &Parts) -> Result<Option<Response<Bytes>>, Error> {
        if let Some(port) = self.connection.listener.redirect {
            return target::redirect(head, port).map(Some);
        }
        let forward = self.current.snapshot.authenticators.forward();
        let keys = forward.and_then(|forward| forward.jwks(head.uri.path()));
        keys.map(|keys| transform::answer::jwks(keys, &head.method)).transpose()
    }

    /// The answer of a route that needs no service.
    fn answer_here(
        &self,
        route: &Route,
        head: &Parts,
        id: &HeaderValue,
    ) -> Result<Response<Answer>, Error> {
        let response = match &route.action {
            Action::Redirect(redirect) => {
                transform::answer::redirect(redirect, &route.path, head, target::host(head))?
            }
            Action::Respond(respond) => transform::answer::respond(respond),
            Action::Forward(_) => return Err(Kind::NoRoute.into()),
        };
        self.deadline.refused();
        let mut response = prepare::response(response.map(Answer::Gateway), id.clone());
        transform::fields::apply(&route.response_headers, response.headers_mut());
        Ok(response)
    }
}
