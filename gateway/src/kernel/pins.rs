//! Where programs, maps and links are pinned, so that enforcement outlives the process.
//!
//! ```text
//! /sys/fs/bpf/gateway/          0700, refused when somebody else owns it
//!     links/eth0                one link an interface, under the name that it has now; it keeps the program attached
//!     abi-7/program             the program
//!     abi-7/TABLE_V4 …          the maps, which a program of another ABI version must not touch
//!     abi-7-next0/…             what is about to take its place whole, in one step, or what it has taken it from
//! ```
//!
//! A map that stays is in both folders of maps, as two names of one file.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gateway_common::layout::ABI;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use thiserror::Error;

/// Why the pins cannot be used.
#[derive(Debug, Error)]
pub enum PinsError {
    /// No BPF file system, and none could be mounted.
    #[error("no BPF file system at {path}: `mount -t bpf bpf {path}` as root makes one ({source})")]
    NoFileSystem {
        /// Where it was looked for.
        path: String,
        /// Why mounting it failed.
        source: io::Error,
    },
    /// Somebody else made the folder.
    #[error(
        "{path} belongs to user {owner}, neither root nor the gateway's own: remove it if it is not in use"
    )]
    ForeignOwner {
        /// The folder.
        path: String,
        /// The numeric user.
        owner: u32,
    },
    /// What is pinned is of a gateway of another version, whose maps mean something else.
    #[error(
        "{0} has no pins of this version of the gateway: start it once, which takes over what is there"
    )]
    OtherVersion(String),
    /// Not for this user.
    #[error("{0} is closed to this user: run this as root, or as the gateway's own user")]
    Closed(String),
    /// Anything else.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Starts in a row that did not come to their ends, of which each counted for itself.
const NEXT_MAX: u32 = 8;

/// The folder of pins.
///
/// Once prepared it is held open, and reached through that descriptor: /sys/fs/bpf is often closed to the user that the
/// daemon becomes, while the folder itself is that user's own.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    reached: PathBuf,
    folder: Option<Arc<OwnedFd>>,
}

impl Pins {
    /// The folder at `root`, as it is.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), reached: root.to_owned(), folder: None }
    }

    /// Makes the folder ready: a BPF file system below it, mode 0700, owned by root or by the user `owner`.
    pub fn prepare(&mut self, owner: u32) -> Result<(), PinsError> {
        // A folder that was removed is still reached through its descriptor, but nothing can be made in it.
        if fs::metadata(&self.reached).is_ok_and(|metadata| metadata.nlink() == 0) {
            *self = Self::at(&self.root);
        }
        if self.folder.is_none() {
            self.mount()?;
            self.make(&self.root)?;
            let metadata =
                fs::metadata(&self.root).map_err(|source| self.error(&self.root, source))?;
            if metadata.uid() != 0 && metadata.uid() != owner {
                let path = self.root.display().to_string();
                return Err(PinsError::ForeignOwner { path, owner: metadata.uid() });
            }
            fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700))
                .map_err(|source| self.error(&self.root, source))?;
            let folder = rustix::fs::open(
                &self.root,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            );
            let folder = folder.map_err(|error| self.error(&self.root, error.into()))?;
            self.reached = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
            self.folder = Some(Arc::new(folder));
        }
        self.make(&self.links())
    }

    /// Hands the folder and all in it to a user.
    pub fn give_to(&self, user: u32, group: u32) -> Result<(), PinsError> {
        let mut paths = vec![self.reached.clone(), self.maps(), self.links()];
        for folder in [self.maps(), self.links()] {
            paths.extend(self.entries(&folder)?);
        }
        for path in paths {
            chown(&path, Some(user), Some(group)).map_err(|source| self.error(&path, source))?;
        }
        Ok(())
    }

    /// The folder of this ABI version.
    pub fn maps(&self) -> PathBuf {
        self.reached.join(format!("abi-{ABI}"))
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The pin of the link of an interface. The BPF file system allows no dots in names, interfaces do.
    pub fn link(&self, interface: &str) -> PathBuf {
        self.links().join(interface.replace('%', "%25").replace('.', "%2e"))
    }

    /// Makes a folder for what is to take the place of [`Self::maps`], with the maps that stay.
    pub fn stage(&self, kept: impl Iterator<Item = &'static str>) -> Result<PathBuf, PinsError> {
        let staged = self.spare()?;
        self.make(&staged)?;
        for name in kept {
            fs::hard_link(self.map(name), staged.join(name))
                .map_err(|source| self.error(&self.map(name), source))?;
        }
        Ok(staged)
    }

    /// The path of a staged folder that there is none of.
    fn spare(&self) -> Result<PathBuf, PinsError> {
        let of = |number| self.reached.join(format!("abi-{ABI}-next{number}"));
        if let Some(spare) = (0..NEXT_MAX).map(of).find(|folder| !folder.exists()) {
            return Ok(spare);
        }
        self.remove_folder(&of(0))?;
        Ok(of(0))
    }

    /// Puts what is staged in force, in one step. What was in force is staged then.
    pub fn commit(&self, staged: &Path) -> Result<(), PinsError> {
        self.swap(staged, &self.maps())
    }

    /// Undoes [`Self::commit`].
    pub fn revoke(&self, staged: &Path) -> Result<(), PinsError> {
        self.swap(&self.maps(), staged)
    }

    /// What is staged, or was in force.
    pub fn staged(&self) -> Result<Vec<PathBuf>, PinsError> {
        let mut others = self.others()?;
        others.retain(|folder| is_staged(folder));
        Ok(others)
    }

    /// The interfaces that have a link.
    pub fn linked(&self) -> Result<Vec<String>, PinsError> {
        let decode = |path: PathBuf| {
            let name = path.file_name()?.to_str()?;
            Some(name.replace("%2e", ".").replace("%25", "%"))
        };
        Ok(self.link_pins()?.into_iter().filter_map(decode).collect())
    }

    /// The pins of all links.
    pub fn link_pins(&self) -> Result<Vec<PathBuf>, PinsError> {
        self.entries(&self.links())
    }

    /// Lets a link have the place of an interface. The one that has it goes where this one was.
    pub fn move_link(&self, from: &Path, interface: &str) -> Result<(), PinsError> {
        self.swap(from, &self.link(interface))
    }

    /// Removes a pin if it is there.
    pub fn remove(&self, path: &Path) -> Result<(), PinsError> {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(self.error(path, source))
            }
            _ => Ok(()),
        }
    }

    /// The folders of what is not in force or not of this ABI version, always in the same order.
    pub fn others(&self) -> Result<Vec<PathBuf>, PinsError> {
        let mut others = self.versions()?;
        others.retain(|folder| *folder != self.maps());
        others.sort_unstable();
        Ok(others)
    }

    /// Removes a folder of maps, which no link may run any more. Answers its path as people know it, if it was in force
    /// to any ABI version.
    pub fn remove_other(&self, folder: &Path) -> Result<Option<String>, PinsError> {
        if is_staged(folder) {
            return self.remove_folder(folder).map(|()| None);
        }
        // Half of it, left by somebody who was killed here, would be in force to its own version.
        let aside = self.spare()?;
        self.swap(folder, &aside)?;
        self.remove_folder(&aside)?;
        Ok(Some(self.shown(folder)))
    }

    /// Removes everything: links first, so that no program is left without its maps' pins. Answers the interfaces that
    /// had a link. The empty folder stays where whoever asks may not remove it.
    pub fn remove_all(&self) -> Result<Vec<String>, PinsError> {
        let linked = self.linked()?;
        self.remove_folder(&self.links())?;
        linked.iter().for_each(|interface| super::attach::await_end(interface));
        for folder in self.versions()? {
            self.remove_other(&folder)?;
        }
        match fs::remove_dir(&self.root) {
            Ok(()) => Ok(linked),
            Err(source) => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Ok(linked),
                _ => Err(self.error(&self.root, source)),
            },
        }
    }

    /// Whether there is anything.
    pub fn exist(&self) -> Result<bool, PinsError> {
        self.reached.try_exists().map_err(|source| self.error(&self.reached, source))
    }

    /// Refuses links without the maps of this version.
    pub fn check_version(&self) -> Result<(), PinsError> {
        match self.maps().try_exists() {
            Ok(true) => Ok(()),
            Ok(false) => Err(PinsError::OtherVersion(self.root.display().to_string())),
            Err(source) => Err(self.error(&self.maps(), source)),
        }
    }

    /// The folders of all ABI versions. Whatever else lies beside them is not ours to touch.
    fn versions(&self) -> Result<Vec<PathBuf>, PinsError> {
        let ours = |folder: &PathBuf| {
            folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("abi-"))
        };
        Ok(self.entries(&self.reached)?.into_iter().filter(ours).collect())
    }

    fn links(&self) -> PathBuf {
        self.reached.join("links")
    }

    /// Lets `from` have the place of `to`, in one step. What is there goes where `from` was.
    fn swap(&self, from: &Path, to: &Path) -> Result<(), PinsError> {
        let flags = match to.exists() {
            true => RenameFlags::EXCHANGE,
            false => RenameFlags::NOREPLACE,
        };
        rustix::fs::renameat_with(CWD, from, CWD, to, flags)
            .map_err(|error| self.error(from, error.into()))
    }

    fn make(&self, folder: &Path) -> Result<(), PinsError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| self.error(folder, source))
    }

    fn remove_folder(&self, folder: &Path) -> Result<(), PinsError> {
        for path in self.entries(folder)? {
            fs::remove_file(&path).map_err(|source| self.error(&path, source))?;
        }
        match fs::remove_dir(folder) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(self.error(folder, source))
            }
            _ => Ok(()),
        }
    }

    /// What is in a folder; nothing if it is not there.
    fn entries(&self, folder: &Path) -> Result<Vec<PathBuf>, PinsError> {
        let read = match fs::read_dir(folder) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read.and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect()),
        };
        read.map_err(|source| self.error(folder, source))
    }

    /// A path as people know it.
    fn shown(&self, path: &Path) -> String {
        let below = path.strip_prefix(&self.reached);
        below.map_or_else(|_| path.to_owned(), |below| self.root.join(below)).display().to_string()
    }

    fn error(&self, path: &Path, source: io::Error) -> PinsError {
        match source.kind() {
            io::ErrorKind::PermissionDenied => PinsError::Closed(self.shown(path)),
            _ => PinsError::Io { path: self.shown(path), source },
        }
    }

    /// Sees to it that the folder lies on a BPF file system, mounting one where it usually is.
    fn mount(&self) -> Result<(), PinsError> {
        const USUAL: &str = "/sys/fs/bpf";
        let existing = self.root.ancestors().find(|folder| folder.exists());
        let is_bpf =
            |path: &Path| statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
        if existing.is_some_and(is_bpf) {
            return Ok(());
        }
        let path = if self.root.starts_with(USUAL) {
            USUAL.to_owned()
        } else {
            self.root.parent().unwrap_or(&self.root).display().to_string()
        };
        let mounted = if self.root.starts_with(USUAL) {
            mount(Some("bpf"), USUAL, Some("bpf"), MsFlags::empty(), None::<&str>)
                .map_err(io::Error::from)
        } else {
            Err(io::Error::new(io::ErrorKind::Unsupported, "only /sys/fs/bpf is mounted unasked"))
        };
        mounted.map_err(|source| PinsError::NoFileSystem { path, source })
    }
}

/// Whether a folder of pins is of this ABI version without being what is in force.
fn is_staged(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(&format!("abi-{ABI}-"))
}
