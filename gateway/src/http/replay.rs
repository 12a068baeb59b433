//! What went through of a request's body, as far as it fits, for sending it once more. A request that is sent to
//! another endpoint midway begins with what was kept and goes on with what the client has yet to send.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::base::error::Error;
use crate::http::body::Incoming;

/// Pieces that are kept of one body: a piece has a cost of its own, however small.
const PIECES_MAX: usize = 1024;

/// Where the pieces of a request's body come from.
#[derive(Debug)]
pub(super) enum Source {
    /// The client, once.
    Once(Incoming),
    /// Nobody: there is none.
    Empty,
    /// Memory: it was read in full before it went anywhere. Not empty.
    Whole(Box<Bytes>),
    /// A record, from the piece with this number on, and then the client.
    Kept(Rc<Record>, usize),
}

/// The beginning of a body.
#[derive(Debug)]
pub(super) struct Record {
    client: RefCell<Source>,
    pieces: RefCell<Vec<Piece>>,
    bytes_left: Cell<usize>,
    /// Whether nothing is missing of what went through.
    whole: Cell<bool>,
    ended: Cell<bool>,
}

#[derive(Clone, Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Record {
    pub(super) fn new(client: Source, max_bytes: usize) -> Self {
        Self {
            client: RefCell::new(client),
            pieces: RefCell::default(),
            bytes_left: Cell::new(max_bytes),
            whole: Cell::new(true),
            ended: Cell::new(false),
        }
    }

    /// Whether the body can be replayed.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.get()
    }

    /// The body from its beginning.
    pub(super) fn replay(self: &Rc<Self>) -> Source {
        Source::Kept(Rc::clone(self), 0)
    }

    fn keep(&self, frame: &Frame<Bytes>) {
        if !self.whole.get() {
            return;
        }
        let piece = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Some(Piece::Data(data.clone())),
            (None, Some(trailers)) => Some(Piece::Trailers(trailers.clone())),
            (None, None) => None,
        };
        let left = self.bytes_left.get().checked_sub(frame.data_ref().map_or(0, Bytes::len));
        let mut pieces = self.pieces.borrow_mut();
        match (piece, left) {
            (Some(piece), Some(left)) if pieces.len() < PIECES_MAX => {
                self.bytes_left.set(left);
                pieces.push(piece);
            }
            _ => {
                drop(pieces);
                self.forget();
            }
        }
    }

    fn forget(&self) {
        self.whole.set(false);
        self.pieces.take();
    }

    fn piece(&self, number: usize) -> Option<Frame<Bytes>> {
        self.pieces.borrow().get(number).cloned().map(|piece| match piece {
            Piece::Data(data) => Frame::data(data),
            Piece::Trailers(trailers) => Frame::trailers(trailers),
        })
    }

    fn poll_client(&self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.ended.get() {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut *self.client.borrow_mut()).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => self.keep(frame),
            Some(Err(_)) => self.whole.set(false),
            None => self.ended.set(true),
        }
        Poll::Ready(frame)
    }

    fn bytes_from(&self, number: usize) -> u64 {
        let pieces = self.pieces.borrow();
        let bytes = |piece: &Piece| match piece {
            Piece::Data(data) => data.len() as u64,
            Piece::Trailers(_) => 0,
        };
        pieces.iter().skip(number).map(bytes).sum()
    }
}

impl Body for Source {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            Self::Once(incoming) => Pin::new(incoming).poll_frame(context),
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(&mut **bytes);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Kept(record, next) => {
                if let Some(frame) = record.piece(*next) {
                    *next += 1;
                    return Poll::Ready(Some(Ok(frame)));
                }
                if Rc::strong_count(record) == 1 {
                    // Nobody will begin again.
                    record.forget();
                }
                let frame = ready!(record.poll_client(context));
                // It is in the record now, unless the record is given up.
                *next += 1;
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Once(incoming) => incoming.is_end_stream(),
            Self::Empty => true,
            Self::Whole(_) => false,
            Self::Kept(record, next) => {
                *next >= record.pieces.borrow().len()
                    && (record.ended.get() || record.client.borrow().is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Once(incoming) => incoming.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Kept(record, next) => {
                let (kept, rest) = (record.bytes_from(*next), record.client.borrow().size_hint());
                let mut hint = SizeHint::new();
                hint.set_lower(kept.saturating_add(rest.lower()));
                if let Some(upper) = rest.upper() {
                    hint.set_upper(kept.saturating_add(upper));
                }
                hint
            }
        }
    }
}
