//! The record of what caches were last purged for.

use serde::{Deserialize, Serialize};

use super::machine::Known;
use crate::store::{Store, StoreError};

const NAMESPACE: &str = "purge";
const STATE: &[u8] = b"state";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    known: Known,
}

/// One that is missing, damaged or of another version counts as none, so that everything is purged.
pub(super) fn load(store: &Store) -> Result<Known, StoreError> {
    let record = store.record(NAMESPACE, STATE)?;
    let record = record.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
    Ok(record.filter(|record| record.version == VERSION).map(|record| record.known).unwrap_or_default())
}

/// Durable on return.
pub(super) fn save(store: &Store, known: Known) -> Result<(), StoreError> {
    let record = Record { version: VERSION, known };
    let bytes = serde_json::to_vec(&record).expect("a record is a plain structure");
    store.update_records(|records| records.put(NAMESPACE, STATE, &bytes))
}

#[cfg(test)]
mod tests {
    use syncd_shared::RootHash;

    use super::*;
    use crate::purge::machine::Target;
    use crate::store::fixture::Fixture;

    #[test]
    fn it_survives_a_restart_and_another_version_does_not_count() {
        let mut fixture = Fixture::new();
        assert_eq!(load(fixture.store()).unwrap(), Known::default());
        let root = |n| RootHash::from_bytes([n; 32]);
        let known =
            Known { done: Some(Target { number: 7, root: root(7) }), others: [root(1), root(2)].into() };
        save(fixture.store(), known.clone()).unwrap();
        fixture.reopen();
        assert_eq!(load(fixture.store()).unwrap(), known);
        let newer = br#"{"version": 2, "known": {"done": null, "others": []}}"#;
        fixture.store().update_records(|records| records.put(NAMESPACE, STATE, newer)).unwrap();
        assert_eq!(load(fixture.store()).unwrap(), Known::default());
    }
}
