//! A file that is read again when it changes. A version that cannot be used is not taken: the last good one stays, and
//! what is wrong is said once.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};

/// What a file says.
pub(super) struct Watched<T> {
    path: PathBuf,
    max_bytes: u64,
    parse: Parse<T>,
    current: ArcSwap<T>,
    /// The version that was looked at last, good or not.
    seen: Mutex<Option<Stamp>>,
}

/// Makes something of a file's bytes. The error fits after the name of the file.
type Parse<T> = Box<dyn Fn(&[u8]) -> Result<T, String> + Send + Sync>;

/// What tells one version of a file from another: inode, bytes, time of the last change.
type Stamp = (u64, u64, i64, i64);

impl<T> Watched<T> {
    /// Reads the file, of at most `max_bytes`. The error names it.
    pub(super) fn new(
        path: &Path,
        max_bytes: u64,
        parse: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let (stamp, bytes) = read(path, max_bytes)?;
        let first = parse(&bytes).map_err(|error| format!("{} {error}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            max_bytes,
            parse: Box::new(parse),
            current: ArcSwap::from_pointee(first),
            seen: Mutex::new(Some(stamp)),
        })
    }

    /// What the last good version says.
    pub(super) fn load(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    /// Reads the file again if it is another one. `Ok(true)`: there is a new version. An error is returned once.
    pub(super) fn tick(&self) -> Result<bool, String> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = std::fs::metadata(&self.path).ok().map(|data| stamp_of(&data));
        if stamp == *seen {
            return Ok(false);
        }
        *seen = stamp;
        let (stamp, bytes) = read(&self.path, self.max_bytes)?;
        *seen = Some(stamp);
        let next = (self.parse)(&bytes).map_err(|error| format!("{} {error}", self.path.display()));
        self.current.store(Arc::new(next?));
        Ok(true)
    }
}

fn read(path: &Path, max_bytes: u64) -> Result<(Stamp, Vec<u8>), String> {
    let read = || -> io::Result<(Stamp, Vec<u8>)> {
        let file = File::open(path)?;
        let stamp = stamp_of(&file.metadata()?);
        let mut bytes = Vec::new();
        file.take(max_bytes + 1).read_to_end(&mut bytes)?;
        Ok((stamp, bytes))
    };
    let shown = path.display();
    let (stamp, bytes) = read().map_err(|error| format!("{shown} cannot be read: {error}"))?;
    if bytes.len() as u64 > max_bytes {
        return Err(format!("{shown} is longer than {max_bytes} bytes"));
    }
    Ok((stamp, bytes))
}

fn stamp_of(data: &Metadata) -> Stamp {
    (data.ino(), data.len(), data.mtime(), data.mtime_nsec())
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Watched").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8]) -> Result<u32, String> {
        let text = String::from_utf8_lossy(bytes);
        text.trim().parse().map_err(|_| "has no number in it".to_owned())
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_bad_version_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        let write = |text: &str| {
            let new = folder.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, &path).unwrap();
        };
        write("7");
        let watched = Watched::new(&path, 10, number).unwrap();
        assert_eq!((**watched.load(), watched.tick()), (7, Ok(false)));
        write("8");
        assert_eq!((watched.tick(), **watched.load()), (Ok(true), 8));
        for (text, message) in
            [("x", "has no number in it"), ("12345678901", "longer than 10 bytes")]
        {
            write(text);
            let error = watched.tick().unwrap_err();
            assert!(
                error.starts_with(path.to_str().unwrap()) && error.ends_with(message),
                "{error}"
            );
            assert_eq!((watched.tick(), **watched.load()), (Ok(false), 8), "it is said once");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(watched.tick().unwrap_err().contains("cannot be read"));
        assert_eq!((watched.tick(), **watched.load()), (Ok(false), 8));
        write("9");
        assert_eq!((watched.tick(), **watched.load()), (Ok(true), 9));
    }

    #[test]
    fn one_that_is_missing_or_bad_from_the_start_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        assert!(Watched::new(&path, 10, number).unwrap_err().contains("cannot be read"));
        std::fs::write(&path, "x").unwrap();
        assert!(Watched::new(&path, 10, number).unwrap_err().ends_with("has no number in it"));
    }
}
