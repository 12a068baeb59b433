//! The body of a request: it reads from the connection that the request came over, as far as it is asked for.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::base::error::Error;
use crate::http::h1::server::Server;

/// The body of a request.
#[derive(Debug)]
pub struct RequestStream {
    server: Rc<Server>,
}

impl RequestStream {
    /// What comes over this connection behind the head that was read.
    pub(super) fn new(server: &Rc<Server>) -> Self {
        Self { server: Rc::clone(server) }
    }
}

impl Body for RequestStream {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.server.poll_body(context)
    }

    fn is_end_stream(&self) -> bool {
        self.server.state.borrow().decoder.is_done()
    }

    fn size_hint(&self) -> SizeHint {
        let exact = self.server.state.borrow().decoder.exact();
        exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        self.server.state.borrow_mut().body_is_held = false;
    }
}
