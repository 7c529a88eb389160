//! Restricts the store to one process with an advisory lock on DATA/lock, which contains the holder's process
//! ID.
//!
//! The kernel releases the lock when the process ends, in whatever way. The file remains and has no meaning
//! by itself.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::error::OpenStoreError;

/// Time to wait for another holder before giving up.
const PATIENCE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(20);

/// Held as long as the store is open.
#[derive(Debug)]
pub(super) struct DataLock {
    _file: File,
}

impl DataLock {
    /// Acquires the lock, or reports its holder. A command like `status` holds it only briefly, so that a
    /// short wait prevents failing a `serve` that starts at the same time.
    pub(super) fn acquire(data: &Path) -> Result<Self, OpenStoreError> {
        let path = data.join("lock");
        let io = |doing, source| OpenStoreError::Io { doing, path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            // Never truncates the target of a symlink planted in its place.
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&path)
            .map_err(|e| io("open", e))?;
        let deadline = Instant::now() + PATIENCE;
        let result = loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(RETRY),
                result => break result,
            }
        };
        match result {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // The holder's ID only improves the message.
                let _ = file.take(32).read_to_string(&mut text);
                return Err(OpenStoreError::Held { path: data.to_owned(), pid: text.trim().parse().ok() });
            }
            Err(e) => return Err(io("lock", e.into())),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|e| io("write", e))?;
        Ok(Self { _file: file })
    }
}
