//! Starts to write packs to disk while they still grow, so that the sync that counts finds little left to do.
//!
//! Through a descriptor of its own, because the kernel reports a failed write once to each: the sync of the
//! [`super::pack_writer::PackWriter`] still fails, whatever came of this one, which promises nothing.

use std::fs::File;
use std::path::Path;
use std::thread::JoinHandle;

use super::pack::PackId;

/// A pack is written out each time that it has grown by so much.
const STEP_BYTES: u64 = 24 * 1024 * 1024;

/// See the module.
#[derive(Default)]
pub(super) struct WriteBack {
    bytes: u64,
    running: Option<JoinHandle<()>>,
}

impl WriteBack {
    /// A pack has grown. Never waits: while one sync runs no other is started.
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
                // Garbage collection may have unlinked it; then there is nothing to write.
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
