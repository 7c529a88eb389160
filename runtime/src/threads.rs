//! The number of threads that work in parallel.

use std::sync::OnceLock;

/// Threads that the machine, or this process's control group, has room for: between 1 and `most`. Queried
/// once, because the query takes some thirty system calls.
pub fn at_most(most: usize) -> usize {
    static AVAILABLE: OnceLock<usize> = OnceLock::new();
    let available = AVAILABLE.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
    (*available).min(most.max(1))
}
