//! How signatures of each algorithm are verified, and what a key is good for.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
    VerificationAlgorithm,
};

pub(super) use crate::config::JwtAlgorithm as Algorithm;

/// What keys are made of, which decides what they are good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A secret of so many bytes.
    Secret(usize),
    Rsa,
    P256,
    P384,
    P521,
    Ed25519,
}

impl Kind {
    /// Whether a key of this kind may be used by `algorithm`. A secret is at least as long as the digest (RFC 7518,
    /// section 3.2).
    pub(super) fn fits(self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Es512, Hs256, Hs384, Hs512};
        match algorithm {
            Hs256 => matches!(self, Self::Secret(32..)),
            Hs384 => matches!(self, Self::Secret(48..)),
            Hs512 => matches!(self, Self::Secret(64..)),
            Es256 => self == Self::P256,
            Es384 => self == Self::P384,
            Es512 => self == Self::P521,
            EdDsa => self == Self::Ed25519,
            _ => self == Self::Rsa,
        }
    }
}

pub(super) fn hmac(algorithm: Algorithm) -> Option<hmac::Algorithm> {
    match algorithm {
        Algorithm::Hs256 => Some(hmac::HMAC_SHA256),
        Algorithm::Hs384 => Some(hmac::HMAC_SHA384),
        Algorithm::Hs512 => Some(hmac::HMAC_SHA512),
        _ => None,
    }
}

pub(super) fn rsa(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    match algorithm {
        Algorithm::Rs256 => Some(&RSA_PKCS1_2048_8192_SHA256),
        Algorithm::Rs384 => Some(&RSA_PKCS1_2048_8192_SHA384),
        Algorithm::Rs512 => Some(&RSA_PKCS1_2048_8192_SHA512),
        Algorithm::Ps256 => Some(&RSA_PSS_2048_8192_SHA256),
        Algorithm::Ps384 => Some(&RSA_PSS_2048_8192_SHA384),
        Algorithm::Ps512 => Some(&RSA_PSS_2048_8192_SHA512),
        _ => None,
    }
}

/// Those of curves. Signatures are of the fixed length that JWS has: what X.509 has, DER, is none.
pub(super) fn curve(algorithm: Algorithm) -> Option<&'static dyn VerificationAlgorithm> {
    match algorithm {
        Algorithm::Es256 => Some(&ECDSA_P256_SHA256_FIXED),
        Algorithm::Es384 => Some(&ECDSA_P384_SHA384_FIXED),
        Algorithm::Es512 => Some(&ECDSA_P521_SHA512_FIXED),
        Algorithm::EdDsa => Some(&ED25519),
        _ => None,
    }
}
