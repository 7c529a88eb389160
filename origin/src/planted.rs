//! What tests may change in a debug build. A release build has none of it: the functions below are constants there.
//!
//! `SYNCD_PLANTED` names a bug that this process is to have, so that a test can see its oracle find it.
//! `SYNCD_HASTY` retires generations and collects garbage at once, which otherwise takes a week.

use std::time::Duration;

use crate::store::Retention;

/// Whether the index is committed without being durable: a commit is answered before its generation is safe.
#[cfg(debug_assertions)]
pub(crate) fn answers_early() -> bool {
    static EARLY: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::env::var("SYNCD_PLANTED").is_ok_and(|name| name == "answer-early"));
    *EARLY
}

/// Whether the index is committed without being durable.
#[cfg(not(debug_assertions))]
pub(crate) const fn answers_early() -> bool {
    false
}

#[cfg(debug_assertions)]
fn is_hasty() -> bool {
    static HASTY: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::env::var_os("SYNCD_HASTY").is_some());
    *HASTY
}

#[cfg(not(debug_assertions))]
const fn is_hasty() -> bool {
    false
}

/// When garbage is first collected after a start.
pub(crate) fn collect_first(usual: Duration) -> Duration {
    if is_hasty() { Duration::from_millis(300) } else { usual }
}

/// Which generations stay.
pub(crate) fn retention(usual: Retention) -> Retention {
    match is_hasty() {
        true => Retention { generations: 2, age: Duration::ZERO, ..usual },
        false => usual,
    }
}
