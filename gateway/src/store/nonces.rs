//! Where each authenticator remembers nonces, so that a start with another configuration knows whether some were used
//! that it cannot know of.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::lists::{replace, write};

/// The folder of a gateway has this file beside the one of its rules.
pub(super) const FILE: &str = "nonces.json";

/// Where an authenticator remembers nonces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// A number for each Redis; 0 is the memory of the process, which forgets.
    pub place: u64,
    /// Since which second all of them are there.
    pub since: u64,
}

/// By the names of authenticators.
pub type Marks = BTreeMap<String, Mark>;

/// What was written last; nothing where that is nothing, or cannot be read.
pub fn read(directory: &Path) -> Marks {
    let bytes = fs::read(directory.join(FILE)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Writes them: on the disk when this returns.
pub fn keep(directory: &Path, marks: &Marks) -> Result<(), StoreError> {
    let path = directory.join(FILE);
    let text = serde_json::to_vec(marks).unwrap_or_default();
    write(&path, |file| file.write_all(&text))?;
    replace(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_and_nonsense_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).is_empty());
        let marks = Marks::from([("a".to_owned(), Mark { place: u64::MAX, since: 7 })]);
        keep(folder.path(), &marks).unwrap();
        assert_eq!(read(folder.path()), marks);
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(read(folder.path()).is_empty());
    }
}
