//! Collected directories: where they are, and the links that lead to them.
//!
//! ROOT/collected belongs to the agent, and each directory in it to the owner of its files. A link has the
//! same owner unless the agent has `--owner`, so that Apache follows it under `SymLinksIfOwnerMatch`. A
//! directory is made before the first link to it, and is never removed by an update: its files are nobody
//! else's copy.

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;

use syncd_shared::collected::CollectedName;
use syncd_shared::{Kind, Metadata};

use super::{COLLECTED, Layout};
use crate::state::disk::{Dir, DiskError, Owners};

/// Mode of a new collected directory.
const MODE: u16 = 0o755;
/// Its mode before it has its owner.
const MODE_BEFORE: u32 = 0o700;

impl Layout {
    /// Target of the symlink that an entry is on this node; `None`: the entry is not a symlink.
    pub fn link_target<'a>(&self, kind: &'a Kind) -> Option<Cow<'a, [u8]>> {
        match kind {
            Kind::Symlink { target } => Some(Cow::Borrowed(target)),
            Kind::Collected { name } => {
                Some(Cow::Owned([&*self.collected_parent(), name.as_bytes()].concat()))
            }
            Kind::File { .. } | Kind::Directory { .. } => None,
        }
    }

    /// The collected directory that a symlink leads to.
    pub fn collected_at(&self, target: &[u8]) -> Option<CollectedName> {
        CollectedName::new(target.strip_prefix(&*self.collected_parent())?).ok()
    }

    fn collected_parent(&self) -> Vec<u8> {
        [self.path.as_os_str().as_bytes(), b"/", COLLECTED, b"/"].concat()
    }

    /// Opens ROOT/collected/NAME. A missing one is made with the owner in the manifest, whatever `--owner`
    /// says: that makes the replica unwritable for visitors, and this is where they write.
    pub fn ensure_collected(&self, name: &CollectedName, metadata: &Metadata) -> Result<Dir, DiskError> {
        let parent = self.root.ensure_dir(COLLECTED, 0o755)?;
        let dir = parent.ensure_dir(name.as_bytes(), MODE_BEFORE)?;
        let stat = dir.stat_self()?;
        if (stat.mode, stat.uid) != (MODE_BEFORE, rustix::process::geteuid().as_raw()) {
            return Ok(dir);
        }
        // It is new, or its making was interrupted.
        dir.set_own_metadata(&Metadata { mode: MODE, ..*metadata }, Owners::new(None))?;
        Ok(dir)
    }
}
