//! Where the fleet's small records lie: the store. Revocations also lie beside the keys ([`revocations`]), so that no older
//! or lost index lets anybody in again.

use super::roster::REVOKED;
use crate::keys::{KeysError, revocations};
use crate::store::Store;

/// One record written or, without a value, removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordChange {
    /// A constant that sets records of one kind apart.
    pub namespace: &'static str,
    /// Unique within its namespace.
    pub name: Vec<u8>,
    /// What it holds from now on.
    pub value: Option<Vec<u8>>,
}

/// A record's name and value.
pub type NamedRecord = (Vec<u8>, Vec<u8>);

/// Why records were not read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The store failed.
    #[error("using the records of the fleet failed")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A record is not what was written.
    #[error("record {name:?} in {namespace} is damaged: restore the data directory from a copy")]
    Damaged {
        /// Its namespace.
        namespace: &'static str,
        /// Its name, as far as it is text.
        name: String,
    },
    /// The list of revocations beside the keys.
    #[error("using the list of revocations failed")]
    Revocations(#[source] Box<KeysError>),
    /// The thread that wrote them ended without a result.
    #[error("writing the records of the fleet was interrupted")]
    Interrupted,
}

impl RecordError {
    pub(super) fn damaged(namespace: &'static str, name: &[u8]) -> Self {
        Self::Damaged { namespace, name: String::from_utf8_lossy(name).into_owned() }
    }
}

/// The store, as far as the fleet needs it. All calls block.
pub trait RecordStore: Send + Sync + 'static {
    /// Names and values of a namespace. A name may come more than once, if it was revoked: all of it holds.
    fn load(&self, namespace: &'static str) -> Result<Vec<NamedRecord>, RecordError>;
    /// Makes changes durable, all or none, in order.
    fn save(&self, changes: &[RecordChange]) -> Result<(), RecordError>;
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
}
