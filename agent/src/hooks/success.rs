//! `ROOT/state/on-activate.succeeded`: the command with which the on-activate hook last succeeded, and the
//! generation that was live, with its path.
//!
//! An agent that starts with another command, or with none recorded, runs the hook for what is live. The same
//! if `--swap` has moved the live tree: a web server may be pointed at the path that it left. Healing
//! writes an empty file first, so that the hook runs for the healed files even if the process ends before it
//! notes that. Losing this file costs one more run of the hook, so a success is not synced.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Occasion;

const SUCCEEDED: &str = "on-activate.succeeded";

/// The content of the file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Success {
    generation: u64,
    root: String,
    tree: PathBuf,
    /// Hash of the command, which may contain secrets.
    command: String,
}

impl Success {
    fn of(occasion: &Occasion, command: &str) -> Self {
        let Occasion { generation, root, tree, .. } = occasion.clone();
        Self { generation, root, tree, command: blake3::hash(command.as_bytes()).to_hex().to_string() }
    }

    fn is_same_tree(&self, other: &Self) -> bool {
        self.root == other.root && self.tree == other.tree && self.command == other.command
    }
}

/// The file when a run of the hook begins. Held open, so that no later file has its inode number.
pub(super) struct Before(Option<File>);

impl Before {
    pub(super) fn open(state: &Path) -> Self {
        Self(File::open(path(state)).ok())
    }

    /// Whether nobody has doubted the run meanwhile.
    fn is_current(&self, state: &Path) -> bool {
        let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let now = fs::symlink_metadata(path(state)).ok().map(id);
        now == self.0.as_ref().and_then(|file| file.metadata().ok()).map(id)
    }
}

fn path(state: &Path) -> PathBuf {
    state.join(SUCCEEDED)
}

/// Keeps that the hook has succeeded, unless [`doubt`] came after the run began.
pub(super) fn keep(state: &Path, before: &Before, occasion: &Occasion, command: &str) -> io::Result<()> {
    if !before.is_current(state) {
        return Ok(());
    }
    replace(state, &serde_json::to_vec(&Success::of(occasion, command))?)
}

/// The live tree belongs to another generation from now on. A success for that tree counts for it.
pub(super) fn rename(state: &Path, live: &Occasion, command: &str) -> io::Result<()> {
    let renamed = Success::of(live, command);
    match load(state) {
        Some(known) if known.is_same_tree(&renamed) => replace(state, &serde_json::to_vec(&renamed)?),
        _ => Ok(()),
    }
}

fn replace(state: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path(state).with_extension("succeeded.tmp");
    fs::write(&temporary, content)?;
    fs::rename(temporary, path(state))
}

/// Whether the hook has succeeded with this command for what is live.
pub(super) fn has_succeeded(state: &Path, live: &Occasion, command: &str) -> bool {
    load(state) == Some(Success::of(live, command))
}

/// Generation for which the hook last succeeded, with any command; `None`: unknown.
pub(super) fn generation(state: &Path) -> Option<u64> {
    Some(load(state)?.generation)
}

fn load(state: &Path) -> Option<Success> {
    serde_json::from_slice(&fs::read(path(state)).ok()?).ok()
}

/// Makes the hook due again, durably, before files of the live tree are healed. `state` is `ROOT/state`.
pub(crate) fn doubt(state: &Path) -> io::Result<()> {
    replace(state, &[])?;
    File::open(state)?.sync_all()
}

/// Whether a process that has ended left the hook due by [`doubt`].
pub(super) fn is_doubted(state: &Path) -> bool {
    fs::metadata(path(state)).is_ok_and(|metadata| metadata.len() == 0)
}

/// The agent runs without the hook.
pub(super) fn forget(state: &Path) -> io::Result<()> {
    remove(&path(state))
}

/// Removes a file that may be missing.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(generation: u64) -> Occasion {
        let (root, label) = ("ab".repeat(32), String::new());
        Occasion { generation, root, label, previous: None, tree: "/tree".into(), live: "/live".into() }
    }

    #[test]
    fn a_success_counts_for_its_command_and_generation_alone() {
        let state = tempfile::tempdir().unwrap();
        let state = state.path();
        assert!(!has_succeeded(state, &live(5), "reload"));
        keep(state, &Before::open(state), &live(5), "reload").unwrap();
        assert!(has_succeeded(state, &live(5), "reload"));
        assert!(!has_succeeded(state, &live(6), "reload") && !has_succeeded(state, &live(5), "restart"));
        let moved = Occasion { tree: "/live".into(), ..live(5) };
        assert!(!has_succeeded(state, &moved, "reload"), "at another path");
        fs::write(path(state), "{").unwrap();
        assert!(!has_succeeded(state, &live(5), "reload"), "torn");
        forget(state).unwrap();
        assert!(!has_succeeded(state, &live(5), "reload") && !is_doubted(state));
    }

    #[test]
    fn a_run_that_began_before_files_were_healed_ends_no_doubt() {
        let state = tempfile::tempdir().unwrap();
        let state = state.path();
        for _ in 0..3 {
            let before = Before::open(state);
            doubt(state).unwrap();
            keep(state, &before, &live(5), "reload").unwrap();
            assert!(is_doubted(state) && !has_succeeded(state, &live(5), "reload"));
            keep(state, &Before::open(state), &live(5), "reload").unwrap();
            assert!(!is_doubted(state) && has_succeeded(state, &live(5), "reload"));
        }
    }
}
