//! Whether a path can be read in one way only.

/// Whether no common normalizer would change the segments of `path`. Bytes count as what they decode to.
pub(super) fn is_plain(path: &str) -> bool {
    let Some(path) = path.strip_prefix('/') else { return false };
    let mut rest = path.as_bytes();
    let mut segment = Segment::Empty;
    while let Some((byte, below)) = next(rest) {
        rest = below;
        segment = match (byte, segment) {
            (b'\\' | 0..0x20 | 0x7f, _) => return false,
            (b'/', Segment::Text) => Segment::Empty,
            (b'/', _) => return false,
            (b'.', Segment::Empty) => Segment::Dot,
            (b'.', Segment::Dot) => Segment::DotDot,
            // Some servers cut parameters off before they look for dot segments and empty ones.
            (b';', Segment::Dot | Segment::DotDot) => return false,
            (b';', Segment::Empty) | (_, Segment::Parameters) => Segment::Parameters,
            _ => Segment::Text,
        };
    }
    !matches!(segment, Segment::Dot | Segment::DotDot)
}

/// What a segment consists of so far.
#[derive(Clone, Copy)]
enum Segment {
    Empty,
    Dot,
    DotDot,
    /// Nothing but parameters.
    Parameters,
    Text,
}

/// The first byte, percent-decoded, and what follows it.
fn next(path: &[u8]) -> Option<(u8, &[u8])> {
    if let [b'%', high, low, below @ ..] = path
        && let (Some(high), Some(low)) = (nibble(*high), nibble(*low))
    {
        return Some((high << 4 | low, below));
    }
    path.split_first().map(|(byte, below)| (*byte, below))
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}
