//! Stops a test before any chosen change to the disk, as a kill would.

use rustix::io::Errno;

#[cfg(not(test))]
#[inline]
pub(crate) fn point() -> Result<(), Errno> {
    Ok(())
}

#[cfg(test)]
thread_local! {
    static LEFT: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// Called before every change that this thread makes to the disk. All calls after the chosen one fail, as
/// if the process were dead.
#[cfg(test)]
pub(crate) fn point() -> Result<(), Errno> {
    match LEFT.get() {
        None => Ok(()),
        Some(0) => Err(Errno::OWNERDEAD),
        Some(n) => {
            LEFT.set(Some(n - 1));
            Ok(())
        }
    }
}

/// Allows `changes` more changes; `None`: all.
#[cfg(test)]
pub(crate) fn arm(changes: Option<u64>) {
    LEFT.set(changes);
}
