//! The content tree and its random edits. Times are set as well, so that the root hash of a tree follows from
//! the seed.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use syncd_tests::Seeded;
use walkdir::WalkDir;

const FILES_MAX: usize = 20;
/// A time in 2023, so that no file seems to have just changed.
const EPOCH_S: i64 = 1_690_000_000;

/// A small content tree.
pub struct Site {
    tree: PathBuf,
    random: Seeded,
    rounds: u64,
}

impl Site {
    /// Creates a tree of a few files.
    pub fn create(tree: &Path, seed: u64) -> io::Result<Self> {
        fs::create_dir_all(tree)?;
        let mut site = Self { tree: tree.to_path_buf(), random: Seeded::new(seed), rounds: 0 };
        for _ in 0..3 + site.random.below(8) {
            site.add()?;
        }
        site.round()?;
        Ok(site)
    }

    /// Makes one to five edits.
    pub fn round(&mut self) -> io::Result<()> {
        self.rounds += 1;
        for _ in 0..1 + self.random.below(5) {
            self.edit()?;
        }
        // The edits may have changed nothing.
        let line = format!("round {}\n", self.rounds);
        self.write(&self.tree.join("round.txt"), line.as_bytes())?;
        self.set_times()
    }

    fn edit(&mut self) -> io::Result<()> {
        let paths = self.paths();
        let Some(path) = self.random.pick(&paths).cloned() else { return self.add() };
        let metadata = fs::symlink_metadata(&path)?;
        match self.random.below(12) {
            0..=2 => self.add(),
            3..=5 if metadata.is_file() => {
                let mut content = fs::read(&path)?;
                let at = self.random.below(content.len() as u64 + 1) as usize;
                let length = self.random.below(600) as usize;
                content.splice(at..at, self.random.bytes(length));
                self.write(&path, &content)
            }
            6 if metadata.is_file() => {
                let mode = if self.random.one_in(2) { 0o640 } else { 0o604 };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            }
            7 => self.replace_by_link(&path, &metadata),
            8 if metadata.is_dir() => {
                let name = self.random.below(6);
                let to = self.tree.join(format!("d{name}"));
                if to.exists() || to.starts_with(&path) { Ok(()) } else { fs::rename(&path, &to) }
            }
            8 if metadata.is_file() => {
                let copy = self.new_path();
                if copy.exists() { Ok(()) } else { fs::copy(&path, copy).map(drop) }
            }
            9..=10 if paths.len() > 4 => match metadata.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            },
            _ => fs::create_dir_all(self.tree.join(format!("d{}", self.random.below(6)))),
        }
    }

    fn replace_by_link(&mut self, path: &Path, metadata: &fs::Metadata) -> io::Result<()> {
        if metadata.is_dir() {
            return Ok(());
        }
        fs::remove_file(path)?;
        symlink(format!("target-{}", self.random.below(9)), path)
    }

    fn add(&mut self) -> io::Result<()> {
        if self.paths().len() >= FILES_MAX {
            return Ok(());
        }
        let path = self.new_path();
        let length = if self.random.one_in(12) { 90_000 } else { self.random.below(3_000) };
        let content = self.random.bytes(length as usize);
        if path.is_dir() { Ok(()) } else { self.write(&path, &content) }
    }

    /// Writes a new inode half of the time, as editors and rsync do, and otherwise in place.
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let link = fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
        if link || self.rounds % 2 == 1 {
            let _ = fs::remove_file(path);
        }
        fs::write(path, content)
    }

    fn new_path(&mut self) -> PathBuf {
        let directories: Vec<PathBuf> =
            self.paths().into_iter().filter(|p| p.is_dir() && !p.is_symlink()).collect();
        let parent = match self.random.pick(&directories) {
            Some(directory) if self.random.one_in(2) => directory.clone(),
            _ => self.tree.clone(),
        };
        parent.join(format!("f{}", self.random.below(15)))
    }

    fn paths(&self) -> Vec<PathBuf> {
        let walk = WalkDir::new(&self.tree).min_depth(1).sort_by_file_name();
        walk.into_iter()
            .filter_map(Result::ok)
            .map(|item| item.into_path())
            .filter(|p| !p.ends_with("round.txt"))
            .collect()
    }

    /// Replaces every time taken from the machine's clock by one that follows from the seed.
    fn set_times(&mut self) -> io::Result<()> {
        for item in WalkDir::new(&self.tree).contents_first(true).sort_by_file_name() {
            let item = item?;
            let touched = item.metadata()?.modified()?;
            let given = std::time::UNIX_EPOCH + std::time::Duration::from_secs(EPOCH_S as u64 + 10_000_000);
            if touched < given && !item.file_type().is_dir() {
                continue;
            }
            let nanoseconds = self.random.below(1_000_000_000) as i64;
            // The time of a directory is constant: it does not reflect the contents.
            let seconds = if item.file_type().is_dir() { EPOCH_S } else { EPOCH_S + self.rounds as i64 };
            let nanoseconds = if item.file_type().is_dir() { 0 } else { nanoseconds };
            let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, item.path(), &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }
}
