//! DATA/keys/revoked: every revocation, beside the keys and not in the index alone.
//!
//! Whoever restores the keys without the index, or with an older one, must not let revoked nodes in again. One line a
//! name: the name, a space, the fleet's record in JSON. Written before the index is, read with it; what either of them
//! has is in force.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use syncd_shared::identity::files;

use super::{KEYS, KeysError, REVOKED};

fn path(data: &Path) -> PathBuf {
    data.join(KEYS).join(REVOKED)
}

/// Names and records.
pub(crate) fn read(data: &Path) -> Result<BTreeMap<String, String>, KeysError> {
    let path = path(data);
    let text = files::read(&path)?;
    let line = |line: &str| line.split_once(' ').map(|(name, record)| (name.to_owned(), record.to_owned()));
    text.lines().map(line).collect::<Option<_>>().ok_or(KeysError::Damaged { path })
}

/// Puts records in the place of those that their names have. Durable when it returns; a crash leaves the old file or the
/// new one.
pub(crate) fn add(data: &Path, records: impl IntoIterator<Item = (String, String)>) -> Result<(), KeysError> {
    let mut all = read(data)?;
    all.extend(records);
    let text: String = all.iter().map(|(name, record)| format!("{name} {record}\n")).collect();
    Ok(files::write(&path(data), &text)?)
}
