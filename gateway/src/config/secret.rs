//! Where secrets are: in files and in the environment, never in the configuration itself, which people copy, mail and
//! commit. The section looks at neither; whoever needs a secret reads it once, when the configuration is put in force.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::at::At;
use super::hidden::is_variable;
use super::raw::{Section, TextOr};
use super::value::file_path;
use crate::base::secret::Secret;

/// Bytes of a secret.
const BYTES_MAX: u64 = 64 << 10;

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SecretSource {
    /// All of this file but one line end at its end.
    File(PathBuf),
    /// The value of this variable.
    Env(String),
}

impl SecretSource {
    /// Reads it. The error names the place, what was wrong and what to do.
    pub fn read(&self) -> Result<Secret, String> {
        let bytes = match self {
            Self::File(path) => bytes_of(path).map_err(|error| {
                format!("{self} cannot be read ({error}): name a file that this user may read")
            })?,
            Self::Env(name) => std::env::var_os(name)
                .map(std::os::unix::ffi::OsStringExt::into_vec)
                .ok_or_else(|| format!("{self} is not set: set it where the gateway is started"))?,
        };
        let text = without_line_end(&bytes);
        match text.len() as u64 {
            0 => Err(format!("{self} is empty: put the secret there")),
            1..=BYTES_MAX => Ok(Secret::new(text)),
            _ => Err(format!("{self} has more than {BYTES_MAX} bytes, which is no secret")),
        }
    }
}

/// What a file with a secret says: all of it but one end of line.
pub fn without_line_end(bytes: &[u8]) -> &[u8] {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    text.strip_suffix(b"\r").unwrap_or(text)
}

impl fmt::Display for SecretSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(formatter, "the file {}", path.display()),
            Self::Env(name) => write!(formatter, "the environment variable {name}"),
        }
    }
}

fn bytes_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(BYTES_MAX + 3).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `{file: PATH}` or `{env: NAME}`.
pub(super) type RawSecret = TextOr<RawSecretPlace>;

/// Where a secret is: exactly one of these.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSecretPlace {
    #[serde(default)]
    file: Option<String>,
    #[serde(default)]
    env: Option<String>,
}

impl Section for RawSecretPlace {
    const EXPECTED: &'static str = "a section with `file` or `env`";
}

pub(super) fn secret(raw: &RawSecret, folder: &Path, at: At<'_>) -> Option<SecretSource> {
    let help = "write {file: PATH} or {env: NAME}";
    match raw {
        // What was typed is not repeated: it may well be the secret.
        RawSecret::Text(_) => {
            at.secret_error("a secret does not belong into this file", help);
            None
        }
        RawSecret::Section(RawSecretPlace { file: Some(path), env: None }) => {
            file_path(path, folder, at.key("file")).map(SecretSource::File)
        }
        RawSecret::Section(RawSecretPlace { file: None, env: Some(name) }) => {
            variable(name, at.key("env")).map(SecretSource::Env)
        }
        RawSecret::Section(_) => {
            at.on_key().error_with_help("a secret is in one place", help);
            None
        }
    }
}

fn variable(name: &str, at: At<'_>) -> Option<String> {
    if !is_variable(name) {
        // It is not repeated either.
        let message = "this is no name of an environment variable";
        at.secret_error(message, "write one such as GATEWAY_JWT_SECRET");
    }
    is_variable(name).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_but_for_the_end_of_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let source = SecretSource::File(folder.path().join("secret"));
        for (text, expected) in [("a b\n", "a b"), ("a", "a"), ("a\r\n", "a"), ("a\n\n", "a\n")] {
            std::fs::write(folder.path().join("secret"), text).unwrap();
            assert_eq!(source.read().unwrap().bytes(), expected.as_bytes());
        }
    }

    #[test]
    fn what_is_missing_empty_or_too_long_is_an_error_that_names_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let source = SecretSource::File(path.clone());
        assert!(source.read().unwrap_err().contains("cannot be read"));
        for bad in ["", "\n", &"x".repeat(65_537)] {
            std::fs::write(&path, bad).unwrap();
            assert!(source.read().unwrap_err().starts_with("the file "), "{}", bad.len());
        }
        let source = SecretSource::Env("GATEWAY_NO_SUCH_VARIABLE".to_owned());
        assert!(source.read().unwrap_err().contains("GATEWAY_NO_SUCH_VARIABLE is not set"));
    }

    #[test]
    fn a_secret_that_was_typed_is_not_repeated_whatever_else_is_wrong_in_its_line() {
        let text =
            "auth:\n  a:\n    jwt: {secret: hunter2-hunter2, leeway: x, nonsense: hunter3}\n";
        let said = crate::config::parse("x.yaml", text).unwrap_err();
        let (shown, lines) = (said.to_string(), said.json_lines());
        assert!(shown.contains("a secret does not belong into this file"), "{shown}");
        assert!(!shown.contains("hunter2") && !lines.contains("hunter2"), "{shown}");
    }
}
