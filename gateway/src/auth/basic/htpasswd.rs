//! htpasswd files: a user and the hash of a password a line. Takes argon2id and bcrypt; every other kind can be guessed
//! at a rate of millions a second, so its line is an error that says how to make a good one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, Params, PasswordVerifier};

/// Bytes of a file.
pub(super) const FILE_BYTES_MAX: u64 = 8 << 20;
/// Bytes of a name.
pub(super) const USER_BYTES_MAX: usize = 128;
/// Users of one file.
const USERS_MAX: usize = 100_000;
/// What one verification may take: memory in KiB, passes, lanes.
const ARGON2_MAX: (u32, u32, u32) = (256 << 10, 16, 16);
/// 2^16 rounds take seconds.
const BCRYPT_COST: std::ops::RangeInclusive<u32> = 4..=16;

/// What bcrypt reads of a password.
const BCRYPT_BYTES: usize = 72;

static NEXT: AtomicU64 = AtomicU64::new(0);

const HELP: &str = "make a new one, such as by `htpasswd -B -C 12 FILE USER`";

/// The users of a file. At least one.
pub(super) struct Users {
    generation: u64,
    numbers: HashMap<Box<str>, usize>,
    hashes: Vec<Hash>,
    hasher: RandomState,
}

#[derive(Clone)]
enum Hash {
    Argon2id(Box<str>),
    Bcrypt(Box<str>),
}

/// What the password of a user is checked by.
pub(super) struct Check {
    hash: Hash,
    is_known: bool,
}

impl Users {
    /// Reads a text. The error names the line and the user, and nothing of a hash.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "is no UTF-8".to_owned())?;
        let mut lines: HashMap<Box<str>, usize> = HashMap::new();
        let mut users = Self {
            generation: NEXT.fetch_add(1, Ordering::Relaxed),
            numbers: HashMap::new(),
            hashes: Vec::new(),
            hasher: RandomState::new(),
        };
        for (index, line) in text.lines().enumerate() {
            let (number, line) = (index + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (user, hash) = line
                .split_once(':')
                .filter(|(user, _)| (1..=USER_BYTES_MAX).contains(&user.len()))
                .ok_or_else(|| format!("line {number} is no USER:HASH: {HELP}"))?;
            let user = user.to_owned();
            let hash = Hash::parse(hash).map_err(|error| {
                format!("line {number}: the hash of `{}` {error}", user.escape_debug())
            })?;
            match lines.entry(user.as_str().into()) {
                Entry::Occupied(first) => {
                    let (user, first) = (user.escape_debug(), first.get());
                    return Err(format!("line {number}: `{user}` is in line {first} already"));
                }
                Entry::Vacant(entry) => entry.insert(number),
            };
            if users.hashes.len() == USERS_MAX {
                return Err(format!("has more than {USERS_MAX} users"));
            }
            users.numbers.insert(user.into(), users.hashes.len());
            users.hashes.push(hash);
        }
        if users.hashes.is_empty() { Err(format!("has no users: {HELP}")) } else { Ok(users) }
    }

    /// Its number among all that were read.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// What a user's password is checked by. One that does not exist costs what somebody else does, always the same
    /// one, so that time tells nobody who exists.
    pub(super) fn check(&self, user: &str) -> Option<Check> {
        let known = self.numbers.get(user).copied();
        let other = || self.hasher.hash_one(user) as usize % self.hashes.len().max(1);
        let hash = self.hashes.get(known.unwrap_or_else(other))?.clone();
        Some(Check { hash, is_known: known.is_some() })
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} users", self.hashes.len())
    }
}

impl Check {
    /// Whether this is the password. Takes tens of milliseconds of a CPU.
    pub(super) fn verifies(&self, password: &[u8]) -> bool {
        let fits = match &self.hash {
            Hash::Argon2id(hash) => Argon2::default().verify_password(password, &**hash).is_ok(),
            // What is behind the 72nd byte would not count, so there may be none.
            Hash::Bcrypt(hash) => {
                bcrypt::verify(password, hash).unwrap_or(false) & (password.len() <= BCRYPT_BYTES)
            }
        };
        fits & self.is_known
    }
}

impl Hash {
    fn parse(text: &str) -> Result<Self, String> {
        let kind = match text {
            _ if text.starts_with("$argon2id$") => return Self::argon2id(text),
            _ if ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| text.starts_with(prefix)) => {
                return Self::bcrypt(text);
            }
            _ if text.starts_with("$argon2") => "argon2 but not argon2id",
            _ if text.starts_with("$2x$") => "the bcrypt that was broken",
            _ if text.starts_with("$apr1$") || text.starts_with("$1$") => "MD5",
            _ if text.starts_with("{SHA}") || text.starts_with("{SSHA}") => "SHA-1",
            _ if text.starts_with("$5$") || text.starts_with("$6$") => "SHA-crypt",
            _ if text.starts_with('$') || text.starts_with('{') => {
                "of a kind that is not known here"
            }
            _ => "crypt or no hash at all",
        };
        Err(format!("is {kind}, which is not accepted: {HELP}"))
    }

    fn argon2id(text: &str) -> Result<Self, String> {
        let bad = || format!("is no argon2id hash that can be read: {HELP}");
        let hash = PasswordHash::new(text).map_err(|_| bad())?;
        let params = Params::try_from(&hash).map_err(|_| bad())?;
        let whole = hash.salt.is_some() && hash.hash.is_some();
        let (memory, passes, lanes) = ARGON2_MAX;
        if !whole || hash.version.is_some_and(|version| version != 19) {
            return Err(bad());
        }
        if params.m_cost() > memory || params.t_cost() > passes || params.p_cost() > lanes {
            return Err(format!(
                "costs more than m={memory},t={passes},p={lanes}: make a cheaper one"
            ));
        }
        Ok(Self::Argon2id(text.into()))
    }

    fn bcrypt(text: &str) -> Result<Self, String> {
        let parts = text.parse::<bcrypt::HashParts>();
        let parts = parts.map_err(|_| format!("is no bcrypt hash that can be read: {HELP}"))?;
        if !BCRYPT_COST.contains(&parts.get_cost()) {
            let [min, max] = [BCRYPT_COST.start(), BCRYPT_COST.end()];
            return Err(format!("has a cost beyond {min} to {max}: make one with a cost of 12"));
        }
        Ok(Self::Bcrypt(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `password`, from the tests of the reference implementation of argon2.
    const ARGON2ID: &str =
        "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";

    fn bcrypt_of(password: &str) -> String {
        let parts = bcrypt::hash_with_salt(password, 4, *b"0123456789abcdef").unwrap();
        parts.format_for_version(bcrypt::Version::TwoY)
    }

    #[test]
    fn both_good_kinds_verify() {
        let text = format!("# users\n\nann:{ARGON2ID}\r\nbob:{}\n", bcrypt_of("secret"));
        let users = Users::parse(text.as_bytes()).unwrap();
        let verifies =
            |user: &str, password: &str| users.check(user).unwrap().verifies(password.as_bytes());
        assert!(verifies("ann", "password"));
        assert!(verifies("bob", "secret"));
        for (user, password) in [
            ("ann", "Password"),
            ("ann", ""),
            ("bob", "password"),
            ("Ann", "password"),
            ("eve", "password"),
            ("eve", "secret"),
            ("", "password"),
        ] {
            assert!(!verifies(user, password), "{user} {password}");
        }
    }

    #[test]
    fn who_does_not_exist_is_checked_by_somebody_elses_hash_always_the_same() {
        let users =
            Users::parse(format!("ann:{ARGON2ID}\nbob:{}\n", bcrypt_of("x")).as_bytes()).unwrap();
        let kinds: Vec<bool> = (0..64)
            .map(|number| {
                let user = format!("nobody-{number}");
                let [one, two] = [0; 2].map(|_| users.check(&user).unwrap());
                assert!(!one.is_known && !two.is_known);
                let kind = matches!(one.hash, Hash::Bcrypt(_));
                assert_eq!(kind, matches!(two.hash, Hash::Bcrypt(_)));
                kind
            })
            .collect();
        assert!(kinds.contains(&true) && kinds.contains(&false), "both costs come up");
    }

    #[test]
    fn what_is_behind_the_72nd_byte_of_bcrypt_counts_as_wrong() {
        let long = "x".repeat(72);
        let users = Users::parse(format!("bob:{}\n", bcrypt_of(&long)).as_bytes()).unwrap();
        let check = users.check("bob").unwrap();
        assert!(check.verifies(long.as_bytes()));
        assert!(!check.verifies(format!("{long}y").as_bytes()));
    }

    #[test]
    fn a_bad_line_is_named_with_what_to_do_and_without_its_hash() {
        for (line, said) in [
            ("bob:$apr1$salt1234$abcdefghijklmnopqrstu.", "MD5"),
            ("bob:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "SHA-1"),
            ("bob:$6$salt$abcdef", "SHA-crypt"),
            ("bob:rqXexS6ZhobKA", "crypt"),
            ("bob:plain-text", "no hash at all"),
            (
                "bob:$argon2i$v=19$m=256,t=2,p=1$c29tZXNhbHQ$/U3YPXYsSb3q9XxHvc0MLxur+GP960kN9j7emXX8zwY",
                "argon2id",
            ),
            (
                "bob:$argon2id$v=19$m=4294967295,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
                "costs more",
            ),
            ("bob:$argon2id$v=19$m=256,t=2,p=1", "argon2id"),
            ("bob:$2y$31$abcdefghijklmnopqrstuuPTBKF5x9SuAvpHVPQ3FUS0BqC2r0zTu", "cost"),
            ("bob:$2y$05$short", "bcrypt"),
            ("bob:$2x$05$abcdefghijklmnopqrstuuPTBKF5x9SuAvpHVPQ3FUS0BqC2r0zTu", "broken"),
            ("bob:", "no hash"),
            ("bob", "USER:HASH"),
            (":hash", "USER:HASH"),
        ] {
            let error = Users::parse(format!("# first\n{line}\n").as_bytes()).unwrap_err();
            assert!(error.starts_with("line 2"), "{error}");
            assert!(error.contains(said), "{line}: {error}");
            let hash = line.split_once(':').map_or("", |(_, hash)| hash);
            assert!(hash.len() < 9 || !error.contains(hash), "{error}");
        }
        let twice = format!("bob:{ARGON2ID}\nann:{ARGON2ID}\nbob:{ARGON2ID}");
        assert!(Users::parse(twice.as_bytes()).unwrap_err().contains("line 3: `bob` is in line 1"));
        assert!(Users::parse(b"# nobody\n").unwrap_err().contains("no users"));
    }
}
