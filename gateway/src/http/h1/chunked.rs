//! The chunked coding (RFC 9112, section 7.1), by the letter: sizes are hexadecimal digits and nothing else, lines end
//! with CRLF and nothing else. Extensions mean nothing to anybody on the way and are dropped.

use crate::base::error::{Error, Kind};

/// Bytes of extensions in one body. Nobody uses them but to make a receiver work.
const EXTENSION_BYTES_MAX: usize = 4096;

/// Digits of a size: more do not fit into 64 bits, and leading zeros are no reason for more.
const DIGITS_MAX: u8 = 16;

/// Where in the coding a body is.
///
/// ```text
///   ┌────────────────────────────────────────────────────────────┐
///   ▼   ;                CR          LF, size > 0                │ LF
///  Size ──▶ Extension ──────▶ SizeEnd ───────────▶ Data ──▶ DataEnd
///   └──────── CR ─────────────▲   └─ LF, size 0 ─▶ Trailers
/// ```
#[derive(Debug, Default)]
pub struct Chunked {
    state: State,
    digits: u8,
    /// Of the chunk's content: as far as its digits were read, then what is left of it.
    bytes: u64,
    extension_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Extension,
    SizeEnd,
    Data,
    DataEnd,
    Trailers,
}

/// What comes next in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More input is needed.
    More,
    /// So many bytes of content.
    Data(usize),
    /// The trailer section.
    Trailers,
}

impl Chunked {
    /// Reads on in `input`: how many bytes of it belong to the coding, and what comes after them.
    pub fn step(&mut self, input: &[u8]) -> Result<(usize, Step), Error> {
        for (used, byte) in input.iter().enumerate() {
            if self.state == State::Data && self.bytes > 0 {
                let rest = input.len() - used;
                let taken = usize::try_from(self.bytes).map_or(rest, |bytes| bytes.min(rest));
                self.bytes -= taken as u64;
                return Ok((used, Step::Data(taken)));
            }
            if self.state == State::Trailers {
                return Ok((used, Step::Trailers));
            }
            self.state = self.after(*byte)?;
        }
        let step = if self.state == State::Trailers { Step::Trailers } else { Step::More };
        Ok((input.len(), step))
    }

    fn after(&mut self, byte: u8) -> Result<State, Error> {
        match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if self.digits < DIGITS_MAX => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.digits += 1;
                self.bytes = self.bytes << 4 | u64::from(digit);
                Ok(State::Size)
            }
            (State::Size, b';') if self.digits > 0 => Ok(State::Extension),
            (State::Size, b'\r') if self.digits > 0 => Ok(State::SizeEnd),
            (State::Extension, b'\r') => Ok(State::SizeEnd),
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extension_bytes += 1;
                if self.extension_bytes > EXTENSION_BYTES_MAX {
                    return Err(bad("the extensions of the body's chunks are too long"));
                }
                Ok(State::Extension)
            }
            (State::SizeEnd, b'\n') if self.bytes == 0 => Ok(State::Trailers),
            (State::SizeEnd, b'\n') => Ok(State::Data),
            (State::Data, b'\r') => Ok(State::DataEnd),
            (State::DataEnd, b'\n') => {
                self.digits = 0;
                Ok(State::Size)
            }
            (State::Data | State::DataEnd, _) => Err(bad("a chunk is longer than it says")),
            _ => Err(bad("the size of a chunk is not valid")),
        }
    }
}

fn bad(detail: &'static str) -> Error {
    Error::new(Kind::BadRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// What is in `input`, given in pieces of `piece` bytes: content and how many bytes it took, if it is whole.
    fn decoded(input: &[u8], piece: usize) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
        let mut chunked = Chunked::default();
        let (mut content, mut at) = (Vec::new(), 0);
        let mut end = 0;
        loop {
            end = (end + piece).min(input.len());
            loop {
                let (used, step) = chunked.step(&input[at..end]).map_err(|error| error.detail())?;
                at += used;
                match step {
                    Step::Data(bytes) => {
                        content.extend_from_slice(&input[at..at + bytes]);
                        at += bytes;
                    }
                    Step::Trailers => return Ok(Some((content, at))),
                    Step::More => break,
                }
            }
            if end == input.len() {
                return Ok(None);
            }
        }
    }

    #[test]
    fn what_is_valid_is_read() {
        for (input, content) in [
            ("0\r\n", ""),
            ("5\r\nhello\r\n0\r\n", "hello"),
            ("A\r\n0123456789\r\n00\r\n", "0123456789"),
            ("1;a=b; c=\"d\"\r\nx\r\n0;e\r\n", "x"),
            ("0000000000000001\r\nx\r\n0\r\n", "x"),
        ] {
            let whole = Ok(Some((content.as_bytes().to_vec(), input.len())));
            assert_eq!(decoded(input.as_bytes(), 64), whole, "{input:?}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for input in [
            "\r\n",
            ";\r\n",
            "0x5\r\nhello",
            "+5\r\n",
            "-0\r\n",
            " 5\r\n",
            "5 \r\n",
            "5 ;a\r\n",
            "5_0\r\n",
            "g\r\n",
            "5\nhello",
            "5\r\r\n",
            "5;a\nhello",
            "5;\0\r\n",
            "00000000000000001\r\n",
            "10000000000000000\r\n",
            "5\r\nhello5\r\n",
            "5\r\nhello\n0\r\n",
            "5\r\nhello\r0\r\n",
            "5\r\nhello\r\n\r\n",
            "0\n",
        ] {
            assert!(decoded(input.as_bytes(), 64).is_err(), "{input:?}");
        }
        let long = format!("1;{}\r\nx", "a".repeat(EXTENSION_BYTES_MAX + 1));
        assert!(decoded(long.as_bytes(), 64).is_err());
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            chunks in "([0-9a-fA-F]{1,2}(;[a-z]{0,3})?\r\n[a-z]{0,20}(\r\n)?){0,5}",
            rest in "([\\x00-\\x7f]{0,4}|0\r\n)",
            piece in 1_usize..9,
        ) {
            let input = [chunks, rest].concat();
            let whole = decoded(input.as_bytes(), input.len().max(1));
            prop_assert_eq!(decoded(input.as_bytes(), piece), whole);
        }

        #[test]
        fn whatever_was_encoded_is_decoded(
            chunks in vec(vec(any::<u8>(), 1..40), 0..6),
            piece in 1_usize..50,
        ) {
            let mut input = Vec::new();
            for chunk in &chunks {
                input.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\n");
            prop_assert_eq!(decoded(&input, piece), Ok(Some((chunks.concat(), input.len()))));
        }
    }
}
