//! The promises of collected directories, judged from what visitors did and what origin and nodes have.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use syncd_origin::collected::Collection;
use syncd_shared::collected::{CollectedName, State};
use syncd_shared::{ContentHash, TreePath};
use walkdir::WalkDir;

use super::visit::{Visited, bytes_of, content_at, contents_below};

/// A content at a path.
pub type Written = (String, u64);

/// Remembers the visits.
#[derive(Default)]
pub struct Promises {
    contents: BTreeMap<ContentHash, u64>,
    /// Contents that must not be lost, and the nodes that were given them.
    owed: BTreeMap<Written, BTreeSet<usize>>,
    /// How often a content was written to a path.
    writes: BTreeMap<Written, u32>,
    touched: BTreeSet<Written>,
    /// Removals that must not be undone.
    removed: Vec<(usize, Written)>,
    /// Contents of a node whose rows may have been lost when it was killed.
    unrecorded: BTreeSet<(usize, Written)>,
    /// Nodes without a journal. Nothing there counts as a removal.
    blank: BTreeSet<usize>,
    /// Newest version seen.
    number: u64,
    current: BTreeMap<String, u64>,
    /// Contents that were current once.
    retired: BTreeSet<Written>,
}

impl Promises {
    pub fn wrote(&mut self, written: &Written) {
        *self.writes.entry(written.clone()).or_default() += 1;
        self.contents.insert(ContentHash::of(&bytes_of(written.1)), written.1);
    }

    pub fn visited(&mut self, node: usize, visited: &Visited) {
        for seen in visited.removed.iter().chain(&visited.overwritten) {
            if let Some(nodes) = self.owed.get_mut(seen) {
                nodes.remove(&node);
            }
        }
        for removed in &visited.removed {
            if !self.blank.contains(&node) && !self.unrecorded.contains(&(node, removed.clone())) {
                self.removed.push((node, removed.clone()));
            }
        }
        for written in &visited.written {
            self.wrote(written);
            self.owed.entry(written.clone()).or_default().insert(node);
        }
        self.touched.extend(visited.touched.iter().cloned());
    }

    /// A node was killed before it recorded what it had placed.
    pub fn killed(&mut self, node: usize, files: &Path) {
        self.unrecorded.extend(contents_below(files, "").into_iter().map(|written| (node, written)));
    }

    /// A node does not know any more what was removed.
    pub fn forgot(&mut self, node: usize) {
        self.removed.retain(|(of, _)| *of != node);
        self.blank.insert(node);
    }

    /// A node has everything of the origin, and has recorded it.
    pub fn rests(&mut self, node: usize) {
        self.blank.remove(&node);
        self.unrecorded.retain(|(of, _)| *of != node);
    }

    /// A node lost its files.
    pub fn lost(&mut self, node: usize) {
        self.forgot(node);
        for nodes in self.owed.values_mut() {
            nodes.remove(&node);
        }
    }

    /// The origin lost what it had taken since a backup. Only files on disks of nodes are still owed.
    pub fn restored(
        &mut self,
        disks: &[BTreeSet<Written>],
        collection: &Collection,
        name: &CollectedName,
    ) -> anyhow::Result<()> {
        for (written, nodes) in &mut self.owed {
            nodes.retain(|node| disks.get(*node).is_some_and(|disk| disk.contains(written)));
        }
        self.removed.clear();
        self.blank.extend(0..disks.len());
        self.retired.clear();
        self.current.clear();
        self.number = 0;
        self.observe(collection, name).map(drop)
    }

    /// Looks at new versions. Returns what came back, and should not have.
    pub fn observe(
        &mut self,
        collection: &Collection,
        name: &CollectedName,
    ) -> anyhow::Result<Option<String>> {
        let mut returned = None;
        for (path, version) in collection.versions(name, self.number, usize::MAX)? {
            self.number = version.number.get();
            let path = path.to_string();
            let content = version.state.content().map(|hash| self.content(&hash)).transpose()?;
            let before = match content {
                Some(content) => self.current.insert(path.clone(), content),
                None => self.current.remove(&path),
            };
            self.retired.extend(before.filter(|_| before != content).map(|before| (path.clone(), before)));
            let Some(content) = content.filter(|_| before != content) else { continue };
            let written = (path, content);
            if self.retired.contains(&written) && self.writes.get(&written) == Some(&1) {
                returned = Some(format!("content {content} of {} came back", written.0));
            }
        }
        Ok(returned)
    }

    pub fn content_of(&self, state: &State) -> Option<u64> {
        self.contents.get(&state.content()?).copied()
    }

    fn content(&self, hash: &ContentHash) -> anyhow::Result<u64> {
        self.contents.get(hash).copied().context("a content that nobody wrote")
    }

    /// The first promise that does not hold in the end, when everything is connected and at rest.
    pub fn broken(
        &self,
        collection: &Collection,
        name: &CollectedName,
        roots: &[PathBuf],
    ) -> anyhow::Result<Option<String>> {
        let expected = tree_of_origin(collection, name)?;
        for (n, root) in roots.iter().enumerate() {
            let found = tree_of_node(&root.join("collected").join(name.as_str()))?;
            let paths: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
            if let Some(path) = paths.into_iter().find(|path| expected.get(*path) != found.get(*path)) {
                let (expected, found) = (expected.get(path), found.get(path));
                return Ok(Some(format!("node {n} has {found:?} at {path}, the origin {expected:?}")));
            }
        }
        for (written, nodes) in self.owed.iter().filter(|(_, nodes)| !nodes.is_empty()) {
            if !self.is_kept(collection, name, written)? && !is_aside(roots, written.1) {
                return Ok(Some(format!(
                    "content {} of {} is lost, from nodes {nodes:?}",
                    written.1, written.0
                )));
            }
        }
        let is_undone = |(_, written): &&(usize, Written)| {
            let is_single = self.writes.get(written) == Some(&1) && !self.touched.contains(written);
            is_single && self.current.get(&written.0) == Some(&written.1)
        };
        let undone = self.removed.iter().find(is_undone);
        Ok(undone.map(|(n, (path, content))| {
            format!("{path} was removed on node {n}, and its content {content} is there again")
        }))
    }

    /// Whether the origin has a content as a version or as a loser of its path.
    fn is_kept(
        &self,
        collection: &Collection,
        name: &CollectedName,
        (path, content): &Written,
    ) -> anyhow::Result<bool> {
        let (at, hash) = (TreePath::from_bytes(path.as_bytes())?, ContentHash::of(&bytes_of(*content)));
        let history = collection.history(name, &at)?;
        if history.iter().any(|one| one.version.state.content() == Some(hash)) {
            return Ok(true);
        }
        let losers = collection.losers(name)?;
        Ok(losers.iter().any(|(_, loser)| loser.path == at && loser.file.content == hash))
    }
}

/// Whether a node kept a content aside because another file took its name at that moment.
fn is_aside(roots: &[PathBuf], content: u64) -> bool {
    let incoming = |root: &PathBuf| WalkDir::new(root.join("collected/.incoming")).into_iter();
    let mut files = roots.iter().flat_map(incoming).filter_map(Result::ok);
    files.any(|file| content_at(file.path()) == Some(content))
}

/// Files as (content, mode, seconds and nanoseconds); directories as `None`.
type Tree = BTreeMap<String, Option<(ContentHash, u32, i64, i64)>>;

fn tree_of_origin(collection: &Collection, name: &CollectedName) -> anyhow::Result<Tree> {
    let mut tree = Tree::new();
    for (path, version) in collection.versions(name, 0, usize::MAX)? {
        let entry = match version.state {
            State::Absent => continue,
            State::Directory { .. } => None,
            State::File(file) => {
                let time = (file.mtime.seconds, i64::from(file.mtime.nanoseconds));
                Some((file.content, u32::from(file.mode), time.0, time.1))
            }
        };
        let mut above = path.split_last().map(|(parent, _)| parent);
        while let Some(parent) = above.filter(|parent| !parent.is_root()) {
            tree.entry(parent.to_string()).or_insert(None);
            above = parent.split_last().map(|(parent, _)| parent);
        }
        tree.insert(path.to_string(), entry);
    }
    Ok(tree)
}

fn tree_of_node(top: &Path) -> anyhow::Result<Tree> {
    let mut tree = Tree::new();
    for item in WalkDir::new(top).min_depth(1) {
        let item = item?;
        let path = item.path().strip_prefix(top)?.display().to_string();
        let found = item.metadata()?;
        let entry = match found.is_dir() {
            true => None,
            false => {
                let content = ContentHash::of(&std::fs::read(item.path())?);
                Some((content, found.mode() & 0o7777, found.mtime(), found.mtime_nsec()))
            }
        };
        tree.insert(path, entry);
    }
    Ok(tree)
}
