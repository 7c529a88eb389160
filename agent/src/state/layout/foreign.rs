//! What somebody else put under names that the agent makes itself.
//!
//! Links are the agent's own, and are removed. Everything else keeps its bytes: it moves to `lost+found/0`, where
//! nobody knows a generation for it. One that this user may not move there goes to the trash, or stays beside its
//! place under another name. A mount can't be moved, and is the error.

use rustix::fs::FileType;

use super::{LOST_FOUND, Layout};
use crate::state::disk::{Dir, DiskError};

/// Names that are tried where one is taken.
const NAMES_TRIED: u32 = 1_000;
/// Longest name that a number is still appended to, in bytes.
const NAME_MAX_BYTES: usize = 240;
/// Directory of `lost+found` for what was in no tree.
const IN_NO_TREE: &[u8] = b"0";

impl Layout {
    /// Frees a name for a link: a link is removed, anything else moves away.
    pub fn free(&self, dir: &Dir, name: &[u8]) -> Result<(), DiskError> {
        self.free_but_for_link(dir, name)?;
        dir.unlink(name).map(drop)
    }

    /// Frees a name that a link is about to be renamed over. A link stays.
    pub fn free_but_for_link(&self, dir: &Dir, name: &[u8]) -> Result<(), DiskError> {
        match dir.stat(name)? {
            Some(stat) if stat.kind != FileType::Symlink => self.set_aside(dir, name),
            _ => Ok(()),
        }
    }

    /// The directory of a name that the agent makes itself. What lies there and is none gets another name beside it.
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

    /// `lost+found`, made where it is missing.
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
            // A directory of another user's may get another name, and no other parent.
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
    tracing::warn!(path = %path.display(), to, "somebody else put this where syncd makes a name: moved away");
}

/// Moves a name under the first free name like it; `false`: this user may not.
pub(crate) fn rename_free(from: &Dir, name: &[u8], to: &Dir) -> Result<bool, DiskError> {
    let short = name.get(..NAME_MAX_BYTES).unwrap_or(name);
    let others = (1..NAMES_TRIED).map(|n| [short, format!(".{n}").as_bytes()].concat());
    for free in std::iter::once(name.to_vec()).chain(others) {
        match from.rename_new(name, to, &free) {
            Ok(()) => return Ok(true),
            Err(e) if e.source.kind() == std::io::ErrorKind::AlreadyExists => {}
            // A directory of somebody else's, and no right to change where it is.
            Err(e) if e.is_denied() => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}
