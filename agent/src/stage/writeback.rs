//! Has the kernel write while content still arrives, so that the one `syncfs` before the switch finds little to do.
//!
//! What becomes durable early is nothing that anybody counts on, and an error that is met here is told again by the
//! descriptor that the activation syncs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::disk::{Dir, DiskError};

/// Content bytes after which the kernel is asked to write.
const BATCH_BYTES: u64 = 64 * 1024 * 1024;

/// See the module. Shared by the workers.
pub(crate) struct Writeback {
    directory: Dir,
    written: AtomicU64,
    /// To the thread that waits for the kernel; it ends with this.
    thread: OnceLock<Option<SyncSender<()>>>,
}

impl Writeback {
    /// For the file system of `directory`.
    pub fn new(directory: &Dir) -> Result<Self, DiskError> {
        Ok(Self { directory: directory.reopen()?, written: AtomicU64::new(0), thread: OnceLock::new() })
    }

    /// So many bytes of content were written.
    pub fn wrote(&self, bytes: u64) {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if before / BATCH_BYTES != before.saturating_add(bytes) / BATCH_BYTES
            && let Some(thread) = self.thread.get_or_init(|| self.start())
        {
            // Where it still waits it goes once more: that is enough.
            let _ = thread.try_send(());
        }
    }

    fn start(&self) -> Option<SyncSender<()>> {
        let directory = self.directory.reopen().ok()?;
        let (sender, receiver) = sync_channel(1);
        let run = move || {
            for () in receiver {
                // An error is the activation's to tell.
                let _ = directory.sync_file_system();
            }
        };
        std::thread::Builder::new().name("writeback".to_owned()).spawn(run).ok()?;
        Some(sender)
    }
}
