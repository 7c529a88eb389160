//! How many threads work side by side.

use std::sync::OnceLock;

/// What the machine, or the control group of this process, has room for; at least 1, at most `most`. Asked for once: the
/// answer takes some thirty system calls.
pub fn at_most(most: usize) -> usize {
    static AVAILABLE: OnceLock<usize> = OnceLock::new();
    let available = AVAILABLE.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
    (*available).min(most.max(1))
}
