//! Makes something durable on a thread while other work continues.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::state::disk::DiskError;

/// A sync in progress; `None`: it is done. Dropping waits for it.
#[derive(Debug, Default)]
pub(crate) struct Syncing(Option<JoinHandle<Result<(), DiskError>>>);

impl Syncing {
    /// Runs the sync on a thread, or directly if no thread can be started.
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
            // The caller that drops it already reports another error.
            let _ = thread.join();
        }
    }
}
