//! Chooses how each changed content travels: as a local copy, a delta, or frames of the store, whichever is
//! cheapest.

use std::collections::{HashMap, HashSet};

use syncd_shared::diff::{Change, Released};
use syncd_shared::directory::{Entry, Kind};
use syncd_shared::limits::DELTA_OUTPUT_MAX_BYTES;
use syncd_shared::{Component, ContentHash, RootEntry, TreePath};

use crate::plan::contents::{Contents, Directories, FrameId};
use crate::plan::duplicates;
use crate::plan::error::PlanError;

/// Number of files with the same name that are compared when a new file looks for its old version at another
/// path.
const NAMESAKES: usize = 16;

/// A file of the old tree that the update removes or replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OldFile {
    pub content: ContentHash,
    pub size: u64,
}

/// A content to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NewFile {
    pub content: ContentHash,
    /// Never 0.
    pub size: u64,
    /// The file that this content was probably made from.
    pub basis: Option<OldFile>,
    /// Whether the basis is the file replaced at the same path.
    pub is_replacement: bool,
}

/// Every wanted content once, by the way it travels. Each list is in path order.
#[derive(Debug, Default)]
pub(super) struct EncodingChoice {
    /// Contents that the old tree has, with their path there.
    pub local: Vec<(ContentHash, TreePath)>,
    /// Contents of at most [`DELTA_OUTPUT_MAX_BYTES`], with or without basis.
    pub small: Vec<NewFile>,
    /// Larger contents that have a basis.
    pub large: Vec<NewFile>,
    /// Contents sent as their stored chunks.
    pub stored: Vec<ContentHash>,
}

impl EncodingChoice {
    pub(super) fn choose(
        contents: &dyn Contents,
        before: &RootEntry,
        changes: &[Change],
        released: &Released<'_, &Directories<'_>>,
    ) -> Result<Self, PlanError> {
        let mut namesakes = Namesakes::of(changes);
        // Contents of files that only change metadata are already there.
        let mut seen: HashSet<_> = changes.iter().filter_map(kept).collect();
        let mut chosen = Self::default();
        for change in changes {
            let (path, own, to) = match change {
                Change::Removed { .. } => continue,
                Change::Added { path, entry } => (path, None, entry),
                Change::Modified { path, from, to } => (path, old_file(from), to),
            };
            let Kind::File { content, size } = to.kind else { continue };
            if size == 0 || !seen.insert(content) {
                continue;
            }
            let local = match released.files(content).next().transpose()? {
                Some(released) => Some(released.path),
                None => duplicates::path_in(contents, before, &content)?,
            };
            if let Some(source) = local {
                chosen.local.push((content, source));
                continue;
            }
            let own = own.filter(|own| own.size > 0);
            let basis = own.or_else(|| namesakes.nearest(path));
            let file = NewFile { content, size, basis, is_replacement: own.is_some() };
            if size <= DELTA_OUTPUT_MAX_BYTES as u64 {
                chosen.small.push(file);
            } else if basis.is_some() {
                chosen.large.push(file);
            } else {
                chosen.stored.push(content);
            }
        }
        chosen.leave_whole_frames(contents)?;
        Ok(chosen)
    }

    /// Sends new files as stored if they fill most of their frames. Others compress better together with the
    /// changes around them.
    fn leave_whole_frames(&mut self, contents: &dyn Contents) -> Result<(), PlanError> {
        let mut frame_of: HashMap<ContentHash, FrameId> = HashMap::new();
        let mut wanted: HashMap<FrameId, u64> = HashMap::new();
        for file in self.small.iter().filter(|file| file.basis.is_none()) {
            let chunks = contents.chunks_of(&file.content)?.unwrap_or_default();
            let mut place = None;
            for chunk in &chunks {
                place = contents.locate(&chunk.hash)?;
                if let Some(place) = place {
                    *wanted.entry(place.frame).or_default() += u64::from(place.length);
                }
            }
            if let Some(place) = place {
                frame_of.insert(file.content, place.frame);
            }
        }
        wanted.retain(|frame, bytes| {
            // An unreadable frame is reported when it is needed.
            let stored = contents.frame(*frame).ok().flatten();
            stored.is_some_and(|stored| *bytes * 4 >= u64::from(stored.uncompressed_bytes) * 3)
        });
        self.small.retain(|file| {
            let whole = frame_of.get(&file.content).is_some_and(|frame| wanted.contains_key(frame));
            if whole {
                self.stored.push(file.content);
            }
            !whole
        });
        Ok(())
    }
}

/// The content of a file whose content does not change.
fn kept(change: &Change) -> Option<ContentHash> {
    let Change::Modified { from, to, .. } = change else { return None };
    let (from, to) = (old_file(from)?, old_file(to)?);
    (from.content == to.content).then_some(to.content)
}

fn old_file(entry: &Entry) -> Option<OldFile> {
    match entry.kind {
        Kind::File { content, size } => Some(OldFile { content, size }),
        _ => None,
    }
}

/// Removed files by name: a file that appears elsewhere with the same name is often a later version.
struct Namesakes(HashMap<Component, Vec<(TreePath, OldFile)>>);

impl Namesakes {
    fn of(changes: &[Change]) -> Self {
        let mut by_name: HashMap<Component, Vec<(TreePath, OldFile)>> = HashMap::new();
        for change in changes {
            if let Change::Removed { path, entry } = change
                && let Some(file) = old_file(entry).filter(|file| file.size > 0)
                && let Some((_, name)) = path.split_last()
            {
                let files = by_name.entry(name).or_default();
                if files.len() < NAMESAKES {
                    files.push((path.clone(), file));
                }
            }
        }
        Self(by_name)
    }

    /// The file whose path has most in common with `path`.
    fn nearest(&mut self, path: &TreePath) -> Option<OldFile> {
        let (_, name) = path.split_last()?;
        let files = self.0.get(&name)?;
        files.iter().max_by_key(|(old, _)| common_components(old, path)).map(|(_, file)| *file)
    }
}

/// Number of components that two paths share at their starts and ends.
fn common_components(a: &TreePath, b: &TreePath) -> usize {
    let (a, b): (Vec<_>, Vec<_>) = (a.components().collect(), b.components().collect());
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let start = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    end + start
}
