//! Copies the collected directories of DATA for a backup, while they are used.

use std::fs;
use std::path::Path;

use super::{CollectError, Collection, io_error};

impl Collection {
    /// Copies index and contents of one moment to the data directory `to`. The line is left out: an origin
    /// that serves the copy begins another one. `copied` receives the bytes of each content. Blocks.
    pub fn backup(&self, to: &Path, copied: &mut dyn FnMut(u64)) -> Result<(), CollectError> {
        // Until the contents of the index's copy are copied too.
        let _kept = self.shared.removals.hold();
        let own = to.join("collected");
        fs::create_dir_all(&own).map_err(io_error("create", &own))?;
        let contents = self.shared.index.copy_to(&own.join("index.redb"))?;
        self.shared.contents.copy_to(&contents, &own, copied)
    }
}
