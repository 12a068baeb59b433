//! What a gateway tells the one that takes its place about nonces: where each authenticator remembers them, how far
//! back it knows them, and which were used. What the other side cannot read it does not believe.

use super::nonces::Nonce;

/// Bytes of a nonce and of the second in which it was signed.
const ENTRY_BYTES: usize = 24;

/// What one authenticator knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::auth) struct Handed {
    /// A number for the Redis that nonces are remembered in; 0 is memory.
    pub(in crate::auth) place: u64,
    /// How far a clock may be off, in seconds.
    pub(in crate::auth) skew_s: u64,
    /// What was signed before this second may have been forgotten.
    pub(in crate::auth) known_from: u64,
    /// The nonces that were used, and when each was signed.
    pub(in crate::auth) used: Vec<(Nonce, u64)>,
}

impl Handed {
    /// Appends what the authenticator `name` knows to `bytes`.
    pub(in crate::auth) fn write(&self, name: &str, bytes: &mut Vec<u8>) {
        let Self { place, skew_s, known_from, used } = self;
        bytes.reserve(used.len() * ENTRY_BYTES);
        for number in [name.len() as u64, *place, *skew_s, *known_from] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend((used.len() as u64).to_be_bytes());
        bytes.extend(name.as_bytes());
        for (nonce, signed) in used {
            bytes.extend(nonce.0);
            bytes.extend(signed.to_be_bytes());
        }
    }

    /// All that was written, by the names of authenticators; `None` if that is something else.
    pub(in crate::auth) fn read(mut bytes: &[u8]) -> Option<Vec<(&str, Self)>> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let length = number(&mut bytes)?;
            let place = number(&mut bytes)?;
            let (skew_s, known_from) = (number(&mut bytes)?, number(&mut bytes)?);
            let count = usize::try_from(number(&mut bytes)?).ok()?;
            let (name, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
            let (entries, rest) = rest.split_at_checked(count.checked_mul(ENTRY_BYTES)?)?;
            let (entries, _) = entries.as_chunks::<ENTRY_BYTES>();
            let used = entries.iter().filter_map(entry).collect();
            all.push((str::from_utf8(name).ok()?, Self { place, skew_s, known_from, used }));
            bytes = rest;
        }
        Some(all)
    }
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_be_bytes(*number))
}

fn entry(bytes: &[u8; ENTRY_BYTES]) -> Option<(Nonce, u64)> {
    let (nonce, signed) = bytes.split_first_chunk()?;
    Some((Nonce(*nonce), u64::from_be_bytes(*signed.first_chunk()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_cut_off_is_not_believed() {
        let mut bytes = Vec::new();
        let used = vec![(Nonce([7; 16]), 100)];
        Handed { place: 0, skew_s: 1, known_from: 2, used }.write("one", &mut bytes);
        for length in 1..bytes.len() {
            assert_eq!(Handed::read(&bytes[..length]), None, "{length}");
        }
        let count = bytes[32..40].len();
        bytes[32..32 + count].fill(u8::MAX);
        assert_eq!(Handed::read(&bytes), None, "a count beyond everything");
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            all in prop::collection::vec(
                ("[a-z]{0,9}", any::<(u64, u64, u64)>(), prop::collection::vec(any::<([u8; 16], u64)>(), 0..9)),
                0..4,
            ),
        ) {
            let all: Vec<_> = all.into_iter().map(|(name, (place, skew_s, known_from), used)| {
                let used = used.into_iter().map(|(nonce, signed)| (Nonce(nonce), signed)).collect();
                (name, Handed { place, skew_s, known_from, used })
            }).collect();
            let mut bytes = Vec::new();
            all.iter().for_each(|(name, handed)| handed.write(name, &mut bytes));
            let read = Handed::read(&bytes).unwrap();
            prop_assert!(read.iter().map(|(name, handed)| (*name, handed)).eq(
                all.iter().map(|(name, handed)| (name.as_str(), handed))
            ));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            Handed::read(&bytes);
        }
    }
}
