//! Waits for conditions with a deadline. No test sleeps for luck.

use std::time::{Duration, Instant};

/// Long enough for a debug build on a busy machine. A condition that holds is noticed within milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `condition` returns a value. Panics after [`PATIENCE`] with the description `what`.
#[track_caller]
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, condition)
}

/// Polls until `condition` returns a value. Panics after `limit` with the description `what`.
#[track_caller]
pub fn within<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} in vain for: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Polls until `check` succeeds. Panics after [`PATIENCE`] with the last complaint.
#[track_caller]
pub fn until_ok<T>(what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        match check() {
            Ok(value) => return value,
            Err(complaint) => {
                assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for: {what}: {complaint}");
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
