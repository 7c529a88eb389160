//! Storage of the fleet's records: the store. Revocations are also stored beside the keys ([`revocations`]),
//! so that an older or lost index never readmits a revoked agent.

use syncd_shared::{GenerationNumber, RootHash};

use super::roster::REVOKED;
use crate::keys::{KeysError, revocations};
use crate::store::Store;

/// A record to write or, without a value, to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordChange {
    /// Kind of the record.
    pub namespace: &'static str,
    /// Unique within its namespace.
    pub name: Vec<u8>,
    /// New value.
    pub value: Option<Vec<u8>>,
}

/// Name and value of a record.
pub type NamedRecord = (Vec<u8>, Vec<u8>);

/// Errors of reading or writing records.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error("using the records of the fleet failed")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A record does not decode.
    #[error("record {name:?} in {namespace} is damaged: restore the data directory from a copy")]
    Damaged {
        namespace: &'static str,
        /// Name, as far as it is text.
        name: String,
    },
    /// The list of revocations beside the keys failed.
    #[error("using the list of revocations failed")]
    Revocations(#[source] Box<KeysError>),
    /// The writing thread ended without a result.
    #[error("writing the records of the fleet was interrupted")]
    Interrupted,
}

impl RecordError {
    pub(super) fn damaged(namespace: &'static str, name: &[u8]) -> Self {
        Self::Damaged { namespace, name: String::from_utf8_lossy(name).into_owned() }
    }
}

/// The parts of the store that the fleet needs. All calls block.
pub trait RecordStore: Send + Sync + 'static {
    /// Names and values of a namespace. A revoked name may occur several times; all its values apply.
    fn load(&self, namespace: &'static str) -> Result<Vec<NamedRecord>, RecordError>;
    /// Makes changes durable: all or none, in order.
    fn save(&self, changes: &[RecordChange]) -> Result<(), RecordError>;
    /// The root under a number; `None` if no generation with this number is retained.
    fn root_of(&self, number: GenerationNumber) -> Result<Option<RootHash>, RecordError>;
}

impl From<KeysError> for RecordError {
    fn from(error: KeysError) -> Self {
        Self::Revocations(Box::new(error))
    }
}

impl RecordStore for Store {
    fn load(&self, namespace: &'static str) -> Result<Vec<NamedRecord>, RecordError> {
        let mut records = self.records(namespace, b"").map_err(|error| RecordError::Store(error.into()))?;
        if namespace == REVOKED {
            let beside_the_keys = revocations::read(self.data())?.into_iter();
            records.extend(beside_the_keys.map(|(name, value)| (name.into_bytes(), value.into_bytes())));
        }
        Ok(records)
    }

    fn save(&self, changes: &[RecordChange]) -> Result<(), RecordError> {
        let apply = |records: &mut crate::store::Records<'_>| {
            for change in changes {
                match &change.value {
                    Some(value) => records.put(change.namespace, &change.name, value)?,
                    None => drop(records.remove(change.namespace, &change.name)?),
                }
            }
            Ok(())
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let revoked = changes.iter().filter(|change| change.namespace == REVOKED);
        let revoked: Vec<_> =
            revoked.filter_map(|c| Some((text(&c.name)?, text(c.value.as_deref()?)?))).collect();
        if !revoked.is_empty() {
            revocations::add(self.data(), revoked)?;
        }
        self.update_records(apply).map_err(|error| RecordError::Store(error.into()))
    }

    fn root_of(&self, number: GenerationNumber) -> Result<Option<RootHash>, RecordError> {
        let stored = self.generation(number).map_err(|error| RecordError::Store(error.into()))?;
        Ok(stored.map(|stored| stored.generation.root_hash()))
    }
}
