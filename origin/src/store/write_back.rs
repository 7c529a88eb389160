//! Starts writing packs to disk while they still grow, so that the final sync has little left to do.
//!
//! Uses a separate descriptor, because the kernel reports a failed write once to each. The sync of the
//! [`super::pack_writer::PackWriter`] therefore still fails, whatever happened here. This write-back
//! guarantees nothing.

use std::fs::File;
use std::path::Path;
use std::thread::JoinHandle;

use super::pack::PackId;

/// Growth of the packs after which one is written out.
const STEP_BYTES: u64 = 24 * 1024 * 1024;

/// Background writer. See the module documentation.
#[derive(Default)]
pub(super) struct WriteBack {
    bytes: u64,
    running: Option<JoinHandle<()>>,
}

impl WriteBack {
    /// Records that a pack has grown. Never waits: while a sync is running, no other is started.
    pub(super) fn appended(&mut self, directory: &Path, pack: PackId, bytes: u64) {
        self.bytes += bytes;
        if self.bytes < STEP_BYTES || self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        self.bytes = 0;
        let path = directory.join(pack.file_name());
        let thread = std::thread::Builder::new().name("pack-write-back".into());
        self.running = thread
            .spawn(move || {
                // Garbage collection may have unlinked the pack; there is nothing to write then.
                let _ = File::open(path).and_then(|pack| pack.sync_data());
            })
            .ok();
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.join();
        }
    }
}
