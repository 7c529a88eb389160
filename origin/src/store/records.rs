//! Small persistent records: agents, tokens, and state of services.

use redb::{ReadableTable, Table, WriteTransaction};

use super::Store;
use super::error::{StoreError, index};
use super::index::{RECORDS, with_checksum, without_checksum};

/// Name and value of a record.
pub type NamedRecord = (Vec<u8>, Vec<u8>);

/// The records in one transaction. Names are unique within a namespace and sorted bytewise.
pub struct Records<'a> {
    table: Table<'a, (&'static str, &'static [u8]), &'static [u8]>,
}

impl<'a> Records<'a> {
    pub(super) fn open(transaction: &'a WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self { table: transaction.open_table(RECORDS).map_err(index)? })
    }
}

impl Records<'_> {
    pub fn get(&self, namespace: &str, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        get(&self.table, namespace, name)
    }

    /// Adds a record, or replaces the one with the same name.
    pub fn put(&mut self, namespace: &str, name: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let stored = with_checksum("records", &key(namespace, name), value);
        self.table.insert((namespace, name), stored.as_slice()).map_err(index)?;
        Ok(())
    }

    /// Removes a record. Returns whether it existed.
    pub fn remove(&mut self, namespace: &str, name: &[u8]) -> Result<bool, StoreError> {
        Ok(self.table.remove((namespace, name)).map_err(index)?.is_some())
    }

    /// All records whose name begins with `prefix`.
    pub fn list(&self, namespace: &str, prefix: &[u8]) -> Result<Vec<NamedRecord>, StoreError> {
        list(&self.table, namespace, prefix)
    }
}

fn key(namespace: &str, name: &[u8]) -> Vec<u8> {
    [namespace.as_bytes(), b"\0", name].concat()
}

fn get(
    table: &impl ReadableTable<(&'static str, &'static [u8]), &'static [u8]>,
    namespace: &str,
    name: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    let found = table.get((namespace, name)).map_err(index)?;
    found
        .map(|v| without_checksum("records", &key(namespace, name), v.value()).map(<[u8]>::to_vec))
        .transpose()
}

fn list(
    table: &impl ReadableTable<(&'static str, &'static [u8]), &'static [u8]>,
    namespace: &str,
    prefix: &[u8],
) -> Result<Vec<NamedRecord>, StoreError> {
    let mut out = Vec::new();
    for row in table.range((namespace, prefix)..).map_err(index)? {
        let (found, value) = row.map_err(index)?;
        let (found_namespace, name) = found.value();
        if found_namespace != namespace || !name.starts_with(prefix) {
            break;
        }
        let value = without_checksum("records", &key(namespace, name), value.value())?;
        out.push((name.to_vec(), value.to_vec()));
    }
    Ok(out)
}

impl Store {
    /// Reads and changes records in one transaction, which is rolled back if `change` fails. Durable on `Ok`;
    /// costs a sync of the index. Other writers wait meanwhile, so `change` must be short.
    pub fn update_records<T>(
        &self,
        change: impl FnOnce(&mut Records<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.index.write(|t| change(&mut Records::open(t)?))
    }

    /// Like [`Self::update_records`], for records that may be lost: durable only with the next durable
    /// change, and without a sync.
    pub fn note_records<T>(
        &self,
        change: impl FnOnce(&mut Records<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.index.write_later(|t| change(&mut Records::open(t)?))
    }

    pub fn record(&self, namespace: &str, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.index.read(|t| get(&t.open_table(RECORDS).map_err(index)?, namespace, name))
    }

    /// All records of a namespace whose name begins with `prefix`, sorted by name.
    pub fn records(&self, namespace: &str, prefix: &[u8]) -> Result<Vec<NamedRecord>, StoreError> {
        self.index.read(|t| list(&t.open_table(RECORDS).map_err(index)?, namespace, prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    #[test]
    fn records_survive_reopening_and_stay_in_their_namespace() {
        let mut fixture = Fixture::new();
        fixture
            .store()
            .update_records(|r| {
                r.put("agents", b"web1", b"one")?;
                r.put("agents", b"web2", b"two")?;
                r.put("agentsx", b"web3", b"three")?;
                r.put("tokens", b"web1", b"token")
            })
            .unwrap();
        fixture.reopen();
        let store = fixture.store();
        assert_eq!(store.record("agents", b"web1").unwrap().unwrap(), b"one");
        assert_eq!(store.record("agents", b"web3").unwrap(), None);
        assert_eq!(store.records("agents", b"").unwrap().len(), 2);
        assert_eq!(store.records("agents", b"web2").unwrap(), vec![(b"web2".to_vec(), b"two".to_vec())]);
        assert!(store.update_records(|r| r.remove("agents", b"web1")).unwrap());
        assert_eq!(store.records("agents", b"").unwrap().len(), 1);
    }

    #[test]
    fn an_error_inside_changes_nothing() {
        let fixture = Fixture::new();
        let failed = fixture.store().update_records(|r| -> Result<(), StoreError> {
            r.put("agents", b"web1", b"one")?;
            Err(StoreError::Poisoned)
        });
        assert!(failed.is_err());
        assert_eq!(fixture.store().record("agents", b"web1").unwrap(), None);
    }
}
