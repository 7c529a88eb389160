//! The rows of [`Decisions`]: JSON, one row each. A missing row is a default.

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::RecordError;
use crate::state::decisions::Decisions;

pub(super) const DECISIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("decisions");

pub(super) fn read(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Decisions, RecordError> {
    Ok(Decisions {
        good: row(table, "good")?,
        trial: row(table, "trial")?,
        refused: row(table, "refused")?.unwrap_or_default(),
        node: row(table, "node")?.unwrap_or_default(),
        ordered: row(table, "ordered")?.unwrap_or_default(),
    })
}

fn row<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &'static str,
) -> Result<Option<T>, RecordError> {
    let failed = RecordError::database::<redb::StorageError>("read a decision");
    let Some(json) = table.get(key).map_err(failed)? else { return Ok(None) };
    serde_json::from_slice(json.value()).map_err(|source| RecordError::Decision { key, source })
}

pub(super) fn put(write: &WriteTransaction, decisions: &Decisions) -> Result<(), redb::Error> {
    let Decisions { good, trial, refused, node, ordered } = decisions;
    let mut table = write.open_table(DECISIONS)?;
    let rows = [
        ("good", json(good)),
        ("trial", json(trial)),
        ("refused", json(refused)),
        ("node", json(node)),
        ("ordered", json(ordered)),
    ];
    for (key, json) in rows {
        table.insert(key, json.as_slice())?;
    }
    Ok(())
}

/// Decisions consist of numbers and text, which JSON can always represent.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec())
}
