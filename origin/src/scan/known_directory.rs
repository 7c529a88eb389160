//! Knowledge about a directory before it is listed, and whether that is enough to avoid listing it.
//!
//! A directory need not be listed if the base and its stat record have it, the ignore rules are unchanged,
//! and its own times match the record or changed together with one of the hinted names. Otherwise its state
//! is doubtful. A file with several names is also doubtful: a write through one of them causes a hint for
//! that name only.

use syncd_shared::{Component, Entry, TreePath, marks};

use super::file_stat::FileStat;
use super::listing::{Listed, LookedUp};
use super::pending::Previous;
use super::scope::Plan;
use super::stat_record::{Own, StatRecord};

/// A directory before it is listed. See the module documentation.
pub(super) struct KnownDirectory {
    pub path: TreePath,
    /// `None` for the root.
    pub parent: Option<(u64, Component)>,
    pub own: FileStat,
    pub previous: Option<Previous>,
    /// All of it, or only its files of the planned names.
    pub record: Option<StatRecord>,
    /// The directory's former path and record, if it was renamed.
    pub moved: Option<(TreePath, StatRecord)>,
}

impl KnownDirectory {
    /// Whether this is the directory of base and record, so that looking up the planned names may suffice.
    pub(super) fn is_known(&self, plan: &Plan) -> bool {
        let (Some(previous), Some(record)) = (&self.previous, &self.record) else { return false };
        let is_directory = |name| previous.get(name).is_some_and(Entry::is_directory);
        record.own.is_same(&Own::of(&self.own))
            // Only a listing shows whether the directory became a directory of syncd.
            && !plan.names.iter().any(|name| marks::is_mark_name(name.as_bytes()))
            && plan.below.keys().all(|name| plan.names.contains(name) || is_directory(name))
    }

    /// Whether the ignore rules of the record still hold.
    pub(super) fn has_rules(&self, ignore_file: Option<FileStat>) -> bool {
        self.record.as_ref().is_some_and(|r| r.ignore_file == ignore_file.map(|stat| stat.fingerprint))
    }

    /// Whether these names account for all visible changes in the directory.
    pub(super) fn is_told_by(&self, names: &[LookedUp]) -> bool {
        let is_linked = |listed: &Listed| !listed.stat.is_directory() && listed.stat.links > 1;
        if names.iter().filter_map(|(_, listed)| listed.as_ref()).any(is_linked) {
            return false;
        }
        let own = Own::of(&self.own);
        self.record.as_ref().is_some_and(|record| record.own == own)
            || names.iter().any(|(name, listed)| self.is_other(name, listed.as_ref()))
    }

    /// Whether a name was added, removed, or now belongs to another file.
    fn is_other(&self, name: &Component, now: Option<&Listed>) -> bool {
        let before = self.previous.as_ref().and_then(|previous| previous.get(name));
        let (Some(before), Some(now)) = (before, now) else { return before.is_some() != now.is_some() };
        if before.is_directory() || now.stat.is_directory() {
            return before.is_directory() != now.stat.is_directory();
        }
        let inode =
            self.record.as_ref().and_then(|record| record.file(name)).map(|file| file.fingerprint.inode);
        inode != Some(now.stat.fingerprint.inode)
    }
}
