//! Lists in the state directory, one file each, written beside and renamed into place: after a kill there is the old
//! version or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::{Store, StoreError, io_error};
use crate::base::time::{BootTime, Now, UtcMillis};
use crate::outbound::Validators;
use crate::rules::Until;
use crate::rules::entries::Entries;
use crate::rules::list::{Before, List};
use crate::rules::list_file::{self, ActionName, Header};
use crate::rules::seats::SEAT_OTHERS;
use gateway_common::rule::{Action, FOREVER};
use serde::{Deserialize, Serialize};

pub(super) const FOLDER: &str = "lists";
const EXTENSION: &str = "list";
const BEFORE: &str = "before";
const UNFINISHED: &str = "unfinished";
const VALIDATORS: &str = "validators";

/// What a server said about the version of a feed that was read at a certain time.
#[derive(Serialize, Deserialize)]
struct Kept {
    created: UtcMillis,
    etag: Option<String>,
    last_modified: Option<String>,
}

impl Store {
    /// Every list, with the ends of its entries by this boot's clock from now on.
    pub(super) fn lists(&self, now: Now) -> Result<Vec<List>, StoreError> {
        let mut lists = Vec::new();
        for path in self.list_paths()? {
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let (header, entries) = read(&path)?;
            let is_of_this_boot = header.boot == self.boot;
            let clocks = self.clocks(&header, now);
            let mut list = List {
                name: header.name,
                action: header.action.into(),
                kind: header.kind,
                source: header.source,
                dry_run: header.dry_run,
                reason: header.reason,
                created: header.created,
                clocks,
                entries: Arc::new(entries),
                before: self.before(&path, now)?,
                swept: BootTime(0),
                seat: SEAT_OTHERS,
            };
            let has_ends = list.next_end().0 != FOREVER;
            list.expire(now.boot);
            if list.entries.is_empty() && list.before.is_none() {
                self.remove_list(&list.name)?;
                continue;
            }
            if !is_of_this_boot && has_ends {
                self.put_list(&list)?;
            }
            lists.push(list);
        }
        Ok(lists)
    }

    /// Keeps a list, in the place of the one of the same name: on the disk when this returns, or not at all.
    pub fn put_list(&self, list: &List) -> Result<(), StoreError> {
        self.begin_list(list)?.finish()
    }

    /// Begins to write a list, and does not wait until it is on the disk.
    pub fn begin_list(&self, list: &List) -> Result<Writing, StoreError> {
        let folder = self.list_folder();
        fs::create_dir_all(&folder).map_err(|source| io_error(&folder, source))?;
        let action = match list.action {
            Action::Allow => ActionName::Allow,
            Action::Deny | Action::Limit | Action::Reset => ActionName::Deny,
        };
        let mut header = Header::new(&list.name, action, list.kind, &list.source);
        header.dry_run = list.dry_run;
        header.reason.clone_from(&list.reason);
        header.created = list.created;
        header.utc = list.clocks.utc;
        header.boot_ns = list.clocks.boot.0;
        header.boot.clone_from(&self.boot);
        let mut files = Vec::new();
        let path = self.list_path(&list.name);
        let before = path.with_extension(BEFORE);
        // The version that may come back is there before the one that it comes back from, and goes after it.
        if let Some(was) = &list.before {
            let mut header = header.clone();
            (header.deadline, header.replaced) = (was.deadline.utc, Some(was.replaced));
            (header.source, header.reason) = (was.source.clone(), was.reason.clone());
            header.created = was.created;
            files.push((before.clone(), header, Arc::clone(&was.entries)));
        }
        files.push((path, header, Arc::clone(&list.entries)));
        let paths = files.iter().map(|(path, ..)| path.clone()).collect();
        let write = move || -> Result<(), StoreError> {
            files.iter().try_for_each(|(path, header, entries)| {
                write(path, |file| list_file::write(header, entries, file))
            })
        };
        let writer = thread::Builder::new().name("list".to_owned()).spawn(write);
        let writer = writer.map_err(|source| io_error(&folder, source))?;
        Ok(Writing { writer, paths, gone: list.before.is_none().then_some(before) })
    }

    /// The version that comes back unless the one at `path` is confirmed.
    fn before(&self, path: &Path, now: Now) -> Result<Option<Before>, StoreError> {
        let path = path.with_extension(BEFORE);
        if !path.exists() {
            return Ok(None);
        }
        let (header, entries) = read(&path)?;
        let mut deadline = header.deadline;
        let replaced = header.replaced.unwrap_or(header.created);
        if header.boot != self.boot {
            // A wall clock that is wrong after a reboot gives nobody more time.
            let latest = deadline.map(|end| now.utc.after(end.since(replaced)));
            deadline = deadline.min(latest);
        }
        let deadline = Until::at(self.clocks(&header, now), deadline);
        let Header { source, reason, created, .. } = header;
        let entries = Arc::new(entries);
        Ok(Some(Before { deadline, replaced, source, reason, created, entries }))
    }

    /// A moment on both clocks: the ends are moments of the wall clock, and within one boot its own clock decides.
    fn clocks(&self, header: &Header, now: Now) -> Now {
        match header.boot == self.boot {
            true => Now { boot: BootTime(header.boot_ns), utc: header.utc },
            false => now,
        }
    }

    /// Keeps what a server said about the version of a list, so that it need not send it again.
    pub fn put_validators(&self, list: &List, validators: &Validators) -> Result<(), StoreError> {
        let Validators { etag, last_modified } = validators.clone();
        let kept = Kept { created: list.created, etag, last_modified };
        let path = self.list_path(&list.name).with_extension(VALIDATORS);
        let bytes = serde_json::to_vec(&kept).unwrap_or_default();
        write(&path, |file| file.write_all(&bytes))?;
        replace(&path)
    }

    /// What a server said about exactly this version of a list; without it the version is sent once more.
    pub fn validators(&self, list: &List) -> Validators {
        let path = self.list_path(&list.name).with_extension(VALIDATORS);
        let kept = fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let kept = kept.filter(|kept: &Kept| kept.created == list.created);
        kept.map_or_else(Validators::default, |Kept { etag, last_modified, .. }| Validators {
            etag,
            last_modified,
        })
    }

    /// Forgets a list.
    pub fn remove_list(&self, name: &str) -> Result<(), StoreError> {
        let path = self.list_path(name);
        // What is left of it means nothing to another version.
        fs::remove_file(path.with_extension(VALIDATORS)).ok();
        forget(&path)?;
        forget(&path.with_extension(BEFORE))
    }

    /// The folder of the lists and the files in it.
    pub(super) fn list_paths(&self) -> Result<Vec<PathBuf>, StoreError> {
        let folder = self.list_folder();
        let files = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            files => files.map_err(|source| io_error(&folder, source))?,
        };
        let mut paths = vec![folder.clone()];
        for file in files {
            paths.push(file.map_err(|source| io_error(&folder, source))?.path());
        }
        paths.sort();
        Ok(paths)
    }

    fn list_folder(&self) -> PathBuf {
        self.path.with_file_name(FOLDER)
    }

    fn list_path(&self, name: &str) -> PathBuf {
        self.list_folder().join(name).with_extension(EXTENSION)
    }
}

/// A list that is being written beside the version that counts.
pub struct Writing {
    writer: JoinHandle<Result<(), StoreError>>,
    /// What is written, in the order in which it is to be there.
    paths: Vec<PathBuf>,
    /// What goes after that.
    gone: Option<PathBuf>,
}

impl Writing {
    /// Puts the list in the place of that version: on the disk when this returns, or not at all.
    pub fn finish(self) -> Result<(), StoreError> {
        let written = self.writer.join();
        let panicked =
            |_| Err(io_error(Path::new(FOLDER), io::Error::other("its writer panicked")));
        written.unwrap_or_else(panicked)?;
        self.paths.iter().try_for_each(|path| replace(path))?;
        self.gone.iter().try_for_each(|path| forget(path))
    }

    /// Leaves that version as it is.
    pub fn abandon(self) {
        drop(self.writer.join());
        // What cannot be removed is written over by the next.
        self.paths.iter().for_each(|path| drop(fs::remove_file(unfinished(path))));
    }
}

fn forget(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => {
            removed.and_then(|()| sync_folder(path)).map_err(|source| io_error(path, source))
        }
    }
}

fn read(path: &Path) -> Result<(Header, Entries), StoreError> {
    let open = || {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        list_file::read(file, length)
    };
    let read = open().map_err(|source| io_error(path, source))?;
    read.map_err(|source| StoreError::List { path: path.display().to_string(), source })
}

/// Writes beside.
pub(super) fn write(
    path: &Path,
    content: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), StoreError> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(unfinished(path))
        .and_then(|mut file| {
            content(&mut file)?;
            file.sync_all()
        })
        .map_err(|source| io_error(path, source))
}

/// Takes what was written beside: there is the old content or the new.
pub(super) fn replace(path: &Path) -> Result<(), StoreError> {
    fs::rename(unfinished(path), path)
        .and_then(|()| sync_folder(path))
        .map_err(|source| io_error(path, source))
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_added_extension(UNFINISHED)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(path))?.sync_all()
}
