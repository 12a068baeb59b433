//! Moves a body into the output of a connection, no faster than the socket takes it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;

use crate::base::error::{Error, Kind};
use crate::http::h1::encode::Framing;
use crate::http::h1::output::{Coding, Output};

/// The sending of one body.
#[derive(Debug)]
pub(super) struct Pump {
    coding: Coding,
    /// Bytes that are still to come, where their number was said.
    left: Option<u64>,
    /// Whether pieces are dropped: the head has said that there are none.
    discards: bool,
    takes_trailers: bool,
    has_moved: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Body,
    Last(Option<HeaderMap>),
    Done,
}

/// How far it got.
#[derive(Debug)]
pub(super) enum Moved {
    /// The output is full.
    Full,
    /// The body has no more at the moment.
    Waiting,
    /// Everything is in the output.
    All,
    /// The body broke off.
    Broken(Error),
}

impl Pump {
    pub(super) fn new(framing: Framing, takes_trailers: bool) -> Self {
        let discards = matches!(framing, Framing::None | Framing::AsSaid);
        Self {
            coding: framing.coding(),
            left: framing.exact().filter(|_| !discards),
            discards,
            takes_trailers,
            has_moved: false,
            stage: Stage::Body,
        }
    }

    /// Moves what can be moved.
    pub(super) fn poll<B>(
        &mut self,
        body: &mut B,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Moved
    where
        B: Body<Data = Bytes, Error = Error> + Unpin,
    {
        loop {
            if output.is_full() {
                return Moved::Full;
            }
            match &mut self.stage {
                Stage::Body if body.is_end_stream() => self.stage = Stage::Last(None),
                Stage::Body => match Pin::new(&mut *body).poll_frame(context) {
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => {
                            if let Err(error) = self.data(data, output) {
                                return Moved::Broken(error);
                            }
                        }
                        Err(frame) => self.stage = Stage::Last(frame.into_trailers().ok()),
                    },
                    Poll::Ready(Some(Err(error))) => return Moved::Broken(error),
                    Poll::Ready(None) => self.stage = Stage::Last(None),
                    Poll::Pending => return Moved::Waiting,
                },
                Stage::Last(trailers) => {
                    if self.left.is_some_and(|left| left > 0) {
                        return Moved::Broken(Kind::UpstreamReset.into());
                    }
                    if self.coding == Coding::Chunked && !self.discards {
                        output.last_chunk(trailers.as_ref().filter(|_| self.takes_trailers));
                    }
                    self.stage = Stage::Done;
                }
                Stage::Done => return Moved::All,
            }
        }
    }

    /// Whether anything of the body was taken.
    pub(super) fn has_moved(&self) -> bool {
        self.has_moved
    }

    fn data(&mut self, data: Bytes, output: &mut Output) -> Result<(), Error> {
        self.has_moved = true;
        if self.discards {
            return Ok(());
        }
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(data.len() as u64).ok_or(Kind::UpstreamProtocol)?;
        }
        output.data(data, self.coding);
        Ok(())
    }
}
