//! Files whose content changed although the whole second of their time did not: counted and reported by the
//! sealer.
//!
//! OPcache compares whole seconds only, `Last-Modified` has whole seconds, and Apache's `ETag` combines time
//! and size. If the second stays the same, PHP, browsers and caches may keep the old content. Such a file is
//! *indistinct*.
//!
//! One record, `commit`/`indistinct`: `u64` number of the generation, then JSON. It is written after a
//! generation with such files was sealed, and without a sync; a crash before the next change of the store is
//! durable loses a warning.

use serde::{Deserialize, Serialize};
use syncd_shared::diff::DiffError;
use syncd_shared::{Entry, GenerationNumber, Kind, RootEntry, SignedGeneration, TreePath};

use super::file_changes::{self, FileChange};
use crate::store::{Store, StoreError};
use crate::tree_objects::{TreeObjectError, TreeObjects};

const NAMESPACE: &str = "commit";
const NAME: &[u8] = b"indistinct";
/// Maximum number of paths named; the others are counted.
const NAMED_MAX: usize = 5;

/// A number of files, with the first of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SomeFiles {
    pub files: u64,
    /// The first paths in order, with bytes that are not text escaped.
    pub paths: Vec<String>,
}

impl SomeFiles {
    pub fn is_empty(&self) -> bool {
        self.files == 0
    }

    pub(super) fn add(&mut self, path: &TreePath) {
        self.files += 1;
        if self.paths.len() < NAMED_MAX {
            self.paths.push(path.to_string());
        }
    }
}

impl std::fmt::Display for SomeFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let more = self.files.saturating_sub(self.paths.len() as u64);
        f.write_str(&self.paths.join(", "))?;
        if more > 0 { write!(f, " and {more} more") } else { Ok(()) }
    }
}

/// Report on how a generation's times reflect its changes of content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChangedTimes {
    /// Files with other content than in the preceding generation and the same second.
    pub indistinct: SomeFiles,
    /// Files that `--mtime distinct` gave another second.
    pub retimed: SomeFiles,
}

impl ChangedTimes {
    /// Examines a generation that was just sealed in place of `before`. Logs and stores the findings. Errors
    /// are only logged, because the generation is sealed already.
    pub(super) fn of_sealed(
        store: &Store,
        before: Option<&SignedGeneration>,
        sealed: &SignedGeneration,
        retimed: SomeFiles,
    ) -> Self {
        let Some(before) = before else { return Self::default() };
        let found = indistinct(store, &before.generation().root, &sealed.generation().root);
        let indistinct = found.unwrap_or_else(|error| {
            tracing::warn!("compare with generation {}: {}", before.number(), crate::error_chain(&error));
            SomeFiles::default()
        });
        let generation = sealed.number();
        if !indistinct.is_empty() {
            let SomeFiles { files, .. } = indistinct;
            tracing::warn!(%generation, files, %indistinct, "files have new content and the same second of modification as before");
            if let Err(error) = save(store, generation, &indistinct) {
                tracing::warn!("keep that for the status: {}", crate::error_chain(&error));
            }
        }
        if !retimed.is_empty() {
            tracing::info!(%generation, files = retimed.files, %retimed, "files with new content got a later second of modification");
        }
        Self { indistinct, retimed }
    }

    /// For a person, one line each.
    pub(super) fn remarks(&self) -> Vec<String> {
        let Self { indistinct, retimed } = self;
        let retimed = (!retimed.is_empty()).then(|| {
            format!(
                "{} with new content and no later second of modification got the next one: {retimed}",
                files(retimed)
            )
        });
        warning(indistinct).into_iter().chain(retimed).collect()
    }
}

/// A one-line warning about indistinct files; `None` if there are none.
fn warning(indistinct: &SomeFiles) -> Option<String> {
    (!indistinct.is_empty()).then(|| {
        format!(
            "{} with new content and the same second of modification as before: {indistinct}. PHP, browsers and caches \
             may keep the old content: see `serve --mtime distinct`",
            files(indistinct)
        )
    })
}

fn files(some: &SomeFiles) -> String {
    match some.files {
        1 => "1 file".into(),
        count => format!("{} files", indicatif::HumanCount(count)),
    }
}

/// Whether a file has other content and the same whole second.
pub(crate) fn is_indistinct(from: &Entry, to: &Entry) -> bool {
    match (&from.kind, &to.kind) {
        (Kind::File { content: before, .. }, Kind::File { content: after, .. }) => {
            before != after && from.metadata.mtime.seconds == to.metadata.mtime.seconds
        }
        _ => false,
    }
}

/// Finds the indistinct files between two generations. Reads the directories that differ.
fn indistinct(
    store: &Store,
    from: &RootEntry,
    to: &RootEntry,
) -> Result<SomeFiles, DiffError<TreeObjectError>> {
    let mut found = SomeFiles::default();
    file_changes::each(TreeObjects::Store(store), from, to, file_changes::Reach::Common, &mut |change| {
        if let FileChange { path, from: Some(from), to: Some(to) } = change
            && is_indistinct(from, to)
        {
            found.add(path);
        }
    })?;
    Ok(found)
}

/// Stores the indistinct files of a generation, for `status`.
fn save(store: &Store, generation: GenerationNumber, indistinct: &SomeFiles) -> Result<(), StoreError> {
    // A number and strings always serialise.
    let json = serde_json::to_vec(indistinct).unwrap_or_default();
    let value = [&generation.get().to_le_bytes()[..], &json].concat();
    store.note_records(|records| records.put(NAMESPACE, NAME, &value))
}

/// A warning about a generation's indistinct files, if it had any when it was sealed. Unreadable records are
/// left to `check`.
pub(crate) fn status_warning(store: &Store, generation: GenerationNumber) -> Option<String> {
    let warning = warning(&load(store, generation).ok()?)?;
    Some(format!("generation {generation}: {warning}"))
}

/// The indistinct files of a generation; empty if none were recorded.
fn load(store: &Store, generation: GenerationNumber) -> Result<SomeFiles, StoreError> {
    let value = store.record(NAMESPACE, NAME)?.unwrap_or_default();
    let Some((number, json)) = value.split_first_chunk() else { return Ok(SomeFiles::default()) };
    if u64::from_le_bytes(*number) != generation.get() {
        return Ok(SomeFiles::default());
    }
    serde_json::from_slice(json).map_err(|_| StoreError::Entry { table: "records" })
}
