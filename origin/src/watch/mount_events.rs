//! Calls back whenever the kernel's table of mounts changes.
//!
//! A thread polls /proc/self/mountinfo, which reports a change since the last poll as an exceptional
//! condition. Dropping this ends the thread.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

/// Callback on mount changes. See the module documentation.
#[derive(Debug)]
pub(super) struct MountEvents {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl MountEvents {
    /// Calls `changed` on a separate thread after every change of this process's mounts.
    pub(super) fn start(changed: impl Fn() + Send + 'static) -> io::Result<Self> {
        let table = File::open("/proc/self/mountinfo")?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("mount-events".into()).spawn(move || {
            loop {
                let mut polled = [PollFd::new(&table, PollFlags::PRI), PollFd::new(&*stopped, PollFlags::IN)];
                match poll(&mut polled, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => {
                        let error = io::Error::from(error);
                        return tracing::warn!(%error, "mounts are compared at each commit only");
                    }
                }
                let [table, stop] = polled.map(|polled| !polled.revents().is_empty());
                if stop {
                    return;
                }
                if table {
                    changed();
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for MountEvents {
    fn drop(&mut self) {
        let told = rustix::io::write(&self.stop, &1u64.to_ne_bytes()).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| told) {
            // The thread has already printed its panic.
            let _ = thread.join();
        }
    }
}
