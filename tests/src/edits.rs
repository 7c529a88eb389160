//! Changes a content tree: specific edits, and random but repeatable ones.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use walkdir::WalkDir;

use crate::{Seeded, is_root};

/// Writes a file and creates the directories above it.
#[track_caller]
pub fn write(tree: &Path, path: &str, content: impl AsRef<[u8]>) {
    let full = tree.join(path);
    fs::create_dir_all(full.parent().expect("a path in the tree")).expect("create directories");
    fs::write(full, content).expect("write a file");
}

/// Sets the time of a file or directory, to the nanosecond.
#[track_caller]
pub fn set_time(path: &Path, seconds: u64, nanoseconds: u32) {
    let time = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    fs::File::open(path).and_then(|file| file.set_modified(time)).expect("set a time");
}

/// Removes a name of any kind.
pub fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).expect("remove a directory"),
        Ok(_) => fs::remove_file(path).expect("remove a file"),
        Err(_) => {}
    }
}

/// Makes a small site with entries of every kind that is replicated.
#[track_caller]
pub fn small_site(tree: &Path, files: usize) {
    let mut random = Seeded::new(files as u64);
    for number in 0..files {
        let length = random.below(12_000) as usize;
        let content = random.bytes(length);
        write(tree, &format!("section-{}/page-{number}.html", number % 12), content);
    }
    write(tree, "index.html", "<h1>site</h1>\n");
    write(tree, "empty", "");
    fs::create_dir_all(tree.join("empty-directory/nested")).expect("create directories");
    symlink("index.html", tree.join("link")).expect("create a symlink");
    symlink("/nowhere/outside", tree.join("dangling")).expect("create a symlink");
    let odd = OsString::from_vec(b"odd \xff\n name".to_vec());
    fs::write(tree.join(odd), "not UTF-8").expect("write a file");
    fs::set_permissions(tree.join("index.html"), fs::Permissions::from_mode(0o600)).expect("chmod");
}

/// Modes of a directory that deny its owner something: everything, listing, or access to entries.
const CLOSED: [u32; 4] = [0o000, 0o111, 0o311, 0o644];

/// Makes or changes directories that deny their owner something, with files and a directory in each. From one
/// `round` to the next, each gets other content and another mode, one is removed and one is added. Only root
/// can publish such a tree.
#[track_caller]
pub fn closed_directories(tree: &Path, round: usize) {
    let close = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    for number in 0..=CLOSED.len() {
        let path = format!("closed/{number}");
        let directory = tree.join(&path);
        if number == round % (CLOSED.len() + 1) {
            remove(&directory);
            continue;
        }
        write(tree, &format!("{path}/page.html"), format!("round {round}"));
        write(tree, &format!("{path}/inner/{round}.html"), "new");
        write(tree, &format!("{path}/unreadable"), "the same");
        let mode = CLOSED[(number + round) % CLOSED.len()];
        close(&directory.join("unreadable"), 0o000);
        close(&directory.join("inner"), mode);
        close(&directory, mode);
    }
}

/// Random edits of one tree. Every round changes the content of at least one file.
pub struct Edits {
    tree: PathBuf,
    random: Seeded,
    round: u64,
    closes: bool,
}

impl Edits {
    /// Edits `tree` according to a seed.
    pub fn new(tree: &Path, seed: u64) -> Self {
        Self { tree: tree.to_path_buf(), random: Seeded::new(seed), round: 0, closes: false }
    }

    /// Also takes away owners' rights, if this process is root.
    pub fn closing(self) -> Self {
        Self { closes: true, ..self }
    }

    /// Makes 1 to `most` random changes, and one certain change of content.
    pub fn round(&mut self, most: u64) {
        self.round += 1;
        for _ in 0..1 + self.random.below(most) {
            self.operation();
        }
        // An operation may have replaced it by something else.
        remove(&self.tree.join("round.txt"));
        write(&self.tree, "round.txt", format!("round {} {}\n", self.round, self.random.next_u64()));
    }

    fn paths(&self) -> Vec<PathBuf> {
        let walk = WalkDir::new(&self.tree).min_depth(1).sort_by_file_name();
        walk.into_iter().filter_map(Result::ok).map(|item| item.into_path()).collect()
    }

    fn new_path(&mut self, paths: &[PathBuf]) -> PathBuf {
        let directories: Vec<&PathBuf> =
            paths.iter().filter(|p| p.symlink_metadata().is_ok_and(|m| m.is_dir())).collect();
        let parent = match self.random.pick(&directories) {
            Some(directory) if !self.random.one_in(4) && directory.components().count() < 20 => {
                (*directory).clone()
            }
            _ => self.tree.clone(),
        };
        let mut name = format!("n{}", self.random.below(40)).into_bytes();
        if self.random.one_in(10) {
            name.extend_from_slice(b"\xfe\n'\"*");
        }
        parent.join(OsString::from_vec(name))
    }

    fn content(&mut self) -> Vec<u8> {
        let length = match self.random.below(10) {
            0 => 0,
            1 => 300_000 + self.random.below(400_000),
            _ => self.random.below(9_000),
        };
        self.random.bytes(length as usize)
    }

    fn operation(&mut self) {
        let paths = self.paths();
        let fresh = self.new_path(&paths);
        let Some(path) = self.random.pick(&paths).cloned() else {
            return write(&self.tree, "first", "first");
        };
        let Ok(metadata) = path.symlink_metadata() else { return };
        match self.random.below(14) {
            0..=2 => {
                let content = self.content();
                remove(&fresh);
                fs::write(&fresh, content).expect("create a file");
            }
            3 if metadata.is_file() => fs::write(&path, self.content()).expect("overwrite in place"),
            4 if metadata.is_file() => {
                let temporary = self.tree.join(".replace.tmp");
                fs::write(&temporary, self.content()).expect("write a replacement");
                fs::rename(&temporary, &path).expect("replace a file");
            }
            5 if metadata.is_file() => {
                let mut content = fs::read(&path).expect("read a file");
                let at = self.random.below(content.len() as u64 + 1) as usize;
                content.splice(at..at, *b"inserted");
                fs::write(&path, content).expect("insert into a file");
            }
            6 if !metadata.is_dir() || self.random.one_in(3) => remove(&path),
            7 => {
                remove(&fresh);
                fs::create_dir(&fresh).expect("create a directory");
            }
            8 if !fresh.starts_with(&path) && !path.starts_with(&fresh) => {
                remove(&fresh);
                fs::rename(&path, &fresh).expect("rename");
            }
            9 => {
                remove(&path);
                match self.random.below(3) {
                    0 => fs::create_dir(&path).expect("turn into a directory"),
                    1 => symlink("../elsewhere", &path).expect("turn into a symlink"),
                    _ => fs::write(&path, self.content()).expect("turn into a file"),
                }
            }
            10 if !metadata.is_symlink() => {
                let open = if metadata.is_dir() { 0o711 } else { 0o640 } | self.random.below(8) as u32;
                // Root can read what a mode denies to the owner; a node's agent may not be root.
                let closed = [0o000, 0o111, 0o311, 0o444, 0o644];
                let closed = self.random.pick(&closed).copied().filter(|_| is_root() && self.closes);
                let mode = closed.filter(|_| self.random.one_in(2)).unwrap_or(open);
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            }
            11 if metadata.is_file() => {
                set_time(
                    &path,
                    1_600_000_000 + self.random.below(1_000_000),
                    self.random.below(1_000_000_000) as u32,
                );
            }
            12 if is_root() => {
                let owner = Some(self.random.below(3) as u32 * 1000);
                lchown(&path, owner, owner).expect("chown");
            }
            _ => {
                remove(&fresh);
                let target: &Path = path.file_name().map_or(Path::new("x"), Path::new);
                symlink(target, &fresh).expect("create a symlink");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle;

    #[test]
    fn one_seed_makes_one_tree() {
        let tree = || {
            let directory = tempfile::tempdir().expect("a directory");
            small_site(directory.path(), 60);
            let mut edits = Edits::new(directory.path(), 42);
            for _ in 0..60 {
                edits.round(4);
            }
            let mut facts = oracle::facts(directory.path());
            for fact in facts.values_mut() {
                fact.mtime = (0, 0);
            }
            oracle::fingerprint_of(&facts)
        };
        assert_eq!(tree(), tree());
    }
}
