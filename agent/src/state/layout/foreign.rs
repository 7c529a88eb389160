//! Frees names in ROOT that the agent needs and that somebody else has used.
//!
//! A link belongs to the agent and is removed. Anything else keeps its bytes and moves to `lost+found/0`,
//! because its generation is unknown. If this user may not move it there, it goes to the trash, or stays in
//! its directory under another name. A mount cannot be moved, which is an error.

use rustix::fs::FileType;

use super::{LOST_FOUND, Layout};
use crate::state::disk::{Dir, DiskError};

/// Number of names tried if a name is taken.
const NAMES_TRIED: u32 = 1_000;
/// Longest name to which a number is still appended, in bytes.
const NAME_MAX_BYTES: usize = 240;
/// Directory of `lost+found` for files that were in no tree.
const IN_NO_TREE: &[u8] = b"0";

impl Layout {
    /// Frees a name for a link: removes a link, and moves anything else away.
    pub fn free(&self, dir: &Dir, name: &[u8]) -> Result<(), DiskError> {
        self.free_but_for_link(dir, name)?;
        dir.unlink(name).map(drop)
    }

    /// Frees a name over which a link will be renamed. Keeps an existing link.
    pub fn free_but_for_link(&self, dir: &Dir, name: &[u8]) -> Result<(), DiskError> {
        match dir.stat(name)? {
            Some(stat) if stat.kind != FileType::Symlink => self.set_aside(dir, name),
            _ => Ok(()),
        }
    }

    /// Opens or creates a directory of the agent. A name that is not a directory is renamed in place first.
    pub fn own_dir(&self, dir: &Dir, name: &[u8]) -> Result<Dir, DiskError> {
        match dir.ensure_dir(name, 0o700) {
            Err(e) if e.is_no_directory() => {
                rename_free(dir, name, dir)?;
                warn(dir, name, "beside it");
                dir.ensure_dir(name, 0o700)
            }
            other => other,
        }
    }

    /// Opens or creates `lost+found`.
    pub fn lost_found(&self) -> Result<Dir, DiskError> {
        self.own_dir(&self.root, LOST_FOUND)
    }

    fn set_aside(&self, dir: &Dir, name: &[u8]) -> Result<(), DiskError> {
        let lost = self.lost_found().and_then(|lost| self.own_dir(&lost, IN_NO_TREE));
        if let Ok(lost) = lost
            && rename_free(dir, name, &lost)?
        {
            warn(dir, name, "lost+found/0");
            return Ok(());
        }
        match self.discard(dir, name) {
            Ok(()) => warn(dir, name, "the trash"),
            // The directory of another user may be renamed, but not moved to another parent.
            Err(e) if e.is_denied() => match rename_free(dir, name, dir)? {
                true => warn(dir, name, "beside it"),
                false => return Err(e),
            },
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

fn warn(dir: &Dir, name: &[u8], to: &str) {
    let path = dir.path().join(name.escape_ascii().to_string());
    tracing::warn!(path = %path.display(), to, "a foreign file under a name that syncd needs was moved away");
}

/// Moves a name to the first free name like it. Returns `false` if this user may not move it.
pub(crate) fn rename_free(from: &Dir, name: &[u8], to: &Dir) -> Result<bool, DiskError> {
    let short = name.get(..NAME_MAX_BYTES).unwrap_or(name);
    let others = (1..NAMES_TRIED).map(|n| [short, format!(".{n}").as_bytes()].concat());
    for free in std::iter::once(name.to_vec()).chain(others) {
        match from.rename_new(name, to, &free) {
            Ok(()) => return Ok(true),
            Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => {}
            // A foreign directory, and no right to change its parent.
            Err(e) if e.is_denied() => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}
