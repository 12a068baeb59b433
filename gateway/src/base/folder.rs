//! Folders that the gateway writes to or believes what lies in. Refuses those that somebody else could have made or can
//! change, and gives away none that holds what is not the gateway's.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;

use thiserror::Error;

/// Why a folder is not used.
#[derive(Debug, Error)]
pub enum FolderError {
    /// Made by somebody else, where anybody may.
    #[error(
        "{0} is a link or belongs to user {1}, in a folder where everybody may write: {WAY_OUT}"
    )]
    Foreign(String, u32),
    /// Anybody may change what lies in it.
    #[error("{0} may be written by others: `chmod go-w {0}` if that is not meant, or {WAY_OUT}")]
    Open(String),
    /// It is somebody else's, or holds other things.
    #[error("{0} holds other things and user {1} may not write there: {WAY_OUT}")]
    Closed(String, u32),
    /// Anything else.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

const WAY_OUT: &str =
    "name another folder; without HOME and the XDG variables the usual ones are below /tmp";
const WRITABLE_BY_ALL: u32 = 0o002;

/// Makes `folder` if it is not there, and sees to it that `user` may write there. Answers whether root may hand it to
/// that user: it holds nothing but what is called as in `ours`.
pub fn prepare(
    folder: &Path,
    (user, group): (u32, u32),
    ours: &[&str],
) -> Result<bool, FolderError> {
    let failed = |error| FolderError::Io(folder.display().to_string(), error);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    check(folder, user)?;
    let metadata = fs::metadata(folder).map_err(failed)?;
    if metadata.uid() == user {
        return Ok(false);
    }
    let is_root = rustix::process::geteuid().is_root();
    if is_root && metadata.uid() == 0 && holds_only(folder, ours).map_err(failed)? {
        return Ok(true);
    }
    match may_write(&metadata, user, group) {
        true => Ok(false),
        false => Err(FolderError::Closed(folder.display().to_string(), user)),
    }
}

/// Refuses a folder where others than root, this process and `user` may have put something. One that is not there
/// passes.
pub fn check(folder: &Path, user: u32) -> Result<(), FolderError> {
    let path = || folder.display().to_string();
    let found = match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|error| FolderError::Io(path(), error))?,
    };
    let shared = folder.parent().and_then(|parent| fs::metadata(parent).ok());
    let shared = shared.is_some_and(|parent| parent.mode() & WRITABLE_BY_ALL != 0);
    let known = [0, rustix::process::geteuid().as_raw(), user].contains(&found.uid());
    if shared && !(known && found.is_dir()) {
        return Err(FolderError::Foreign(path(), found.uid()));
    }
    let behind = fs::metadata(folder).map_err(|error| FolderError::Io(path(), error))?;
    match behind.mode() & WRITABLE_BY_ALL {
        0 => Ok(()),
        _ => Err(FolderError::Open(path())),
    }
}

fn holds_only(folder: &Path, ours: &[&str]) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        if !ours.iter().any(|name| entry.as_ref().is_ok_and(|entry| entry.file_name() == *name)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn may_write(metadata: &Metadata, user: u32, group: u32) -> bool {
    const WRITE_AND_ENTER: u32 = 0o3;
    let shift = match (metadata.uid() == user, metadata.gid() == group) {
        (true, _) => 6,
        (false, true) => 3,
        (false, false) => 0,
    };
    metadata.mode() >> shift & WRITE_AND_ENTER == WRITE_AND_ENTER
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::PathBuf;

    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    /// A folder like /tmp, and one in it with this mode.
    fn shared(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let shared = tempfile::tempdir().unwrap();
        let folder = shared.path().join("gateway-1000");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
        fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        (shared, folder)
    }

    #[test]
    fn where_everybody_may_write_only_our_own_is_used() {
        let (_keep, folder) = shared(0o700);
        check(&folder, me()).unwrap();
        assert!(!prepare(&folder, (me(), 0), &[]).unwrap(), "it is ours already");
        let made = folder.join("made/for/us");
        prepare(&made, (me(), 0), &[]).unwrap();
        assert_eq!(fs::metadata(&made).unwrap().mode() & 0o777, 0o700);
        let (_keep, open) = shared(0o777);
        assert!(check(&open, me()).unwrap_err().to_string().contains("chmod go-w"));
        let link = folder.with_file_name("link");
        symlink(&folder, &link).unwrap();
        assert!(check(&link, me()).unwrap_err().to_string().contains("is a link"));
        check(&folder.with_file_name("none"), me()).unwrap();
    }
}
