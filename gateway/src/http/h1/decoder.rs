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
                    // Until they are known to be good the body has no end, and nothing may follow it.
                    let mut trailers = head::trailers(&section)?;
                    *self = Self::Done;
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { head_bytes: 100, header_count: 3, target_bytes: 1 };

    /// Content, trailers and what is left over, of `bytes` in pieces; `None` where there is no end.
    fn read(bytes: &[u8], piece: usize) -> Result<Option<(Vec<u8>, String, Bytes)>, Error> {
        let mut decoder = Decoder::new(Length::Chunked);
        let mut input = Input::default();
        let (mut content, mut trailers) = (Vec::new(), String::new());
        let mut pieces = bytes.chunks(piece);
        loop {
            match decoder.next(&mut input, &LIMITS) {
                Ok(Piece::Data(data)) => content.extend_from_slice(&data),
                Ok(Piece::Trailers(fields)) => trailers = format!("{fields:?}"),
                Ok(Piece::End) => {
                    let rest: Vec<u8> = pieces.flatten().copied().collect();
                    let rest = [input.bytes(), &rest].concat().into();
                    return Ok(Some((content, trailers, rest)));
                }
                Ok(Piece::More) => match pieces.next() {
                    Some(piece) => input.append(piece),
                    None => return Ok(None),
                },
                Err(error) => {
                    assert!(!decoder.is_done(), "what follows is no message");
                    return Err(error);
                }
            }
        }
    }

    #[test]
    fn trailers_end_a_body_and_what_follows_is_left() {
        let bytes = b"1\r\na\r\n0\r\nHost: h\r\nz: 1\r\nContent-Length: 7\r\n\r\nGET";
        let (content, trailers, rest) = read(bytes, 64).unwrap().unwrap();
        assert_eq!((&*content, &*trailers, &*rest), (&b"a"[..], "{\"z\": \"1\"}", &b"GET"[..]));
        for bad in ["z\r\n\r\n", " z: 1\r\n\r\n", "z: 1\n\r\n", "z : 1\r\n\r\n", "\n"] {
            assert!(read(format!("0\r\n{bad}GET").as_bytes(), 64).is_err(), "{bad:?}");
        }
        assert!(read(format!("0\r\n{}\r\n", "z: 1\r\n".repeat(4)).as_bytes(), 64).is_err());
        assert!(read(format!("0\r\nz: {}", "1".repeat(200)).as_bytes(), 64).is_err());
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            chunks in "([1-9a-f]\r\n[a-z]{0,20}(\r\n)?){0,3}",
            end in "0\r\n([a-z: ]{0,4}\r?\n){0,4}\r\n",
            rest in "[\\x00-\\x7f]{0,5}",
            piece in 1_usize..9,
        ) {
            let text = [chunks, end, rest].concat();
            let whole = read(text.as_bytes(), text.len()).map_err(|error| error.kind());
            prop_assert_eq!(read(text.as_bytes(), piece).map_err(|error| error.kind()), whole);
        }
    }
}
