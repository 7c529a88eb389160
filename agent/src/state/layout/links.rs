//! The links in ROOT: `live`, `previous` and `generations/N`, and the exchange with a `live` that is the tree
//! itself.
//!
//! A link is prepared under another name and renamed into place, so readers see the old one or the new one.

use rustix::fs::FileType;

use super::{LIVE, LIVE_NEXT, LIVE_SLOT, Layout, PREVIOUS, PREVIOUS_NEXT, generation_target, slot_name};
use crate::state::disk::DiskError;
use crate::state::number;
use crate::state::swap::Standing;
use crate::test_faults::{self, Bug};

impl Layout {
    /// Slot that `live` is, or names as a link made by syncd. An empty directory is no slot.
    pub fn live_slot(&self) -> Result<Option<u64>, DiskError> {
        match Standing::of(&self.root)? {
            Standing::Tree => Ok(Some(LIVE_SLOT)),
            _ => self.linked_slot(LIVE),
        }
    }

    /// Whether `live` is a directory.
    pub fn live_tree_stands(&self) -> Result<bool, DiskError> {
        Ok(self.root.stat(LIVE)?.is_some_and(|stat| stat.kind == FileType::Directory))
    }

    /// Slot that a link in ROOT names.
    pub fn linked_slot(&self, name: &[u8]) -> Result<Option<u64>, DiskError> {
        match self.root.stat(name)? {
            Some(stat) if stat.kind == FileType::Symlink => {
                Ok(self.root.read_link(name)?.strip_prefix(b"slots/").and_then(number))
            }
            _ => Ok(None),
        }
    }

    /// Creates new links under their temporary names. Creates the one for `previous` only if there will be
    /// one.
    pub fn prepare_links(&self, live: u64, previous: Option<u64>) -> Result<(), DiskError> {
        self.prepare_link(live, LIVE_NEXT)?;
        previous.map_or(Ok(()), |slot| self.prepare_link(slot, PREVIOUS_NEXT))
    }

    /// Points `previous` to a slot. Durable with the next sync of ROOT.
    pub fn point_previous(&self, slot: u64) -> Result<(), DiskError> {
        self.prepare_link(slot, PREVIOUS_NEXT)?;
        self.put_link(PREVIOUS_NEXT, PREVIOUS)
    }

    fn prepare_link(&self, slot: u64, name: &[u8]) -> Result<(), DiskError> {
        self.free(&self.root, name)?;
        self.root.symlink(format!("slots/{slot}").as_bytes(), name)
    }

    fn put_link(&self, prepared: &[u8], name: &[u8]) -> Result<(), DiskError> {
        self.free_but_for_link(&self.root, name)?;
        self.root.rename(prepared, &self.root, name)
    }

    /// Renames the prepared links over `previous` and then `live`, durably. In this order, a page of the old
    /// tree always finds its files through `previous`.
    pub fn switch_links(&self, previous: bool) -> Result<(), DiskError> {
        if previous {
            self.put_link(PREVIOUS_NEXT, PREVIOUS)?;
        }
        if self.root.stat(LIVE)?.is_some_and(|s| s.kind == FileType::Directory) {
            // The directory is empty, unless somebody has created it since ROOT was opened.
            let _ = self.root.remove_dir(LIVE);
        }
        self.put_link(LIVE_NEXT, LIVE)?;
        if test_faults::has(Bug::NoRootSync) {
            return Ok(());
        }
        self.root.sync_names()
    }

    /// Inode number of `live`, which is not followed; `None`: it does not exist.
    pub fn live_inode(&self) -> Result<Option<u64>, DiskError> {
        Ok(self.root.stat(LIVE)?.map(|stat| stat.inode))
    }

    /// Frees the name `live` if no tree of syncd's has it.
    pub fn free_live(&self) -> Result<(), DiskError> {
        if self.live_tree_stands()? {
            // Empty, unless somebody made it since ROOT was opened.
            let _ = self.root.remove_dir(LIVE);
        }
        self.free(&self.root, LIVE)
    }

    /// Exchanges `live` with `slots/K`, or renames that if there is no `live`. Removes a link that was at
    /// `live`. Durable after [`Self::sync_exchange`].
    pub fn exchange_live(&self, slot: u64) -> Result<(), DiskError> {
        let name = slot_name(slot);
        match self.live_inode()? {
            None => self.slots.rename_new(&name, &self.root, LIVE)?,
            Some(_) => self.slots.exchange(&name, &self.root, LIVE)?,
        }
        self.discard_link(&name)
    }

    /// Makes the names of an exchange durable.
    pub fn sync_exchange(&self) -> Result<(), DiskError> {
        if test_faults::has(Bug::NoRootSync) {
            return Ok(());
        }
        self.slots.sync_names()?;
        self.root.sync_names()
    }

    /// Makes the names of an exchange durable if their sync failed. Both directories are changed first: a
    /// second sync alone would succeed without writing anything.
    pub fn sync_exchange_again(&self) -> Result<(), DiskError> {
        for dir in [&self.slots, &self.root] {
            self.free(dir, LIVE_NEXT)?;
            // Recovery removes such a link.
            dir.symlink(b"slots/0", LIVE_NEXT)?;
            dir.unlink(LIVE_NEXT)?;
            dir.sync_names()?;
        }
        Ok(())
    }

    /// Removes a name in `slots/` if it is a link that an exchange with `live` left.
    pub fn discard_link(&self, name: &[u8]) -> Result<(), DiskError> {
        match self.slots.stat(name)? {
            Some(stat)
                if stat.kind == FileType::Symlink && self.slots.read_link(name)?.starts_with(b"slots/") =>
            {
                self.slots.unlink(name).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Points `generations/N` to a slot; `None`: removes the link. Not durable, because it is only for
    /// people. If a foreign mount occupies the name, there is no link.
    pub fn link_generation(&self, number: u64, slot: Option<u64>) -> Result<(), DiskError> {
        let name = number.to_string().into_bytes();
        let linked = match slot {
            Some(slot) => self
                .free(&self.generations, &name)
                .and_then(|()| self.generations.symlink(&generation_target(slot), &name)),
            // Only links are removed here.
            None => match self.generations.stat(&name)? {
                Some(stat) if stat.kind == FileType::Symlink => self.generations.unlink(&name).map(drop),
                _ => Ok(()),
            },
        };
        match linked {
            Err(error) if error.is_denied() => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(generation = number, error, "the generation has no link below generations/");
                Ok(())
            }
            other => other,
        }
    }
}
