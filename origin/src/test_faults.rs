//! Behaviour that tests can change. Without the feature `test-faults` these functions are constants.
//!
//! `SYNCD_PLANTED` names a bug for this process, with which a test proves that its checks detect the bug.
//! `SYNCD_HASTY` retires generations and collects garbage at once, which otherwise takes a week.

use std::time::Duration;

use crate::store::Retention;

/// Whether the index is committed without durability, so that a commit is answered before its generation is
/// safe.
#[cfg(feature = "test-faults")]
pub(crate) fn answers_early() -> bool {
    static EARLY: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::env::var("SYNCD_PLANTED").is_ok_and(|name| name == "answer-early"));
    *EARLY
}

/// Whether the index is committed without durability.
#[cfg(not(feature = "test-faults"))]
pub(crate) const fn answers_early() -> bool {
    false
}

/// Whether uploaded contents are acknowledged without a sync.
#[cfg(feature = "test-faults")]
pub(crate) fn leaves_contents_unsynced() -> bool {
    static UNSYNCED: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        std::env::var("SYNCD_PLANTED").is_ok_and(|name| name == "unsynced-contents")
    });
    *UNSYNCED
}

/// Whether uploaded contents are acknowledged without a sync.
#[cfg(not(feature = "test-faults"))]
pub(crate) const fn leaves_contents_unsynced() -> bool {
    false
}

#[cfg(feature = "test-faults")]
fn is_hasty() -> bool {
    static HASTY: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::env::var_os("SYNCD_HASTY").is_some());
    *HASTY
}

#[cfg(not(feature = "test-faults"))]
const fn is_hasty() -> bool {
    false
}

/// Delay of the first garbage collection after a start.
pub(crate) fn collect_first(usual: Duration) -> Duration {
    if is_hasty() { Duration::from_millis(300) } else { usual }
}

/// Retention of generations.
pub(crate) fn retention(usual: Retention) -> Retention {
    match is_hasty() {
        true => Retention { generations: 2, age: Duration::ZERO, ..usual },
        false => usual,
    }
}
