//! Something that a thread has the disk write while others go on.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::state::disk::DiskError;

/// Being made durable; `None`: it is durable. Dropped, it is waited for.
#[derive(Debug, Default)]
pub(crate) struct Syncing(Option<JoinHandle<Result<(), DiskError>>>);

impl Syncing {
    /// Has it done by a thread, or at once where there is none to be had.
    pub fn start(run: impl Fn() -> Result<(), DiskError> + Send + Sync + 'static) -> Result<Self, DiskError> {
        let shared = Arc::new(run);
        let thread = shared.clone();
        match std::thread::Builder::new().name("syncing".into()).spawn(move || thread()) {
            Ok(thread) => Ok(Self(Some(thread))),
            Err(_) => shared().map(|()| Self(None)),
        }
    }

    /// Waits until it is durable.
    pub fn wait(mut self) -> Result<(), DiskError> {
        let done = self.0.take().map(JoinHandle::join);
        done.map_or(Ok(()), |joined| joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // Whoever drops it has an error of its own to tell.
            let _ = thread.join();
        }
    }
}
