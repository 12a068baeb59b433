//! The form of an API key: a product's prefix, 32 random digits and letters (190 bits), and six that check them.
//!
//! ```text
//! gw_live_0123456789ABCDEFGHIJKLMNOPQRSTUV2qq2kc
//! prefix  random                          CRC-32 of all that stands before it, to base 62
//! ```
//!
//! A scanner finds what was leaked by the prefix, and by the checksum tells a key from an example, both without asking
//! anybody. What is no key of ours is refused the same way, before anything is looked up.

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};

/// What keys begin with unless the configuration says otherwise.
pub const PREFIX: &str = "gw_live";
/// Bytes of a prefix.
pub const PREFIX_MAX_BYTES: usize = 32;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM_BYTES: usize = 32;
const CHECK_BYTES: usize = 6;

/// Makes a key. An error means that the system has no random numbers to give.
pub fn generate(prefix: &str) -> Result<String, String> {
    let random = SystemRandom::new();
    let mut key = format!("{prefix}_");
    let length = key.len() + RANDOM_BYTES;
    while key.len() < length {
        let mut bytes = [0; RANDOM_BYTES];
        random.fill(&mut bytes).map_err(|_| "the system has no random numbers".to_owned())?;
        // Whatever is not below the largest multiple of 62 would make the first letters likelier than the last.
        let fair = bytes.into_iter().filter(|byte| usize::from(*byte) < 256 / 62 * 62);
        key.extend(fair.take(length - key.len()).map(|byte| letter(byte.into())));
    }
    let check = checksum(&key);
    key.push_str(&check);
    Ok(key)
}

/// Whether `text` has the form of a key with this prefix.
pub fn is_key(prefix: &str, text: &str) -> bool {
    let rest = text.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('_'));
    rest.is_some_and(|rest| rest.len() == RANDOM_BYTES + CHECK_BYTES) && has_form(text)
}

/// Whether `text` has the form of a key, whatever its prefix.
pub fn has_form(text: &str) -> bool {
    let Some((prefix, rest)) = text.rsplit_once('_') else { return false };
    let split = text.len().saturating_sub(CHECK_BYTES);
    is_prefix(prefix)
        && rest.len() == RANDOM_BYTES + CHECK_BYTES
        && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && text.split_at_checked(split).is_some_and(|(key, check)| checksum(key) == check)
}

/// Whether keys may begin with `prefix`: small letters, digits and single underscores between them.
pub fn is_prefix(prefix: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    prefix.len() <= PREFIX_MAX_BYTES && prefix.split('_').all(part)
}

fn checksum(text: &str) -> String {
    let mut left = crc32fast::hash(text.as_bytes()) as usize;
    let mut digits = [0; CHECK_BYTES];
    for digit in digits.iter_mut().rev() {
        *digit = left % 62;
        left /= 62;
    }
    digits.into_iter().map(letter).collect()
}

fn letter(number: usize) -> char {
    ALPHABET.get(number % 62).copied().map_or('0', char::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use regex::Regex;

    /// As `docs/authentication.md` gives it to scanners.
    const FOUND_BY: &str = r"\bgw_live_[0-9A-Za-z]{38}\b";

    #[test]
    fn a_key_is_found_in_a_text_and_known_again() {
        let expression = Regex::new(FOUND_BY).unwrap();
        let keys: std::collections::HashSet<_> =
            (0..100).map(|_| generate(PREFIX).unwrap()).collect();
        assert_eq!(keys.len(), 100);
        for key in keys {
            let text = format!("export KEY={key};");
            assert_eq!(expression.find(&text).unwrap().as_str(), key);
            assert!(is_key(PREFIX, &key), "{key}");
            assert!(!is_key("gw_test", &key));
        }
    }

    #[test]
    fn the_checksum_is_what_the_documentation_says() {
        let random = "0123456789ABCDEFGHIJKLMNOPQRSTUV";
        let key = format!("gw_live_{random}");
        assert_eq!(checksum(&key), "2qq2kc");
        assert!(is_key(PREFIX, &format!("{key}2qq2kc")));
    }

    #[test]
    fn every_letter_is_drawn() {
        let keys: String = (0..200).map(|_| generate("p").unwrap()).collect();
        assert!(ALPHABET.iter().all(|letter| keys.as_bytes().contains(letter)));
    }

    #[test]
    fn prefixes() {
        for good in ["gw_live", "acme", "a1_b2"] {
            assert!(is_prefix(good), "{good}");
        }
        for bad in ["", "_", "Gw", "gw__live", "gw_", "gw live", &"g".repeat(33)] {
            assert!(!is_prefix(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_key_with_one_other_letter_is_none(at in 8..46usize, other in 0..62usize) {
            let mut key = generate(PREFIX).unwrap().into_bytes();
            let other = ALPHABET[other];
            prop_assume!(key[at] != other);
            key[at] = other;
            prop_assert!(!is_key(PREFIX, str::from_utf8(&key).unwrap()));
        }

        #[test]
        fn whatever_somebody_sends_is_no_key(text in "(gw_live_)?\\PC{0,60}") {
            prop_assert!(!is_key(PREFIX, &text));
        }
    }
}
