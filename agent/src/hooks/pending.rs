//! The record of a hook that is due: `on-activate.pending` or `after-activate.pending`, and the lists of
//! paths beside the former.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use syncd_shared::HookStatus;
use syncd_shared::text::error_chain;

use super::success::{self, remove};
use super::{HookName, Occasion};

/// Path of a hook's record in `state` (`ROOT/state`).
pub(super) fn record(state: &Path, hook: HookName) -> PathBuf {
    state.join(format!("{hook}.pending"))
}

/// Prefix of the files with paths that a slot's caches have to forget. The generation's number follows.
pub(super) const SLOT_PATHS: &str = "on-activate.slot-paths.";

/// A hook that is due.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) pending: Pending,
    /// Positioned at the first line.
    pub(super) lines: BufReader<File>,
    /// Device and inode of the record.
    pub(super) id: (u64, u64),
}

/// First line of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    #[serde(flatten)]
    pub occasion: Occasion,
    /// Generation for which the hook last succeeded; `None`: none is known.
    pub succeeded: Option<u64>,
}

/// Parses the first line of a record. The lines after it are paths.
pub(crate) fn decode_pending(line: &[u8]) -> serde_json::Result<Pending> {
    serde_json::from_slice(line)
}

pub(crate) fn encode_pending(pending: &Pending) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(pending)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Lowest generation that a web server may still serve, as recorded in `state` (`ROOT/state`); `None`: no
/// hook is due. An unreadable record protects everything.
pub(crate) fn protected(state: &Path) -> Option<u64> {
    match load(&record(state, HookName::OnActivate)) {
        Ok(due) => due.map(|due| due.pending.succeeded.unwrap_or(0)),
        Err(error) => {
            tracing::warn!(error = error_chain(&error), "the record of the on-activate hook can't be read");
            Some(0)
        }
    }
}

/// Status of the hook that an earlier process left due in `state` (`ROOT/state`), for the live generation.
pub(crate) fn left_due(state: &Path, live: Option<u64>) -> Option<HookStatus> {
    let succeeded = match protected(state) {
        None if success::is_doubted(state) => live,
        protected => Some(protected?).filter(|succeeded| *succeeded > 0),
    };
    Some(HookStatus::due(live?, succeeded))
}

/// Drops what is due in `state` (`ROOT/state`), because the agent runs without the hook.
pub(crate) fn forget(state: &Path, hook: HookName) -> io::Result<()> {
    let record = record(state, hook);
    if record.try_exists()? {
        tracing::info!("no --{hook}: the hook that was due is dropped");
    }
    remove(&record)?;
    remove(&record.with_extension("earlier"))?;
    if hook == HookName::OnActivate {
        success::forget(state)?;
        remove_slot_paths(state, None)?;
    }
    Ok(())
}

/// Removes the lists of paths for which no hook is due: all except the list of generation `but`.
pub(super) fn remove_slot_paths(state: &Path, but: Option<u64>) -> io::Result<()> {
    for item in fs::read_dir(state)? {
        let name = item?.file_name();
        let of = name.to_str().and_then(|name| name.strip_prefix(SLOT_PATHS)).map(str::parse::<u64>);
        if of.is_some_and(|of| of.ok() != but) {
            remove(&state.join(name))?;
        }
    }
    Ok(())
}

pub(super) fn load(record: &Path) -> io::Result<Option<Due>> {
    let file = match File::open(record) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let stat = file.metadata()?;
    let mut lines = BufReader::new(file);
    let mut first = Vec::new();
    lines.read_until(b'\n', &mut first)?;
    let pending = decode_pending(&first)?;
    // The hook starts reading here, whatever was buffered.
    lines.seek(SeekFrom::Start(first.len() as u64))?;
    Ok(Some(Due { pending, lines, id: (stat.dev(), stat.ino()) }))
}
