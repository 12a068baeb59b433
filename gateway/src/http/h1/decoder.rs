//! Where the body of a message is in the bytes after its head, and where it ends.

use bytes::Bytes;
use http::HeaderMap;

use crate::base::error::{Error, Kind};
use crate::http::h1::chunked::{Chunked, Step};
use crate::http::h1::head::{self, Limits, Scan, Section};
use crate::http::h1::input::Input;
use crate::http::headers;

/// How long the body of a message says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many bytes.
    Exact(u64),
    /// It says where it ends.
    Chunked,
    /// All that comes before the connection ends.
    UntilClose,
}

/// What is left of a body.
#[derive(Debug, Default)]
pub(super) enum Decoder {
    /// Nothing.
    #[default]
    Done,
    Exact(u64),
    Chunked(Chunked),
    Trailers(Scan),
    UntilClose,
}

/// What comes next.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// More input is needed.
    More,
}

impl Decoder {
    pub(super) fn new(length: Length) -> Self {
        match length {
            Length::Exact(0) => Self::Done,
            Length::Exact(bytes) => Self::Exact(bytes),
            Length::Chunked => Self::Chunked(Chunked::default()),
            Length::UntilClose => Self::UntilClose,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Bytes that are left, if they are known by number.
    pub(super) fn exact(&self) -> Option<u64> {
        match self {
            Self::Done => Some(0),
            Self::Exact(left) => Some(*left),
            Self::Chunked(_) | Self::Trailers(_) | Self::UntilClose => None,
        }
    }

    /// The next piece from what is there.
    pub(super) fn next(&mut self, input: &mut Input, limits: &Limits) -> Result<Piece, Error> {
        loop {
            match self {
                Self::Done => return Ok(Piece::End),
                _ if input.is_empty() => return Ok(Piece::More),
                Self::UntilClose => return Ok(Piece::Data(input.take(usize::MAX))),
                Self::Exact(left) => {
                    let data = input.take(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= data.len() as u64;
                    if *left == 0 {
                        *self = Self::Done;
                    }
                    return Ok(Piece::Data(data));
                }
                Self::Chunked(chunked) => {
                    let (used, step) = chunked.step(input.bytes())?;
                    input.skip(used);
                    match step {
                        Step::More => return Ok(Piece::More),
                        Step::Data(length) => return Ok(Piece::Data(input.take(length))),
                        Step::Trailers => *self = Self::Trailers(Scan::new(Section::Trailers)),
                    }
                }
                Self::Trailers(scan) => {
                    let Some(found) = scan.find(input.bytes(), limits)? else {
                        return Ok(Piece::More);
                    };
                    let section = input.take(found.end);
                    *self = Self::Done;
                    let mut trailers = head::trailers(&section)?;
                    headers::remove_forbidden_trailers(&mut trailers);
                    let empty = trailers.is_empty();
                    return Ok(if empty { Piece::End } else { Piece::Trailers(trailers) });
                }
            }
        }
    }

    /// The input has ended: whether that is the end of the body, too.
    pub(super) fn end_of_input(&mut self) -> Result<(), Error> {
        match self {
            Self::Done | Self::UntilClose => {
                *self = Self::Done;
                Ok(())
            }
            _ => Err(Kind::RequestBroken.into()),
        }
    }
}
