//! `--mtime distinct`: gives a file with changed content a second that no earlier generation of its path had.
//!
//! The rule ([`time_of`]) increases the whole second of a path with each change of its content. It is applied
//! to the scanned tree right before sealing, and the result also becomes the base of the next scan. The stat
//! records keep the times of the content tree, which reveal its changes, and a later scan keeps the base's
//! time for unchanged content. A file therefore keeps its second until its content changes again.

use syncd_shared::diff::DirectorySource as _;
use syncd_shared::directory::{Edits, Pairs, edit};
use syncd_shared::{ContentHash, Entry, Kind, ObjectHash, RootEntry, SignedGeneration, Timestamp, TreePath};

use super::changed_times::SomeFiles;
use super::file_changes::object;
use super::outcome::CommitError;
use super::taken_seconds::{Taken, TakenChanges, TakenSeconds};
use crate::scan::{MtimePolicy, ScanError};
use crate::store::{Store, StoreError, Writer};
use crate::tree_objects::TreeObjects;

/// The time to publish for a file. `tree` is its time in the content tree, `published` its content and time
/// in the current generation, and `taken` the highest second of earlier generations.
fn time_of(
    content: &ContentHash,
    tree: Timestamp,
    published: Option<(&ContentHash, Timestamp)>,
    taken: Option<Taken>,
) -> Timestamp {
    if let Some((_, time)) = published.filter(|(before, _)| *before == content) {
        return time;
    }
    let published = published.map(|(_, time)| time.seconds);
    let Some(highest) = published.max(taken.map(|taken| taken.second)) else { return tree };
    let is_its_own = published < Some(highest) && taken.is_some_and(|taken| taken.is_of(content));
    let next = if is_its_own { Some(highest) } else { highest.checked_add(1) };
    match next {
        Some(next) if tree.seconds < next => Timestamp { seconds: next, nanoseconds: 0 },
        // No later second exists.
        _ => tree,
    }
}

/// State of `--mtime distinct`: the seconds that must not be given again.
#[derive(Debug)]
pub(super) struct DistinctTimes {
    taken: TakenSeconds,
}

impl DistinctTimes {
    /// `None` under another policy.
    pub(super) fn load(store: &Store, policy: MtimePolicy) -> Result<Option<Self>, StoreError> {
        let is_on = policy == MtimePolicy::Distinct;
        is_on.then(|| Ok(Self { taken: TakenSeconds::load(store)? })).transpose()
    }

    /// Returns the tree to publish after `current`, and the files whose second differs from that in the
    /// content tree. Writes the directories that change. Reads the directories that differ.
    pub(super) fn give(
        &self,
        writer: &Writer,
        current: &RootEntry,
        tree: RootEntry,
    ) -> Result<(RootEntry, SomeFiles), CommitError> {
        let mut giving = Giving { writer, taken: &self.taken, given: SomeFiles::default() };
        let object = giving.directory(&TreePath::root(), Some(current.object), tree.object)?;
        Ok((RootEntry { object, ..tree }, giving.given))
    }

    /// Changes of the table for a generation `to` after `current`. To be written by the transaction that
    /// seals, and then passed to [`DistinctTimes::sealed`].
    pub(super) fn changes(
        &self,
        writer: &Writer,
        current: Option<&SignedGeneration>,
        to: &RootEntry,
    ) -> TakenChanges {
        let Some(current) = current else { return TakenChanges::default() };
        let from = (current.number(), &current.generation().root);
        self.taken.changes(TreeObjects::Writer(writer), from, to).unwrap_or_else(|error| {
            // A damaged store does not prevent sealing.
            tracing::warn!("compare with generation {}: {}", from.0, crate::error_chain(&error));
            TakenChanges::default()
        })
    }

    /// Applies changes that have become durable.
    pub(super) fn sealed(&mut self, changes: TakenChanges) {
        self.taken.apply(changes);
    }
}

struct Giving<'a> {
    writer: &'a Writer,
    taken: &'a TakenSeconds,
    given: SomeFiles,
}

impl Giving<'_> {
    fn directory(
        &mut self,
        path: &TreePath,
        published: Option<ObjectHash>,
        tree: ObjectHash,
    ) -> Result<ObjectHash, CommitError> {
        // A new directory has no earlier seconds, unless some are remembered.
        if published == Some(tree) || (published.is_none() && self.taken.is_empty()) {
            return Ok(tree);
        }
        let objects = TreeObjects::Writer(self.writer);
        let failed = |source| CommitError::from(ScanError::Objects { path: path.clone(), source });
        let mut pairs = Pairs::new(objects, self.readable(path, published), Some(tree)).map_err(failed)?;
        let mut changed = Edits::new();
        while let Some((was, now)) = pairs.next_pair().map_err(failed)? {
            if let Some(now) = now
                && let Some(retimed) = self.entry(path, was.as_ref(), &now)?
            {
                changed.insert(now.name, Some(retimed));
            }
        }
        if changed.is_empty() {
            return Ok(tree);
        }
        let built = edit(&objects, Some(tree), &changed).map_err(failed)?;
        Ok(self.writer.put_pages(&built)?)
    }

    /// The new form of an entry that differs from the current generation's; `None` if it is unchanged.
    fn entry(
        &mut self,
        parent: &TreePath,
        was: Option<&Entry>,
        entry: &Entry,
    ) -> Result<Option<Entry>, CommitError> {
        let path = parent.join(&entry.name).map_err(|source| ScanError::Name {
            directory: parent.clone(),
            name: entry.name.clone(),
            source,
        })?;
        let mut retimed = entry.clone();
        match &mut retimed.kind {
            Kind::Symlink { .. } | Kind::Collected { .. } => return Ok(None),
            Kind::Directory { object: tree, .. } => {
                *tree = self.directory(&path, was.and_then(object), *tree)?;
            }
            Kind::File { content, .. } => {
                let published = was.and_then(file);
                let tree = entry.metadata.mtime;
                let time = time_of(content, tree, published, self.taken.get(&path));
                retimed.metadata.mtime = time;
                if time != tree && published.is_none_or(|(before, _)| before != content) {
                    self.given.add(&path);
                }
            }
        }
        Ok(Some(retimed).filter(|retimed| retimed != entry))
    }

    /// A directory of the current generation. A missing one counts as empty, without seconds to avoid.
    fn readable(&self, path: &TreePath, published: Option<ObjectHash>) -> Option<ObjectHash> {
        let object = published?;
        match TreeObjects::Writer(self.writer).page(&object) {
            Ok(_) => Some(object),
            Err(error) => {
                let error = crate::error_chain(&error);
                tracing::warn!("read directory {path} of the current generation: {error}");
                None
            }
        }
    }
}

fn file(entry: &Entry) -> Option<(&ContentHash, Timestamp)> {
    match &entry.kind {
        Kind::File { content, .. } => Some((content, entry.metadata.mtime)),
        Kind::Directory { .. } | Kind::Symlink { .. } | Kind::Collected { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_rises_unless_the_content_is_known() {
        let at = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
        let [old, new] = [b"old", b"new"].map(|bytes| ContentHash::of(bytes));
        // A path without a past has the tree's time.
        assert_eq!(time_of(&new, at(5, 7), None, None), at(5, 7));
        // Content that stays keeps its time, whatever the tree says.
        assert_eq!(time_of(&old, at(9, 7), Some((&old, at(5, 7))), None), at(5, 7));
        // Other content: a later second of the tree, or the next one.
        assert_eq!(time_of(&new, at(6, 7), Some((&old, at(5, 8))), None), at(6, 7));
        assert_eq!(time_of(&new, at(5, 9), Some((&old, at(5, 8))), None), at(6, 0));
        assert_eq!(time_of(&new, at(-9, 9), Some((&old, at(-5, 8))), None), at(-4, 0));
        // No second is after the last one.
        assert_eq!(time_of(&new, at(5, 9), Some((&old, at(i64::MAX, 0))), None), at(5, 9));
    }

    #[test]
    fn seconds_of_the_past_are_not_given_again() {
        let at = |seconds| Timestamp { seconds, nanoseconds: 0 };
        let [old, new, other] = [b"old", b"new", b"oth"].map(|bytes| ContentHash::of(bytes));
        let taken = Some(Taken::new(4, 8, &other));
        for published in [None, Some((&old, at(5)))] {
            assert_eq!(time_of(&new, at(5), published, taken), at(9));
            assert_eq!(time_of(&new, at(10), published, taken), at(10));
            // The second is this content's own.
            assert_eq!(time_of(&other, at(5), published, taken), at(8));
        }
        assert_eq!(time_of(&new, at(5), Some((&old, at(12))), taken), at(13));
        assert_eq!(time_of(&other, at(5), Some((&old, at(12))), taken), at(13));
    }
}
