//! Starts writeback while content still arrives, so that the single `syncfs` before the switch has little
//! left to do.
//!
//! Nothing relies on the early writes. An error that occurs here is reported again through the descriptor
//! that the activation syncs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::state::disk::{Dir, DiskError};

/// Content bytes between two requests to the kernel.
const BATCH_BYTES: u64 = 64 * 1024 * 1024;

/// Shared by the workers.
pub(crate) struct Writeback {
    directory: Dir,
    written: AtomicU64,
    thread: OnceLock<Option<Waiter>>,
}

/// The thread that waits for the kernel. Dropping [`Writeback`] joins it.
struct Waiter {
    wake: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Drop for Writeback {
    fn drop(&mut self) {
        // The activation that follows would have to wait for the same writes.
        if let Some(Waiter { wake, thread }) = self.thread.take().flatten() {
            drop(wake);
            if thread.join().is_err() {
                tracing::error!("the thread that starts writeback has panicked");
            }
        }
    }
}

impl Writeback {
    /// Works on the file system of `directory`.
    pub fn new(directory: &Dir) -> Result<Self, DiskError> {
        Ok(Self { directory: directory.reopen()?, written: AtomicU64::new(0), thread: OnceLock::new() })
    }

    /// Notes that content bytes were written.
    pub fn wrote(&self, bytes: u64) {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if before / BATCH_BYTES != before.saturating_add(bytes) / BATCH_BYTES
            && let Some(waiter) = self.thread.get_or_init(|| self.start())
        {
            // If a request is pending already, that one is enough.
            let _ = waiter.wake.try_send(());
        }
    }

    fn start(&self) -> Option<Waiter> {
        let directory = self.directory.reopen().ok()?;
        let (wake, woken) = sync_channel(1);
        let run = move || {
            for () in woken {
                // The activation reports errors.
                let _ = directory.sync_file_system();
            }
        };
        let thread = std::thread::Builder::new().name("writeback".to_owned()).spawn(run).ok()?;
        Some(Waiter { wake, thread })
    }
}
