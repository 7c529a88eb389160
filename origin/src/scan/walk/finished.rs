//! The end of a directory: its object is made, and what is no longer in the tree is forgotten.

use std::collections::BTreeSet;

use syncd_shared::diff::DirectorySource as _;
use syncd_shared::directory::{Edits, Pair, edit};
use syncd_shared::{Component, Directory, Entry, Kind, ObjectHash, RootEntry, Totals, TreePath};

use super::{Walk, failed};
use crate::scan::content::ContentReader;
use crate::scan::error::ScanError;
use crate::scan::pending::{
    FoundEntries, NewRecord, Pending, Previous, pairs, really_differs, same_but_time,
};
use crate::scan::task::join;
use crate::scan::{content_paths, stat_rows};
use crate::tree_objects::TreeObjects;

/// The object of a directory, and the names that differ from the base.
struct Finished {
    object: ObjectHash,
    totals: Totals,
    changes: Vec<Pair>,
}

impl<'env, F> Walk<'_, 'env, F>
where
    F: Fn() -> ContentReader<'env> + Clone + Send,
{
    /// Builds the directory's object and adds it to the parent, whose ID is returned.
    pub(super) fn finish(&mut self, pending: Pending) -> Result<Option<u64>, ScanError> {
        let Pending { path, parent, own, previous, entries, mut real, record, .. } = pending;
        let names: BTreeSet<Component> = match &entries {
            FoundEntries::All(_) => BTreeSet::new(),
            FoundEntries::Planned(edits) => edits.keys().cloned().collect(),
        };
        let Finished { object, totals, changes } = self.object(&path, previous.as_ref(), entries)?;
        real |= previous.is_none() || changes.iter().any(really_differs);
        for pair in &changes {
            content_paths::tell(self.pass.writer, &path, pair)?;
            self.forget_lost(&path, pair)?;
        }
        self.walked.records_changed |= match record {
            NewRecord::Unchanged => false,
            NewRecord::All(mut record, before) => {
                record.files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                stat_rows::put_whole(self.pass.writer, &path, &record, &before)?
            }
            NewRecord::Planned(mut record) => {
                record.files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                stat_rows::put_names(self.pass.writer, &path, &record, &names)?
            }
        };
        let metadata = own.metadata();
        if let Some(before) = previous.map(|previous| previous.metadata) {
            if before != metadata && same_but_time(&before, &metadata) {
                self.walked.times_only.insert(path);
            }
            if parent.is_none() {
                real |= !same_but_time(&before, &metadata);
            }
        }
        let Some((parent, name)) = parent else {
            self.walked.root = Some(RootEntry { object, metadata, totals });
            self.walked.real = real;
            return Ok(None);
        };
        if let Some(above) = self.pending.get_mut(&parent) {
            above.entries.add(Entry { name, metadata, kind: Kind::Directory { object, totals } });
            above.real |= real;
        }
        Ok(Some(parent))
    }

    /// Makes the object of a directory.
    fn object(
        &self,
        path: &TreePath,
        previous: Option<&Previous>,
        entries: FoundEntries,
    ) -> Result<Finished, ScanError> {
        let too_much = || ScanError::Totals { directory: path.clone() };
        let (entries, previous) = match (entries, previous) {
            (FoundEntries::Planned(edits), Some(previous)) => return self.edited(path, previous, edits),
            (FoundEntries::Planned(edits), None) => (edits.into_values().flatten().collect(), None),
            (FoundEntries::All(entries), previous) => (entries, previous),
        };
        let directory = Directory::new(entries)
            .map_err(|source| ScanError::Duplicate { directory: path.clone(), source })?;
        let totals = directory.totals().ok_or_else(too_much)?;
        let changes = pairs(previous.map_or(&[], Previous::entries), directory.entries());
        let object = match previous {
            Some(previous) if changes.is_empty() => previous.object,
            _ => self.pass.writer.put_directory(&directory)?,
        };
        Ok(Finished { object, totals, changes })
    }

    /// The object of a directory in which only these names may have changed.
    fn edited(&self, path: &TreePath, previous: &Previous, mut edits: Edits) -> Result<Finished, ScanError> {
        edits.retain(|name, entry| previous.get(name) != entry.as_ref());
        let pair = |(name, entry): (&Component, &Option<Entry>)| (previous.get(name).cloned(), entry.clone());
        let changes: Vec<Pair> = edits.iter().map(pair).collect();
        if changes.is_empty() {
            return Ok(Finished { object: previous.object, totals: previous.totals, changes });
        }
        let objects = TreeObjects::Writer(self.pass.writer);
        let built = edit(&objects, Some(previous.object), &edits).map_err(failed(path))?;
        let object = self.pass.writer.put_pages(&built)?;
        // The pages do not decode if their sums are too large.
        let page = objects.page(&object).map_err(|_| ScanError::Totals { directory: path.clone() })?;
        Ok(Finished { object, totals: page.totals(), changes })
    }

    /// Removes records and watches of a directory that is no longer in the tree.
    fn forget_lost(&self, path: &TreePath, (before, after): &Pair) -> Result<(), ScanError> {
        if let Some(entry) = before.as_ref().filter(|before| before.is_directory())
            && !after.as_ref().is_some_and(Entry::is_directory)
        {
            let lost = join(path, &entry.name)?;
            self.pass.writer.remove_stat_subtree(lost.as_bytes())?;
            self.pass.links.forget_subtree(&lost);
            if let Some(watch) = self.pass.watch {
                watch.forget_subtree(&lost);
            }
        }
        Ok(())
    }
}
