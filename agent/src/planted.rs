//! What tests may change in a debug build. A release build has none of it: the functions below are constants there.
//!
//! `SYNCD_PLANTED` names a bug that this process is to have, so that a test can see its oracle find it.
//! `SYNCD_HASTY` makes the pauses after errors short, so that a test can make some thousand errors.

use std::time::Duration;

/// A step of an activation that is done wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(debug_assertions), allow(dead_code))]
pub(crate) enum Bug {
    /// `syncfs` is left out.
    NoSyncfs,
    /// ROOT is not synced after the switch.
    NoRootSync,
    /// The switch comes before what it leads to is durable.
    SwapFirst,
    /// A sync that failed is made again, and its second answer believed.
    SyncAgain,
    /// The row of a spare is not gone durably before the tree is changed.
    RowLate,
    /// `previous` goes on naming a tree that is changed.
    PreviousStays,
    /// Trees that a failing on-activate hook may have left a web server on are taken like others.
    Unprotected,
}

/// Whether this process has this bug.
#[cfg(debug_assertions)]
pub(crate) fn has(bug: Bug) -> bool {
    static PLANTED: std::sync::LazyLock<Option<Bug>> =
        std::sync::LazyLock::new(|| match std::env::var("SYNCD_PLANTED").as_deref() {
            Ok("no-syncfs") => Some(Bug::NoSyncfs),
            Ok("no-root-sync") => Some(Bug::NoRootSync),
            Ok("swap-first") => Some(Bug::SwapFirst),
            Ok("sync-again") => Some(Bug::SyncAgain),
            Ok("row-late") => Some(Bug::RowLate),
            Ok("previous-stays") => Some(Bug::PreviousStays),
            Ok("unprotected") => Some(Bug::Unprotected),
            _ => None,
        });
    *PLANTED == Some(bug)
}

/// Whether this process has this bug.
#[cfg(not(debug_assertions))]
pub(crate) const fn has(_: Bug) -> bool {
    false
}

/// A pause after an error.
#[cfg(debug_assertions)]
pub(crate) fn pause(pause: Duration) -> Duration {
    static HASTY: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::env::var_os("SYNCD_HASTY").is_some());
    if *HASTY { pause / 50 } else { pause }
}

/// A pause after an error.
#[cfg(not(debug_assertions))]
pub(crate) const fn pause(pause: Duration) -> Duration {
    pause
}
