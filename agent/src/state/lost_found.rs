//! `ROOT/lost+found`: files that visitors had written into a tree, moved here when the tree went out of use.
//!
//! ```text
//! ROOT/lost+found/N/PATH   was at PATH in the tree of generation N, and no manifest explains it
//! ROOT/lost+found/0/PATH   the same for an unknown generation, and files that were in no tree
//! ```
//!
//! Each name is moved here by one rename, directories as a whole, and keeps its owner, mode and times. The
//! directory has mode 0700, so nothing in it is served. It may use one hundredth of the file system, and hold
//! at most [`ENTRIES_MAX`] entries, because opening it visits each one. The oldest generations are dropped
//! first. All of them are dropped before an update is refused for lack of space. Names that are not numbers
//! are left alone: if ROOT is a file system of its own, `fsck` also keeps files here. A crash leaves a path
//! in the tree or here, never in both.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;
use syncd_shared::TreePath;

use crate::state::disk::{Dir, DiskError, Names, Stat};
use crate::state::layout::foreign::rename_free;
use crate::state::layout::{LOST_FOUND, Layout};
use crate::state::number;

/// Fraction of the file system that may be used.
const SHARE: u64 = 100;
/// Limit of entries. Each counts as at least this fraction of the space that may be used.
const ENTRIES_MAX: u64 = 100_000;
/// Minimum size of an entry on a small file system, because names and inodes take space as well.
const ENTRY_LEAST_BYTES: u64 = 4096;
/// Levels of a directory that are visited to find its size, each with two descriptors.
const LEVELS_MAX: usize = 64;

/// Why files could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    /// A system call failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The caller no longer wants it.
    #[error("cancelled")]
    Cancelled,
}

/// The directory, and the space used in it.
pub(crate) struct LostFound<'a> {
    layout: &'a Layout,
    dir: Dir,
    limit_bytes: u64,
    /// Generations with entries here, oldest first, and their bytes.
    taken: Vec<(u64, u64)>,
    /// Inodes here that also have other names -> generation under which they are kept.
    linked: HashMap<u64, u64>,
    cancel: &'a AtomicBool,
}

impl<'a> LostFound<'a> {
    /// Opens or creates the directory. The cost follows its contents. `cancel` stops this call, and each
    /// [`Self::keep`].
    pub fn open(layout: &'a Layout, cancel: &'a AtomicBool) -> Result<Self, KeepError> {
        let dir = layout.lost_found()?;
        let limit_bytes = dir.space()?.total_bytes / SHARE;
        let (mut taken, mut linked) = (Vec::new(), HashMap::new());
        let scale = Scale { of_bytes: limit_bytes, cancel };
        for generation in generations(&dir)? {
            let mut seen = |stat: &Stat| {
                if has_other_names(stat) {
                    linked.insert(stat.inode, generation);
                }
            };
            let bytes = scale.weigh(&dir, generation.to_string().as_bytes(), limit_bytes, &mut seen)?;
            taken.push((generation, bytes.unwrap_or(limit_bytes)));
        }
        Ok(Self { layout, dir, limit_bytes, taken, linked, cancel })
    }

    /// Generation under which this same file is already kept. Trees share inodes, so a file edited in place
    /// is edited in all of them.
    pub fn holder(&self, from: &Dir, name: &[u8]) -> Result<Option<u64>, DiskError> {
        let stat = from.stat(name)?.filter(has_other_names);
        Ok(stat.and_then(|stat| self.linked.get(&stat.inode).copied()))
    }

    /// Lowers the limit to `limit_bytes`.
    #[cfg(test)]
    pub fn with_limit(self, limit_bytes: u64) -> Self {
        Self { limit_bytes, ..self }
    }

    /// Moves `name` here from the directory `from`, which is at `parent` in a generation's tree. Returns
    /// `false` and leaves the name where it is if it is larger than the limit, nested too deep to measure, or
    /// not movable by this user.
    pub fn keep(
        &mut self,
        generation: u64,
        parent: &TreePath,
        from: &Dir,
        name: &[u8],
    ) -> Result<bool, KeepError> {
        let own = self.taken.iter().find(|(of, _)| *of == generation).map_or(0, |(_, bytes)| *bytes);
        let scale = Scale { of_bytes: self.limit_bytes, cancel: self.cancel };
        let mut linked = Vec::new();
        let mut seen = |stat: &Stat| linked.extend(has_other_names(stat).then_some(stat.inode));
        let Some(bytes) = scale.weigh(from, name, self.limit_bytes.saturating_sub(own), &mut seen)? else {
            return Ok(false);
        };
        self.make_room(generation, bytes)?;
        let mut to = self.layout.own_dir(&self.dir, generation.to_string().as_bytes())?;
        for component in parent.components() {
            to = match to.ensure_dir(component.as_bytes(), 0o700) {
                // A file was kept under the name of this directory.
                Err(e) if e.is_no_directory() => return Ok(false),
                other => other?,
            };
        }
        if !rename_free(from, name, &to)? {
            return Ok(false);
        }
        match self.taken.iter_mut().find(|(of, _)| *of == generation) {
            Some((_, taken)) => *taken = taken.saturating_add(bytes),
            None => self.taken.push((generation, bytes)),
        }
        self.taken.sort_unstable();
        self.linked.extend(linked.into_iter().map(|inode| (inode, generation)));
        Ok(true)
    }

    /// Drops the oldest generations, except `generation`, until `bytes` more fit.
    fn make_room(&mut self, generation: u64, bytes: u64) -> Result<(), DiskError> {
        while self.taken.iter().map(|(_, bytes)| bytes).sum::<u64>().saturating_add(bytes) > self.limit_bytes
            && let Some(index) = self.taken.iter().position(|(of, _)| *of != generation)
        {
            let (oldest, taken_bytes) = self.taken.remove(index);
            self.linked.retain(|_, of| *of != oldest);
            tracing::warn!(
                generation = oldest,
                bytes = taken_bytes,
                limit_bytes = self.limit_bytes,
                "lost+found is full: the files of an old generation are deleted"
            );
            self.layout.discard(&self.dir, oldest.to_string().as_bytes())?;
        }
        Ok(())
    }
}

/// Drops everything kept here, to free space. Returns whether there was anything.
pub(crate) fn give_way(layout: &Layout) -> Result<bool, DiskError> {
    let dir = match layout.root.open_dir(LOST_FOUND) {
        Ok(dir) => dir,
        Err(e) if e.is_no_directory() => return Ok(false),
        Err(e) => return Err(e),
    };
    let kept = generations(&dir)?;
    if let (Some(first), Some(last)) = (kept.first(), kept.last()) {
        tracing::warn!(first, last, "space is needed: the files kept in lost+found are deleted");
    }
    for generation in &kept {
        layout.discard(&dir, generation.to_string().as_bytes())?;
    }
    Ok(!kept.is_empty())
}

/// Whether files are kept under this name, the number of a generation.
pub(crate) fn has(layout: &Layout, name: &str) -> Result<bool, DiskError> {
    match layout.root.open_dir(LOST_FOUND) {
        Ok(dir) => Ok(dir.stat(name.as_bytes())?.is_some()),
        Err(e) if e.is_no_directory() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Generations with entries here, oldest first.
fn generations(dir: &Dir) -> Result<Vec<u64>, DiskError> {
    let mut kept: Vec<u64> = dir.list()?.iter().filter_map(|listed| number(&listed.name)).collect();
    kept.sort_unstable();
    Ok(kept)
}

/// Minimum size of an entry, if `limit_bytes` may be used.
fn entry_least(limit_bytes: u64) -> u64 {
    ENTRY_LEAST_BYTES.max(limit_bytes.div_ceil(ENTRIES_MAX))
}

fn has_other_names(stat: &Stat) -> bool {
    stat.kind == FileType::RegularFile && stat.links > 1
}

/// Measures what is to be kept.
struct Scale<'a> {
    /// Limit from which the minimum size of an entry follows.
    of_bytes: u64,
    cancel: &'a AtomicBool,
}

impl Scale<'_> {
    /// Bytes used by a name and everything below it; `None`: more than `limit_bytes`, more than
    /// [`LEVELS_MAX`] levels, or not accessible. Every measured inode is passed to `seen`.
    fn weigh(
        &self,
        dir: &Dir,
        name: &[u8],
        limit_bytes: u64,
        seen: &mut dyn FnMut(&Stat),
    ) -> Result<Option<u64>, KeepError> {
        let least_bytes = entry_least(self.of_bytes);
        let mut weight = |stat: &Stat| {
            seen(stat);
            stat.allocated_bytes.max(least_bytes)
        };
        let is_directory = |stat: &Stat| stat.kind == FileType::Directory;
        let Some(top) = dir.stat(name)? else { return Ok(None) };
        let mut bytes = weight(&top);
        let mut open: Vec<(Dir, Names)> = Vec::new();
        if is_directory(&top) {
            match enter(dir, name) {
                Some(entered) => open.push(entered),
                None => return Ok(None),
            }
        }
        while let Some((dir, names)) = open.last_mut() {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(KeepError::Cancelled);
            }
            let Some(listed) = names.next() else {
                open.pop();
                continue;
            };
            let name = listed?.name;
            let Some(stat) = dir.stat(&name)? else { continue };
            bytes = bytes.saturating_add(weight(&stat));
            if is_directory(&stat) {
                match enter(dir, &name).filter(|_| open.len() < LEVELS_MAX) {
                    Some(entered) => open.push(entered),
                    None => return Ok(None),
                }
            }
            if bytes > limit_bytes {
                return Ok(None);
            }
        }
        Ok((bytes <= limit_bytes).then_some(bytes))
    }
}

fn enter(dir: &Dir, name: &[u8]) -> Option<(Dir, Names)> {
    let child = dir.open_dir(name).ok()?;
    let names = child.names().ok()?;
    Some((child, names))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    static NEVER: AtomicBool = AtomicBool::new(false);

    fn layout() -> (tempfile::TempDir, Layout) {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::open(temp.path(), None).unwrap();
        std::fs::create_dir(temp.path().join("tree")).unwrap();
        (temp, layout)
    }

    fn tree(temp: &tempfile::TempDir) -> Dir {
        Dir::open_path(&temp.path().join("tree")).unwrap()
    }

    fn path(text: &str) -> TreePath {
        TreePath::from_bytes(text.as_bytes()).unwrap()
    }

    fn exists(path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }

    #[test]
    fn what_is_kept_has_its_path_and_nobody_else_may_enter() {
        use std::os::unix::fs::PermissionsExt;
        let (temp, layout) = layout();
        let (tree, kept) = (tree(&temp), temp.path().join("lost+found"));
        let mut lost = LostFound::open(&layout, &NEVER).unwrap();
        std::fs::write(temp.path().join("tree/shell.php"), "first").unwrap();
        assert!(lost.keep(7, &path("up/loads"), &tree, b"shell.php").unwrap());
        std::fs::write(temp.path().join("tree/shell.php"), "second").unwrap();
        assert!(lost.keep(7, &path("up/loads"), &tree, b"shell.php").unwrap());
        std::os::unix::fs::symlink("/etc/passwd", temp.path().join("tree/link")).unwrap();
        assert!(lost.keep(7, &path("up"), &tree, b"link").unwrap());
        let read = |name| std::fs::read(kept.join(name)).unwrap();
        assert_eq!(read("7/up/loads/shell.php"), b"first");
        assert_eq!(read("7/up/loads/shell.php.1"), b"second");
        assert_eq!(std::fs::read_link(kept.join("7/up/link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(std::fs::read_dir(temp.path().join("tree")).unwrap().count(), 0);
        for directory in ["", "7", "7/up/loads"] {
            assert_eq!(kept.join(directory).metadata().unwrap().permissions().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn the_oldest_generations_go_first_and_what_fits_nowhere_stays_where_it_was() {
        let (temp, layout) = layout();
        let (tree, kept) = (tree(&temp), temp.path().join("lost+found"));
        let mut lost = LostFound::open(&layout, &NEVER).unwrap().with_limit(60_000);
        let put = |name: &str, bytes: usize| {
            std::fs::write(temp.path().join("tree").join(name), vec![1; bytes]).unwrap();
        };
        for generation in 1..=4 {
            put("file", 20_000);
            assert!(lost.keep(generation, &TreePath::root(), &tree, b"file").unwrap());
        }
        assert!(!exists(&kept.join("1")) && !exists(&kept.join("2")));
        assert!(exists(&kept.join("3/file")) && exists(&kept.join("4/file")));
        put("huge", 70_000);
        assert!(!lost.keep(5, &TreePath::root(), &tree, b"huge").unwrap());
        assert!(exists(&temp.path().join("tree/huge")) && exists(&kept.join("3/file")));
        std::fs::create_dir_all(temp.path().join("tree").join(["deep"; 80].join("/"))).unwrap();
        assert!(!lost.keep(5, &TreePath::root(), &tree, b"deep").unwrap());
        assert!(exists(&temp.path().join("tree/deep/deep")));
    }

    #[test]
    fn a_large_file_system_keeps_no_more_names_than_are_looked_at_each_time() {
        let (temp, layout) = layout();
        let (tree, kept) = (tree(&temp), temp.path().join("lost+found"));
        let limit_bytes = 20 << 30;
        let mut lost = LostFound::open(&layout, &NEVER).unwrap().with_limit(limit_bytes);
        std::fs::create_dir(temp.path().join("tree/some")).unwrap();
        for i in 0..99 {
            std::fs::write(temp.path().join(format!("tree/some/{i}")), "").unwrap();
        }
        assert!(lost.keep(1, &TreePath::root(), &tree, b"some").unwrap());
        let taken_bytes: u64 = lost.taken.iter().map(|(_, bytes)| bytes).sum();
        assert!(taken_bytes / 100 * ENTRIES_MAX >= limit_bytes, "{taken_bytes}");
        // The next process measures the same size.
        let name = b"1";
        let scale = Scale { of_bytes: limit_bytes, cancel: &NEVER };
        let dir = Dir::open_path(&kept).unwrap();
        let weighed = scale.weigh(&dir, name, limit_bytes, &mut |_| {}).unwrap().unwrap();
        assert_eq!(weighed, taken_bytes + entry_least(limit_bytes), "its own directory is one more");
    }

    #[test]
    fn a_file_is_known_by_its_inode_until_its_generation_is_thrown_away_and_weighing_is_cancelled() {
        let (temp, layout) = layout();
        let tree = tree(&temp);
        let put = |name: &str| std::fs::write(temp.path().join("tree").join(name), vec![1; 20_000]).unwrap();
        put("edited");
        std::fs::hard_link(temp.path().join("tree/edited"), temp.path().join("tree/also")).unwrap();
        let mut lost = LostFound::open(&layout, &NEVER).unwrap().with_limit(60_000);
        assert_eq!(lost.holder(&tree, b"also").unwrap(), None);
        assert!(lost.keep(1, &TreePath::root(), &tree, b"edited").unwrap());
        assert_eq!(lost.holder(&tree, b"also").unwrap(), Some(1));
        let again = LostFound::open(&layout, &NEVER).unwrap();
        assert_eq!(again.holder(&tree, b"also").unwrap(), Some(1), "to the next process, too");
        put("alone");
        assert_eq!(lost.holder(&tree, b"alone").unwrap(), None);
        for generation in 2..=3 {
            put("file");
            assert!(lost.keep(generation, &TreePath::root(), &tree, b"file").unwrap());
        }
        assert_eq!(lost.holder(&tree, b"also").unwrap(), None, "what is gone is kept no longer");

        let stop = AtomicBool::new(true);
        assert!(matches!(LostFound::open(&layout, &stop), Err(KeepError::Cancelled)));
    }

    #[test]
    fn many_small_files_count_by_their_number_and_all_of_it_gives_way() {
        let (temp, layout) = layout();
        let (tree, kept) = (tree(&temp), temp.path().join("lost+found"));
        let mut lost = LostFound::open(&layout, &NEVER).unwrap().with_limit(200_000);
        std::fs::create_dir(temp.path().join("tree/many")).unwrap();
        for i in 0..100 {
            std::fs::write(temp.path().join(format!("tree/many/{i}")), "").unwrap();
        }
        assert!(!lost.keep(1, &TreePath::root(), &tree, b"many").unwrap());
        let mut lost = lost.with_limit(1_000_000);
        assert!(lost.keep(1, &TreePath::root(), &tree, b"many").unwrap());
        // A foreign file.
        std::fs::write(kept.join("#12345"), "fsck").unwrap();
        assert!(give_way(&layout).unwrap());
        assert!(!give_way(&layout).unwrap());
        assert!(!exists(&kept.join("1")) && exists(&kept.join("#12345")));
    }
}
