//! Notices that a reference moves: a thread with watches on the few directories that its value is in.
//!
//! A reference may be a file, be among packed references, or lead to another one, and git replaces these
//! files by renames. The thread therefore watches directories, and after each event reads the reference.
//! Network file systems send no events, so it also reads every `--poll`.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use notify::event::EventKindMask;
use notify::{INotifyWatcher, RecursiveMode, WatchPathConfig, Watcher};
use tokio::sync::Notify;

use super::repository::{Id, Repository};

/// Watches one reference. Dropping this ends the thread.
pub(super) struct ReferenceWatch {
    shared: Arc<Shared>,
    wake: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    moved: AtomicBool,
    closed: AtomicBool,
    notify: Notify,
}

impl ReferenceWatch {
    pub(super) fn start(path: PathBuf, reference: String, poll: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        // One waiting event is enough: it stands for all that follow.
        let (wake, events) = sync_channel(1);
        let (of_thread, of_watcher) = (shared.clone(), wake.clone());
        let thread = std::thread::Builder::new().name("git-reference".into()).spawn(move || {
            let watcher = watcher(of_watcher)
                .inspect_err(|error| {
                    tracing::warn!(%error, every = ?poll, "no file system watcher: the reference is polled");
                })
                .ok();
            Watching { path, reference, poll, watcher, events, shared: of_thread }.run();
        })?;
        Ok(Self { shared, wake, thread: Some(thread) })
    }

    /// Waits until the reference may have moved. Cancel safe.
    pub(super) async fn moved(&self) {
        loop {
            let notified = self.shared.notify.notified();
            if self.shared.moved.load(Ordering::Acquire) {
                return;
            }
            notified.await;
        }
    }

    /// Forgets that it has moved. To be called before the reference is read.
    pub(super) fn forget(&self) {
        self.shared.moved.store(false, Ordering::Release);
    }
}

impl Drop for ReferenceWatch {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        // A full queue wakes the thread as well.
        let _ = self.wake.try_send(());
        if let Some(thread) = self.thread.take() {
            // The thread has already printed its panic.
            let _ = thread.join();
        }
    }
}

fn watcher(wake: SyncSender<()>) -> notify::Result<INotifyWatcher> {
    let config = notify::Config::default().with_follow_symlinks(false).with_event_kinds(EventKindMask::CORE);
    let woken = move |_: notify::Result<notify::Event>| match wake.try_send(()) {
        Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
    };
    INotifyWatcher::new(woken, config)
}

struct Watching {
    path: PathBuf,
    reference: String,
    poll: Duration,
    watcher: Option<INotifyWatcher>,
    events: Receiver<()>,
    shared: Arc<Shared>,
}

impl Watching {
    fn run(mut self) {
        let mut seen = None;
        loop {
            let found = self.look();
            if seen.replace(found) != Some(found) {
                self.shared.moved.store(true, Ordering::Release);
                self.shared.notify.notify_one();
            }
            match self.events.recv_timeout(self.poll) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.shared.closed.load(Ordering::Acquire) {
                return;
            }
        }
    }

    /// The commit; `None` if there is none. Watches are there before the value is read.
    fn look(&mut self) -> Option<Id> {
        let repository = Repository::open(&self.path).ok()?;
        for directory in repository.directories(&self.reference) {
            let config = WatchPathConfig::new(RecursiveMode::NonRecursive).with_dereference_symlinks(false);
            if let Some(watcher) = self.watcher.as_mut() {
                // A directory that does not exist is made in one that is watched.
                let _ = watcher.watch_with(&directory, config);
            }
        }
        repository.resolve(&self.reference).ok()
    }
}
