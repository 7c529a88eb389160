//! Contents that earlier updates left in `staging/incoming`: counted, kept if the next update wants them,
//! otherwise removed.

use std::collections::HashSet;

use syncd_shared::Kind;
use syncd_shared::diff::{Change, Comparison};

use super::{Incoming, SMALL_DIRECTORY_BYTES, content_named, lock};
use crate::build::StageError;
use crate::build::space::Demand;
use crate::state::disk::DiskError;
use crate::state::layout::{INCOMING, Layout};
use crate::state::record::Record;

impl Incoming {
    /// Bytes and files in the directory, verified or not.
    pub fn present(&self) -> Result<Demand, DiskError> {
        let mut present = Demand::default();
        for fan in self.dir.list()? {
            let fan_dir = self.dir.open_dir(&fan.name)?;
            for file in fan_dir.list()? {
                let size = fan_dir.stat(&file.name)?.map_or(0, |s| s.size);
                present.bytes = present.bytes.saturating_add(size);
                present.inodes = present.inodes.saturating_add(1);
            }
        }
        Ok(present)
    }

    /// Removes content that `comparison` does not bring: leftovers of another target.
    pub fn purge(&self, layout: &Layout, comparison: &Comparison<&Record>) -> Result<(), StageError> {
        let mut there = HashSet::new();
        for fan in self.dir.list()? {
            let names = self.dir.open_dir(&fan.name)?.list()?;
            there.extend(names.iter().filter_map(|file| content_named(&file.name)));
        }
        if there.is_empty() {
            return Ok(());
        }
        comparison.each(|change| {
            if let Change::Added { entry, .. } | Change::Modified { to: entry, .. } = change
                && let Kind::File { content, .. } = entry.kind
            {
                there.remove(&content);
            }
            true
        })?;
        for hash in there {
            layout.remove(self.fan(hash)?, hash.to_string().as_bytes())?;
            lock(&self.arrived).remove(&hash);
        }
        Ok(())
    }

    /// Removes everything in the directory. A directory never shrinks on ext4, and listing one that once held
    /// many names costs milliseconds from then on. So no directory is kept, and large ones are moved to the
    /// trash.
    pub fn clear(self, layout: &Layout) -> Result<(), DiskError> {
        for fan in self.dir.list()? {
            let fan_dir = self.dir.open_dir(&fan.name)?;
            if fan_dir.stat_self()?.size > SMALL_DIRECTORY_BYTES {
                return layout.discard(&layout.staging, INCOMING);
            }
            for file in fan_dir.list()? {
                layout.remove(&fan_dir, &file.name)?;
            }
            self.dir.remove_dir(&fan.name)?;
        }
        Ok(())
    }
}
