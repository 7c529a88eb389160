//! Has the kernel write while content still arrives, so that the one `syncfs` before the switch finds little to do.
//!
//! What becomes durable early is nothing that anybody counts on, and an error that is met here is told again by the
//! descriptor that the activation syncs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::state::disk::{Dir, DiskError};

/// Content bytes after which the kernel is asked to write.
const BATCH_BYTES: u64 = 64 * 1024 * 1024;

/// See the module. Shared by the workers.
pub(crate) struct Writeback {
    directory: Dir,
    written: AtomicU64,
    thread: OnceLock<Option<Waiter>>,
}

/// The thread that waits for the kernel. It ends with the [`Writeback`], whose end waits for it.
struct Waiter {
    wake: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Drop for Writeback {
    fn drop(&mut self) {
        // What it waits for, the activation that follows would wait for.
        if let Some(Waiter { wake, thread }) = self.thread.take().flatten() {
            drop(wake);
            if thread.join().is_err() {
                tracing::error!("the thread that has content written has panicked");
            }
        }
    }
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
            && let Some(waiter) = self.thread.get_or_init(|| self.start())
        {
            // Where it still waits it goes once more: that is enough.
            let _ = waiter.wake.try_send(());
        }
    }

    fn start(&self) -> Option<Waiter> {
        let directory = self.directory.reopen().ok()?;
        let (wake, woken) = sync_channel(1);
        let run = move || {
            for () in woken {
                // An error is the activation's to tell.
                let _ = directory.sync_file_system();
            }
        };
        let thread = std::thread::Builder::new().name("writeback".to_owned()).spawn(run).ok()?;
        Some(Waiter { wake, thread })
    }
}
