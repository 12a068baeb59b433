//! What the names of endpoints stood for last, in the state directory: one file, written beside and renamed into place.
//! It is no promise but a help: a start without it, or with a broken one, knows less and nothing wrong.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::lists::{replace, write as write_beside};
use super::{StoreError, io_error};

pub(super) const FILE: &str = "names.json";
/// Bytes of the file.
const BYTES_MAX: usize = 16 << 20;

/// Keeps what is known of names in `directory`, in the place of what was kept before.
///
/// # Errors
///
/// It cannot be written, or is longer than 16 MiB; what was kept before stays.
pub fn write<T: Serialize>(directory: &Path, known: &T) -> Result<(), StoreError> {
    let path = directory.join(FILE);
    let text = serde_json::to_vec(known).map_err(|error| io_error(&path, error.into()))?;
    if text.len() > BYTES_MAX {
        return Err(io_error(&path, too_long()));
    }
    write_beside(&path, |file| file.write_all(&text))?;
    replace(&path)
}

/// What was kept in `directory`; `None` if nothing was.
///
/// # Errors
///
/// It cannot be read, is longer than 16 MiB, or makes no sense.
pub fn read<T: DeserializeOwned>(directory: &Path) -> Result<Option<T>, StoreError> {
    let path = directory.join(FILE);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|source| io_error(&path, source))?,
    };
    let mut text = Vec::new();
    let read = file.take(BYTES_MAX as u64 + 1).read_to_end(&mut text);
    let read = read.and_then(|bytes| if bytes > BYTES_MAX { Err(too_long()) } else { Ok(()) });
    read.and_then(|()| serde_json::from_slice(&text).map_err(io::Error::from))
        .map_err(|source| io_error(&path, source))
}

fn too_long() -> io::Error {
    io::Error::other(format!("longer than {} MiB", BYTES_MAX >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_is_an_error_and_what_is_not_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read::<Vec<u8>>(folder.path()).unwrap(), None);
        write(folder.path(), &[1u8, 2]).unwrap();
        write(folder.path(), &[3u8]).unwrap();
        assert_eq!(read::<Vec<u8>>(folder.path()).unwrap(), Some(vec![3]));
        std::fs::write(folder.path().join(FILE), "[1,").unwrap();
        assert!(read::<Vec<u8>>(folder.path()).is_err());
        assert!(write(folder.path(), &"x".repeat(BYTES_MAX)).is_err());
        assert!(read::<Vec<u8>>(folder.path()).is_err(), "it is the one before");
    }
}
