//! Notes in the record: JSON values with a name each, replaced as a whole.

use redb::{ReadableDatabase, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Record, RecordError, commit};

pub(super) const NOTES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("notes");

impl Record {
    /// Local changes found by the last inspection.
    pub fn drift<T: DeserializeOwned>(&self) -> Result<Option<T>, RecordError> {
        // A note that cannot be read was written by another version, and is ignored: the log has its content.
        self.note("drift")
    }

    /// Stores the local changes found, durably.
    pub fn set_drift<T: Serialize>(&self, drift: Option<&T>) -> Result<(), RecordError> {
        self.set_note("drift", drift, true)
    }

    /// Progress of the background verification.
    pub fn verification<T: DeserializeOwned>(&self) -> Result<Option<T>, RecordError> {
        self.note("verification")
    }

    /// Stores the progress of the background verification. Unless `durable`, it becomes durable with the next
    /// durable commit.
    pub fn set_verification<T: Serialize>(&self, pass: &T, durable: bool) -> Result<(), RecordError> {
        self.set_note("verification", Some(pass), durable)
    }

    /// Owner of all files in the last run of the agent; `None`: the owner in the manifest.
    pub fn owner(&self) -> Result<Option<(u32, u32)>, RecordError> {
        self.note("owner")
    }

    /// Stores the owner of all files, durably.
    pub fn set_owner(&self, owner: Option<(u32, u32)>) -> Result<(), RecordError> {
        self.set_note("owner", owner.as_ref(), true)
    }

    fn note<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, RecordError> {
        let doing = RecordError::database::<redb::Error>("read a note");
        let read = self.database.begin_read().map_err(|e| doing(e.into()))?;
        let notes = read.open_table(NOTES).map_err(|e| doing(e.into()))?;
        let json = notes.get(key).map_err(|e| doing(e.into()))?;
        Ok(json.and_then(|json| serde_json::from_slice(json.value()).ok()))
    }

    fn set_note<T: Serialize>(&self, key: &str, note: Option<&T>, durable: bool) -> Result<(), RecordError> {
        let doing = RecordError::database::<redb::Error>("keep a note");
        let write = self.begin(durable)?;
        {
            let mut table = write.open_table(NOTES).map_err(|e| doing(e.into()))?;
            // Notes consist of numbers and text, which JSON can always represent.
            match note.and_then(|note| serde_json::to_vec(note).ok()) {
                Some(json) => drop(table.insert(key, json.as_slice()).map_err(|e| doing(e.into()))?),
                None => drop(table.remove(key).map_err(|e| doing(e.into()))?),
            }
        }
        commit(write)
    }
}
