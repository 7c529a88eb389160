//! Watches new directories at once, so that slow writers in them hold back publication.
//!
//! A scan watches each directory before it lists it, but in settle mode it comes only once the tree is quiet,
//! and writes into directories without a watch are not noticed. A thread therefore follows directories that
//! are made or moved into the tree, as far as `.syncdignore` has them published. Files in them may have been
//! opened before the watch was there: those that are still open for writing are looked for in /proc.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::fs::FileType;
use syncd_shared::TreePath;

use crate::scan::{OpenDirectory, ScanError};
use crate::watch::Watch;
use syncd_shared::ignore_rules::{IgnoreRules, is_own};

/// The thread. Dropping this ends it.
pub struct NewDirectories {
    watch: Arc<Watch>,
    thread: Option<JoinHandle<()>>,
}

impl NewDirectories {
    pub fn follow(watch: Arc<Watch>) -> io::Result<Self> {
        watch.collect_newcomers(true);
        let followed = watch.clone();
        let thread = std::thread::Builder::new().name("new-directories".into()).spawn(move || {
            while let Some(newcomers) = followed.newcomers() {
                let Some(root) = followed.root() else { continue };
                let has_files = newcomers.iter().fold(false, |has_files, path| {
                    // The scan reports what is wrong with a directory.
                    has_files | follow(&followed, &root, path).unwrap_or(true)
                });
                if has_files {
                    followed.look_for_writers(&newcomers);
                }
            }
        })?;
        Ok(Self { watch, thread: Some(thread) })
    }
}

impl Drop for NewDirectories {
    fn drop(&mut self) {
        self.watch.collect_newcomers(false);
        if let Some(thread) = self.thread.take() {
            // The thread has already printed its panic.
            let _ = thread.join();
        }
    }
}

/// Watches `path` and everything below it. Returns whether it is, or has, a file.
fn follow(watch: &Watch, root: &Path, path: &TreePath) -> Result<bool, ScanError> {
    let Some((parent, name)) = path.split_last() else { return Ok(false) };
    let Some(rules) = rules_of(root, &parent)? else { return Ok(false) };
    if is_own(&name) || rules.excludes(path, true) {
        return Ok(false);
    }
    let mut has_files = false;
    let mut waiting = vec![(path.clone(), rules)];
    while let Some((path, rules)) = waiting.pop() {
        let Some(directory) = OpenDirectory::open(root, &path)? else {
            has_files = true;
            continue;
        };
        watch.directory(&path);
        let listing = directory.list()?;
        let rules = match &listing.ignore_file {
            Some(file) => rules.with_file(&path, &file.bytes).map_err(ScanError::from)?,
            None => rules,
        };
        for listed in listing.names {
            has_files |= listed.stat.kind == FileType::RegularFile;
            let Ok(child) = path.join(&listed.name) else { continue };
            if listed.stat.is_directory() && !is_own(&listed.name) && !rules.excludes(&child, true) {
                waiting.push((child, rules.clone()));
            }
        }
    }
    Ok(has_files)
}

/// The rules for the names in a directory; `None` if nothing below it is published, or it is gone.
fn rules_of(root: &Path, directory: &TreePath) -> Result<Option<IgnoreRules>, ScanError> {
    let mut rules = IgnoreRules::default();
    let mut ancestors: Vec<TreePath> = Vec::new();
    let mut above = Some(directory.clone());
    while let Some(path) = above {
        above = path.split_last().map(|(parent, _)| parent);
        ancestors.push(path);
    }
    for path in ancestors.into_iter().rev() {
        if !path.is_root() && rules.excludes(&path, true) {
            return Ok(None);
        }
        let Some(open) = OpenDirectory::open(root, &path)? else { return Ok(None) };
        if let Some(file) = open.ignore_file()? {
            rules = rules.with_file(&path, &file.bytes)?;
        }
    }
    Ok(Some(rules))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let started = std::time::Instant::now();
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn new_directories_are_watched_without_a_scan_unless_they_are_ignored() {
        let base = tempfile::tempdir().unwrap();
        let (tree, data) = (base.path().join("tree"), base.path().join("data"));
        fs::create_dir_all(tree.join("moved/below")).unwrap();
        fs::rename(tree.join("moved"), base.path().join("moved")).unwrap();
        fs::write(tree.join(".syncdignore"), "cache/\n").unwrap();
        let watch = Arc::new(Watch::start(&tree, &data, Duration::from_secs(60)).unwrap());
        watch.prepare().unwrap();
        watch.directory(&TreePath::root());
        let _followed = NewDirectories::follow(watch.clone()).unwrap();
        fs::create_dir_all(tree.join("cache/below")).unwrap();
        fs::rename(base.path().join("moved"), tree.join("moved")).unwrap();
        fs::create_dir_all(tree.join("app/v1/lib")).unwrap();
        until("six directories are watched", || watch.watched() == 6);
        let _open = fs::File::create(tree.join("app/v1/lib/photo")).map(|mut file| {
            io::Write::write_all(&mut file, b"part").unwrap();
            file
        });
        let open = || watch.open_files(Duration::from_secs(60)).into_iter().map(|file| file.path.to_string());
        until("the write is noticed", || open().eq(["app/v1/lib/photo"]));
        // The file is open already when its directory comes.
        fs::create_dir(base.path().join("late")).unwrap();
        let mut late = fs::File::create(base.path().join("late/log")).unwrap();
        io::Write::write_all(&mut late, b"part").unwrap();
        fs::rename(base.path().join("late"), tree.join("late")).unwrap();
        until("the open file is found", || open().eq(["app/v1/lib/photo", "late/log"]));
        fs::rename(tree.join("late"), tree.join("later")).unwrap();
        drop(late);
        until("the close is noticed", || open().eq(["app/v1/lib/photo"]));
    }
}
