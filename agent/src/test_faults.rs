//! Switches for tests. Without the feature `test-faults` the functions below are constants.
//!
//! `SYNCD_PLANTED` gives this process a bug, so that a test can see its oracle find the bug. `SYNCD_HASTY`
//! shortens the pauses after errors, so that a test can cause thousands of errors.

use std::time::Duration;

/// A defect in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "test-faults"), allow(dead_code))]
pub(crate) enum Bug {
    /// `syncfs` is not called.
    NoSyncfs,
    /// ROOT is not synced after the switch.
    NoRootSync,
    /// The switch comes before the new tree is durable.
    SwapFirst,
    /// A failed sync is repeated, and the second result is trusted.
    SyncAgain,
    /// A tree is changed before the removal of its spare row is durable.
    RowLate,
    /// `previous` still names a tree that is being changed.
    PreviousStays,
    /// The record does not name the tree that is about to be exchanged with `live`.
    NoComing,
    /// Trees that a web server may still serve, because the on-activate hook fails, are recycled like others.
    Unprotected,
    /// A refusal is in the record alone.
    RefusedInRecord,
    /// Collected files and their names are not made durable before the journal has them.
    UnsyncedUploads,
    /// Versions of collected files get their names before their contents are durable.
    UnsyncedVersions,
}

/// Whether this process has this bug.
#[cfg(feature = "test-faults")]
pub(crate) fn has(bug: Bug) -> bool {
    static PLANTED: std::sync::LazyLock<Option<Bug>> =
        std::sync::LazyLock::new(|| match std::env::var("SYNCD_PLANTED").as_deref() {
            Ok("no-syncfs") => Some(Bug::NoSyncfs),
            Ok("no-root-sync") => Some(Bug::NoRootSync),
            Ok("swap-first") => Some(Bug::SwapFirst),
            Ok("sync-again") => Some(Bug::SyncAgain),
            Ok("row-late") => Some(Bug::RowLate),
            Ok("previous-stays") => Some(Bug::PreviousStays),
            Ok("no-coming") => Some(Bug::NoComing),
            Ok("unprotected") => Some(Bug::Unprotected),
            Ok("refused-in-record") => Some(Bug::RefusedInRecord),
            Ok("unsynced-uploads") => Some(Bug::UnsyncedUploads),
            Ok("unsynced-versions") => Some(Bug::UnsyncedVersions),
            _ => None,
        });
    *PLANTED == Some(bug)
}

/// Whether this process has this bug: never without the feature.
#[cfg(not(feature = "test-faults"))]
pub(crate) const fn has(_: Bug) -> bool {
    false
}

/// Shortens a pause after an error if `SYNCD_HASTY` is set.
#[cfg(feature = "test-faults")]
pub(crate) fn pause(pause: Duration) -> Duration {
    static HASTY: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::env::var_os("SYNCD_HASTY").is_some());
    if *HASTY { pause / 50 } else { pause }
}

/// Returns the pause unchanged.
#[cfg(not(feature = "test-faults"))]
pub(crate) const fn pause(pause: Duration) -> Duration {
    pause
}
