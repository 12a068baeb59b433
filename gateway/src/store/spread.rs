//! What gateways told each other about sources, as one of them knows it, and how far it has read. It knows texts by
//! key, and nothing of what they mean.
//!
//! A file of its own, which two gateways may have open at a time, as while one takes the place of the other.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use redb::{ConcurrencyMode, Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::{StoreError, database_error, io_error};

/// The folder of a gateway has this file beside the one of its rules.
pub(super) const FILE: &str = "spread.redb";

const MESSAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("messages");
/// One entry, without a name.
const POSITION: TableDefinition<'_, (), &[u8]> = TableDefinition::new("position");

/// The messages in one directory.
#[derive(Debug)]
pub struct Messages {
    database: Database,
    path: PathBuf,
}

/// What was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// By key.
    pub messages: Vec<(String, Vec<u8>)>,
    /// How far it had been read.
    pub position: Option<Vec<u8>>,
}

impl Messages {
    /// Opens those in a directory that is there, or begins with none.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(FILE);
        let mut builder = Database::builder();
        builder.set_concurrency_mode(ConcurrencyMode::MultiWriter);
        let database = builder.create(&path).map_err(|error| database_error(&path, error))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(|source| io_error(&path, source))?;
        Ok(Self { database, path })
    }

    /// All that was kept.
    pub fn load(&self) -> Result<Kept, StoreError> {
        let mut kept = Kept::default();
        let transaction = self.database.begin_read().map_err(|error| self.failed(error))?;
        // Before the first write there is no table.
        if let Ok(table) = transaction.open_table(MESSAGES) {
            for entry in table.iter().map_err(|error| self.failed(error))? {
                let (key, value) = entry.map_err(|error| self.failed(error))?;
                kept.messages.push((key.value().to_owned(), value.value().to_vec()));
            }
        }
        if let Ok(table) = transaction.open_table(POSITION) {
            let position = table.get(()).map_err(|error| self.failed(error))?;
            kept.position = position.map(|position| position.value().to_vec());
        }
        Ok(kept)
    }

    /// Keeps messages, or forgets them (`None`), and how far it has been read: in one transaction, on the disk when
    /// this returns.
    pub fn write(
        &self,
        messages: &[(String, Option<Vec<u8>>)],
        position: &[u8],
    ) -> Result<(), StoreError> {
        let mut transaction = self.database.begin_write().map_err(|error| self.failed(error))?;
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(MESSAGES).map_err(|error| self.failed(error))?;
            for (key, message) in messages {
                match message {
                    Some(message) => table.insert(key.as_str(), message.as_slice()),
                    None => table.remove(key.as_str()),
                }
                .map_err(|error| self.failed(error))?;
            }
            let mut table = transaction.open_table(POSITION).map_err(|error| self.failed(error))?;
            table.insert((), position).map_err(|error| self.failed(error))?;
        }
        transaction.commit().map_err(|error| self.failed(error))
    }

    fn failed(&self, error: impl Into<redb::Error>) -> StoreError {
        database_error(&self.path, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_after_it_was_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let messages = Messages::open(folder.path()).unwrap();
        assert_eq!(messages.load().unwrap(), Kept::default());
        let both = [("a".to_owned(), Some(b"1".to_vec())), ("b".to_owned(), Some(b"2".to_vec()))];
        messages.write(&both, b"here").unwrap();
        messages.write(&[("a".to_owned(), None)], b"there").unwrap();
        drop(messages);
        let kept = Messages::open(folder.path()).unwrap().load().unwrap();
        let expected = vec![("b".to_owned(), b"2".to_vec())];
        assert_eq!(kept, Kept { messages: expected, position: Some(b"there".to_vec()) });
    }
}
