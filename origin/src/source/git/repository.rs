//! Reads references and objects of a repository. Every object is compared with its name.
//!
//! The only user of the library: no other file names its functions. Configuration outside the repository, and
//! programs that the repository names, have no effect.

use std::path::{Path, PathBuf};

use gix::ObjectId;
use gix::objs::tree::EntryKind;
use gix::objs::{CommitRefIter, Kind, TreeRefIter};
use syncd_shared::Timestamp;
use syncd_shared::text::one_line;

use super::error::GitError;

/// Objects of this many bytes stay in memory, so that trees of consecutive commits are unpacked once.
const CACHE_BYTES: usize = 16 * 1024 * 1024;
/// Longest part of a subject in a label.
const SUBJECT_MAX_BYTES: usize = 200;
/// Digits of a commit's name in a label.
const SHORT_DIGITS: usize = 10;

/// The name of an object.
pub(super) type Id = ObjectId;

/// An open repository.
pub(super) struct Repository {
    path: PathBuf,
    repository: gix::Repository,
}

/// A commit.
pub(super) struct Commit {
    pub tree: Id,
    /// The first parent.
    pub parent: Option<Id>,
    /// Time of the committer.
    pub time: Timestamp,
    /// Short name and subject, as a label.
    pub label: String,
}

/// One name of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    pub kind: ItemKind,
    pub id: Id,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ItemKind {
    Directory,
    File,
    Executable,
    Symlink,
    Submodule,
}

impl Item {
    /// The tree of a directory.
    pub(super) fn tree(self) -> Option<Id> {
        (self.kind == ItemKind::Directory).then_some(self.id)
    }
}

impl Repository {
    /// Opens a work tree, a linked work tree or a bare repository.
    pub(super) fn open(path: &Path) -> Result<Self, GitError> {
        let options = gix::open::Options::isolated();
        let opened = gix::open_opts(path, options)
            .map_err(|source| GitError::Open { path: path.to_path_buf(), source: source.into() })?;
        if opened.common_dir().join("reftable").is_dir() {
            return Err(GitError::Reftable { path: path.to_path_buf() });
        }
        let mut repository = opened;
        repository.object_cache_size(CACHE_BYTES);
        Ok(Self { path: path.to_path_buf(), repository })
    }

    /// The commit that `reference` leads to.
    pub(super) fn resolve(&self, reference: &str) -> Result<Id, GitError> {
        let failed =
            |source: super::error::Cause| GitError::Reference { reference: reference.into(), source };
        let found = self.repository.try_find_reference(reference).map_err(|error| failed(error.into()))?;
        let no_reference =
            || GitError::NoReference { path: self.path.clone(), reference: reference.to_owned() };
        let mut found = found.ok_or_else(no_reference)?;
        // A symbolic reference to a branch without commits.
        let mut at = found.clone();
        while let Some(next) = at.follow() {
            at = next.map_err(|_| no_reference())?;
        }
        let commit = found.peel_to_commit().map_err(|error| failed(error.into()))?;
        Ok(commit.id)
    }

    /// Directories whose changes may move `reference`. They need not exist.
    pub(super) fn directories(&self, reference: &str) -> Vec<PathBuf> {
        let (own, common) = (self.repository.git_dir(), self.repository.common_dir());
        let mut directories = vec![own.to_path_buf(), common.to_path_buf()];
        let mut names = vec![reference.to_owned()];
        let mut at = self.repository.try_find_reference(reference).ok().flatten();
        while let Some(found) = at {
            names.push(found.name().as_bstr().to_string());
            if let gix::refs::TargetRef::Symbolic(next) = found.target() {
                names.push(next.as_bstr().to_string());
            }
            at = found.follow().and_then(Result::ok);
        }
        for name in names.iter().flat_map(|name| [name.clone(), format!("refs/heads/{name}")]) {
            let mut place = common.to_path_buf();
            for part in name.split('/') {
                directories.push(place.clone());
                place.push(part);
            }
        }
        directories.sort();
        directories.dedup();
        directories
    }

    /// Whether the history is cut.
    pub(super) fn is_shallow(&self) -> bool {
        self.repository.is_shallow().unwrap_or(true)
    }

    pub(super) fn shallow(&self) -> GitError {
        GitError::Shallow { path: self.path.clone() }
    }

    pub(super) fn commit(&self, id: Id) -> Result<Commit, GitError> {
        let data = self.object(id, Kind::Commit)?;
        let damaged = || GitError::Damaged { id: id.to_string() };
        let commit = CommitRefIter::from_bytes(&data, id.kind());
        // Reading moves a copy of the iterator on.
        let tree = { commit }.tree_id().map_err(|_| damaged())?;
        let parent = commit.parent_ids().next();
        let seconds = commit.committer().map_err(|_| damaged())?.seconds();
        let message = commit.message().map_err(|_| damaged())?.to_string();
        let subject = message.trim_start().lines().next().unwrap_or_default();
        let short: String = id.to_string().chars().take(SHORT_DIGITS).collect();
        let label = one_line(format!("{short} {subject}").trim(), SUBJECT_MAX_BYTES);
        Ok(Commit { tree, parent, time: Timestamp { seconds, nanoseconds: 0 }, label })
    }

    /// All names of a tree, in any order.
    pub(super) fn tree(&self, id: Id) -> Result<Vec<(Vec<u8>, Item)>, GitError> {
        let data = self.object(id, Kind::Tree)?;
        let mut names = Vec::new();
        for entry in TreeRefIter::from_bytes(&data, id.kind()) {
            let entry = entry.map_err(|_| GitError::Damaged { id: id.to_string() })?;
            let kind = match entry.mode.kind() {
                EntryKind::Tree => ItemKind::Directory,
                EntryKind::Blob => ItemKind::File,
                EntryKind::BlobExecutable => ItemKind::Executable,
                EntryKind::Link => ItemKind::Symlink,
                EntryKind::Commit => ItemKind::Submodule,
            };
            names.push((entry.filename.to_vec(), Item { kind, id: entry.oid.to_owned() }));
        }
        Ok(names)
    }

    /// Size of a blob, without reading it all.
    pub(super) fn size(&self, id: Id) -> Result<u64, GitError> {
        let header = self.repository.find_header(id);
        header.map(|header| header.size()).map_err(|error| unreadable(id, error.into()))
    }

    /// Content of a blob.
    pub(super) fn blob(&self, id: Id) -> Result<Vec<u8>, GitError> {
        self.object(id, Kind::Blob)
    }

    fn object(&self, id: Id, kind: Kind) -> Result<Vec<u8>, GitError> {
        let object = self.repository.find_object(id).map_err(|error| unreadable(id, error.into()))?;
        let found = object.kind;
        let data = object.detach().data;
        let actual = gix::objs::compute_hash(id.kind(), found, &data);
        match actual {
            Ok(actual) if actual == id && found == kind => Ok(data),
            _ => Err(GitError::Damaged { id: id.to_string() }),
        }
    }
}

fn unreadable(id: Id, source: super::error::Cause) -> GitError {
    GitError::Object { id: id.to_string(), source }
}
