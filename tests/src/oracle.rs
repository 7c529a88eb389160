//! Compares two trees with tools that share no code with syncd: `rsync -anic --delete`, and a walk that also
//! finds what rsync does not report (nanoseconds, hard links between names).

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::process::tool;

/// setuid and setgid are not replicated; the other bits of the mode are.
const MODE_MASK: u32 = 0o1777;

/// Properties of a name that are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// `f`, `d`, `l`, or `?` for kinds that are never replicated.
    pub kind: char,
    /// Permission bits and sticky bit; 0 for symlinks.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Size of a file in bytes.
    pub size: u64,
    /// Symlink target, or BLAKE3 hash of the content.
    pub content: Vec<u8>,
}

/// Everything in a tree, by path. The tree itself has the empty path.
pub type Facts = BTreeMap<PathBuf, Fact>;

/// Walks a tree. Panics if that fails. Follows no symlinks, except `tree` itself.
#[track_caller]
pub fn facts(tree: &Path) -> Facts {
    try_facts(tree).unwrap_or_else(|error| panic!("walk {}: {error}", tree.display()))
}

/// Like [`facts`], for trees that may change meanwhile.
pub fn try_facts(tree: &Path) -> std::io::Result<Facts> {
    let tree = tree.canonicalize()?;
    let mut facts = Facts::new();
    for item in WalkDir::new(&tree).sort_by_file_name() {
        let item = item?;
        let metadata = item.metadata()?;
        let kind = match metadata.file_type() {
            t if t.is_file() => 'f',
            t if t.is_dir() => 'd',
            t if t.is_symlink() => 'l',
            _ => '?',
        };
        let content = match kind {
            'f' => blake3::hash(&fs::read(item.path())?).as_bytes().to_vec(),
            'l' => fs::read_link(item.path())?.into_os_string().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        let path = item.path().strip_prefix(&tree).map(Path::to_path_buf).unwrap_or_default();
        facts.insert(
            path,
            Fact {
                kind,
                mode: if kind == 'l' { 0 } else { metadata.mode() & MODE_MASK },
                owner: (metadata.uid(), metadata.gid()),
                mtime: (metadata.mtime(), metadata.mtime_nsec()),
                size: if kind == 'f' { metadata.len() } else { 0 },
                content,
            },
        );
    }
    Ok(facts)
}

/// Hash of [`facts`]: trees with the same fingerprint are equal in everything that is replicated.
#[track_caller]
pub fn fingerprint(tree: &Path) -> String {
    fingerprint_of(&facts(tree))
}

/// Fingerprint of a tree that was already walked.
pub fn fingerprint_of(facts: &Facts) -> String {
    let mut hasher = blake3::Hasher::new();
    for (path, fact) in facts {
        hasher.update(path.as_os_str().as_bytes());
        hasher.update(format!("\0{fact:?}\0").as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// Restores the modes that an agent without privileges has changed for its own access.
pub fn close_lifted(expected: &Facts, actual: &mut Facts) {
    for (path, fact) in actual {
        let lifts = match fact.kind {
            'd' => 0o700,
            'f' => 0o600,
            _ => continue,
        };
        if let Some(meant) = expected.get(path)
            && fact.mode == meant.mode | lifts
        {
            fact.mode = meant.mode;
        }
    }
}

/// At most a dozen differences, one for each line; empty if there are none.
pub fn differences(expected: &Facts, actual: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, fact) in expected {
        match actual.get(path) {
            None => lines.push(format!("missing: {path:?}")),
            Some(other) if other != fact => {
                lines.push(format!("differs: {path:?}: expected {} got {}", brief(fact), brief(other)));
            }
            Some(_) => {}
        }
    }
    lines.extend(actual.keys().filter(|p| !expected.contains_key(*p)).map(|p| format!("surplus: {p:?}")));
    let count = lines.len();
    if count > 12 {
        lines.truncate(12);
        lines.push(format!("... {count} differences"));
    }
    lines
}

fn brief(fact: &Fact) -> String {
    let content: String = fact.content.iter().take(6).map(|b| format!("{b:02x}")).collect();
    format!(
        "{}{:04o} {}:{} {}.{:09} {}B {content}",
        fact.kind, fact.mode, fact.owner.0, fact.owner.1, fact.mtime.0, fact.mtime.1, fact.size
    )
}

/// Lines of `rsync -anic --delete EXPECTED/ ACTUAL/`: the changes that rsync would make.
#[track_caller]
pub fn rsync_differences(expected: &Path, actual: &Path) -> String {
    let slashed = |path: &Path| {
        let mut text: OsString = path.as_os_str().to_os_string();
        text.push("/");
        text
    };
    tool("rsync", [OsString::from("-anic"), "--delete".into(), slashed(expected), slashed(actual)]).stdout
}

/// Panics unless both oracles find `replica` equal to `expected` in content and metadata, and every name of
/// it is a separate file.
#[track_caller]
pub fn assert_same(expected: &Path, replica: &Path) {
    let rsync = rsync_differences(expected, replica);
    assert!(rsync.is_empty(), "rsync would change {} so:\n{rsync}", replica.display());
    let differences = differences(&facts(expected), &facts(replica));
    assert!(differences.is_empty(), "{} differs:\n{}", replica.display(), differences.join("\n"));
    assert_no_shared_inode(replica);
}

/// Panics if two names of one tree are the same file, because an edit of one would change the other.
#[track_caller]
pub fn assert_no_shared_inode(tree: &Path) {
    let tree = tree.canonicalize().expect("resolve a tree");
    let mut seen: HashMap<(u64, u64), PathBuf> = HashMap::new();
    for item in WalkDir::new(&tree) {
        let item = item.expect("walk a tree");
        let metadata = item.metadata().expect("stat in a tree");
        if metadata.is_file()
            && let Some(other) = seen.insert((metadata.dev(), metadata.ino()), item.path().to_path_buf())
        {
            panic!("{} and {} are one file", other.display(), item.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn pair() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fs::create_dir_all(a.join("d/empty")).expect("directories");
        fs::write(a.join("d/file"), "content").expect("a file");
        std::os::unix::fs::symlink("file", a.join("d/link")).expect("a symlink");
        tool("cp", [OsString::from("-a"), a.clone().into(), b.clone().into()]);
        (directory, a, b)
    }

    #[test]
    fn a_copy_is_the_same() {
        let (_guard, a, b) = pair();
        assert_same(&a, &b);
        assert_eq!(fingerprint(&a), fingerprint(&b));
    }

    #[test]
    fn every_kind_of_difference_is_seen() {
        type Change = (&'static str, fn(&Path));
        let changes: [Change; 8] = [
            ("content, same size and time", |b| {
                let time = fs::metadata(b.join("d/file")).and_then(|m| m.modified()).expect("a time");
                fs::write(b.join("d/file"), "CONTENT").expect("write");
                fs::File::options()
                    .write(true)
                    .open(b.join("d/file"))
                    .and_then(|f| f.set_modified(time))
                    .expect("set the time");
            }),
            ("mode", |b| {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(b.join("d/file"), fs::Permissions::from_mode(0o600)).expect("chmod");
            }),
            ("nanoseconds", |b| {
                let file = fs::File::options().write(true).open(b.join("d/file")).expect("open");
                let time = file.metadata().and_then(|m| m.modified()).expect("a time");
                file.set_modified(time + Duration::from_nanos(1)).expect("set the time");
            }),
            ("directory time", |b| {
                fs::File::open(b.join("d/empty"))
                    .and_then(|f| f.set_modified(UNIX_EPOCH))
                    .expect("set the time");
            }),
            ("symlink target", |b| {
                fs::remove_file(b.join("d/link")).expect("remove");
                std::os::unix::fs::symlink("other", b.join("d/link")).expect("symlink");
            }),
            ("missing empty directory", |b| fs::remove_dir(b.join("d/empty")).expect("rmdir")),
            ("surplus", |b| fs::write(b.join("new"), "").expect("write")),
            ("type", |b| {
                fs::remove_file(b.join("d/file")).expect("remove");
                fs::create_dir(b.join("d/file")).expect("mkdir");
            }),
        ];
        for (name, change) in changes {
            let (_guard, a, b) = pair();
            change(&b);
            assert!(!differences(&facts(&a), &facts(&b)).is_empty(), "{name}");
            assert!(std::panic::catch_unwind(|| assert_same(&a, &b)).is_err(), "{name}");
        }
    }

    #[test]
    fn only_modes_that_are_lifted_for_the_owner_are_forgiven() {
        use std::os::unix::fs::PermissionsExt;
        let (_guard, a, b) = pair();
        let close = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
        };
        close(&a.join("d/file"), 0o000);
        close(&a.join("d/empty"), 0o111);
        let differ = |file, directory| {
            close(&b.join("d/file"), file);
            close(&b.join("d/empty"), directory);
            let (expected, mut actual) = (facts(&a), facts(&b));
            close_lifted(&expected, &mut actual);
            differences(&expected, &actual).len()
        };
        assert_eq!(differ(0o600, 0o711), 0);
        assert_eq!(differ(0o644, 0o755), 2);
        assert_eq!(differ(0o400, 0o311), 2);
    }

    #[test]
    fn two_names_of_one_file_are_found() {
        let (_guard, _a, b) = pair();
        fs::hard_link(b.join("d/file"), b.join("again")).expect("link");
        assert!(std::panic::catch_unwind(|| assert_no_shared_inode(&b)).is_err());
    }
}
