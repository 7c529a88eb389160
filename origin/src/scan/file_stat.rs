//! File attributes of one name, and when they can be trusted to reveal a later change.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Stat};
use syncd_shared::Timestamp;
use syncd_shared::directory::MODE_MASK;

/// The kernel's timestamps advance with its timer, every 1 to 10 ms: a second write within that time may
/// leave the same timestamp.
const STAMP_TICK: Duration = Duration::from_millis(20);
/// For file systems that store whole seconds (or, as FAT, every second one).
const STAMP_TICK_COARSE: Duration = Duration::from_secs(2);

/// Attributes of a file. Every change of the file changes at least one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub inode: u64,
}

impl Fingerprint {
    /// Whether a change after `at` might leave this fingerprint unchanged. Judged by ctime alone, which
    /// cannot be set.
    pub(super) fn is_racy(&self, at: SystemTime) -> bool {
        let tick = if self.ctime.nanoseconds == 0 { STAMP_TICK_COARSE } else { STAMP_TICK };
        let Ok(seconds) = u64::try_from(self.ctime.seconds) else { return false };
        let stamp = UNIX_EPOCH + Duration::new(seconds, self.ctime.nanoseconds);
        // A timestamp far in the future stems from before the clock was set back. A change now would be
        // visible.
        match at.duration_since(stamp) {
            Ok(age) => age < tick,
            Err(ahead) => ahead.duration() < tick,
        }
    }
}

/// Result of `lstat` for one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileStat {
    pub kind: FileType,
    pub fingerprint: Fingerprint,
    pub device: u64,
    /// Permission bits of the file system, including setuid and setgid.
    pub full_mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub links: u64,
}

impl FileStat {
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)] // The fields' types differ between architectures.
    pub(super) fn of(stat: &Stat) -> Self {
        let time = |seconds: i64, nanoseconds: u64| Timestamp {
            seconds,
            nanoseconds: u32::try_from(nanoseconds).unwrap_or(0).min(999_999_999),
        };
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            fingerprint: Fingerprint {
                size: u64::try_from(stat.st_size).unwrap_or(0),
                mtime: time(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
                ctime: time(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
                inode: stat.st_ino as u64,
            },
            device: stat.st_dev as u64,
            full_mode: (stat.st_mode & 0o7777) as u16,
            uid: stat.st_uid,
            gid: stat.st_gid,
            links: stat.st_nlink as u64,
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// The metadata of an entry for this file.
    pub(super) fn metadata(&self) -> syncd_shared::Metadata {
        let mode = if self.kind == FileType::Symlink { 0o777 } else { self.full_mode & MODE_MASK };
        syncd_shared::Metadata { mode, uid: self.uid, gid: self.gid, mtime: self.fingerprint.mtime }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(nanoseconds: u32) -> Fingerprint {
        let ctime = Timestamp { seconds: 1_000, nanoseconds };
        Fingerprint { size: 1, mtime: Timestamp::default(), ctime, inode: 1 }
    }

    #[test]
    fn a_stamp_is_trusted_once_the_clock_has_moved_on() {
        let at = |ms| UNIX_EPOCH + Duration::from_secs(1_000) + Duration::from_millis(ms);
        assert!(stamped(1_000_000).is_racy(at(1)));
        assert!(stamped(1_000_000).is_racy(at(0)));
        assert!(!stamped(1_000_000).is_racy(at(30)));
        assert!(stamped(0).is_racy(at(1_500)) && !stamped(0).is_racy(at(2_500)));
        assert!(!stamped(1_000_000).is_racy(UNIX_EPOCH + Duration::from_secs(900)));
    }
}
