//! Request ids: 128 random bits as 32 hexadecimal digits, the form of a W3C trace id.

use crate::base::random::random;

/// The id of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId([u8; 32]);

impl RequestId {
    /// A new id. Unique, not secret: ids end up in logs and answers, so nothing may rely on their being unguessable.
    pub fn generate() -> Self {
        let bits = u128::from(random()) << 64 | u128::from(random());
        let mut digits = [b'0'; 32];
        for (index, digit) in digits.iter_mut().enumerate() {
            let nibble = (bits >> (124 - 4 * index)) as u8 & 0xf;
            *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        }
        Self(digits)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hexadecimal_and_differ() {
        let ids: std::collections::HashSet<_> =
            (0..1000).map(|_| RequestId::generate().as_str().to_owned()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())));
    }
}
