//! DATA/keys/revoked: every revocation, stored beside the keys and not only in the index.
//!
//! Restoring the keys without the index, or with an older one, must not readmit revoked nodes. Each line has
//! a name, a space, and the fleet's record in JSON. The file is written before the index and read together
//! with it; revocations in either of them are in force.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use syncd_runtime::key_file;

use super::{KEYS, KeysError, REVOKED};

fn path(data: &Path) -> PathBuf {
    data.join(KEYS).join(REVOKED)
}

/// Returns names and records.
pub(crate) fn read(data: &Path) -> Result<BTreeMap<String, String>, KeysError> {
    let path = path(data);
    let text = key_file::read(&path)?;
    let line = |line: &str| line.split_once(' ').map(|(name, record)| (name.to_owned(), record.to_owned()));
    text.lines().map(line).collect::<Option<_>>().ok_or(KeysError::Damaged { path })
}

/// Adds records, replacing those with the same names. Durable on return; a crash leaves the old file or the
/// new one.
pub(crate) fn add(data: &Path, records: impl IntoIterator<Item = (String, String)>) -> Result<(), KeysError> {
    let mut all = read(data)?;
    all.extend(records);
    let text: String = all.iter().map(|(name, record)| format!("{name} {record}\n")).collect();
    Ok(key_file::write(&path(data), &text)?)
}
