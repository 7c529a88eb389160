//! One process at a time: an advisory lock on DATA/lock, which says who holds it.
//!
//! The lock goes with the process, however it ends; the file stays and means nothing by itself.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::error::OpenStoreError;

/// How long a holder may keep a newcomer waiting before it is refused.
const PATIENCE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(20);

/// Held as long as the store is open.
#[derive(Debug)]
pub(super) struct DataLock {
    _file: File,
}

impl DataLock {
    /// Takes the lock, or says who has it. A command like `status` holds it for a moment only, so a short wait keeps
    /// one from failing a `serve` that starts at the same time.
    pub(super) fn acquire(data: &Path) -> Result<Self, OpenStoreError> {
        let path = data.join("lock");
        let io = |doing, source| OpenStoreError::Io { doing, path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            // What was planted in its place is not cut.
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
                // Who holds it is only for the message.
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
