//! Lists in the state directory, one file each, written beside and renamed into place: after a kill there is the old
//! version or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Store, StoreError, io_error};
use crate::base::time::{BootTime, Now, UtcMillis};
use crate::outbound::Validators;
use crate::rules::list::List;
use crate::rules::list_file::{ActionName, Header, decode, encode};
use gateway_common::rule::{Action, FOREVER};
use serde::{Deserialize, Serialize};

const FOLDER: &str = "lists";
const EXTENSION: &str = "list";
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
            let bytes = fs::read(&path).map_err(|source| io_error(&path, source))?;
            let malformed = |source| StoreError::List { path: path.display().to_string(), source };
            let (header, entries) = decode(&bytes).map_err(malformed)?;
            let is_of_this_boot = header.boot == self.boot;
            let clocks = match is_of_this_boot {
                true => Now { boot: BootTime(header.boot_ns), utc: header.utc },
                // The ends are moments of the wall clock; from now on this boot's clock decides.
                false => now,
            };
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
                before: None,
                swept: BootTime(0),
            };
            let has_ends = list.next_end().0 != FOREVER;
            list.expire(now.boot);
            if !is_of_this_boot && has_ends {
                self.put_list(&list)?;
            }
            lists.push(list);
        }
        Ok(lists)
    }

    /// Keeps a list, in the place of the one of the same name: on the disk when this returns, or not at all.
    pub fn put_list(&self, list: &List) -> Result<(), StoreError> {
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
        let path = self.list_path(&list.name);
        let unfinished = path.with_extension(UNFINISHED);
        write(&unfinished, &encode(&header, &list.entries))
            .and_then(|()| fs::rename(&unfinished, &path))
            .and_then(|()| File::open(&folder)?.sync_all())
            .map_err(|source| io_error(&path, source))
    }

    /// Keeps what a server said about the version of a list, so that it need not send it again.
    pub fn put_validators(&self, list: &List, validators: &Validators) -> Result<(), StoreError> {
        let Validators { etag, last_modified } = validators.clone();
        let kept = Kept { created: list.created, etag, last_modified };
        let path = self.list_path(&list.name).with_extension(VALIDATORS);
        let bytes = serde_json::to_vec(&kept).unwrap_or_default();
        write(&path, &bytes).map_err(|source| io_error(&path, source))
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
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed
                .and_then(|()| File::open(self.list_folder())?.sync_all())
                .map_err(|source| io_error(&path, source)),
        }
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

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
