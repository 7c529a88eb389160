//! Tunes glibc malloc before `main` and returns free heap memory to the kernel on request. Applies to every
//! program that links this crate.
//!
//! By default glibc gives threads up to eight arenas per core and keeps freed memory in each of them. An
//! origin that served first syncs held 132 MB with 50 MB in use; MEM-1 in
//! docs/decisions has the measurements.
//! Without glibc nothing is tuned or returned.

use std::time::{Duration, Instant};

#[allow(unsafe_code)]
mod settings {
    // SAFETY: the signature matches settings.c. The function takes no arguments and, like malloc_trim(3), may
    // be called from any thread at any time.
    unsafe extern "C" {
        pub(super) safe fn syncd_allocator_give_back();
    }
}

/// Shorter work leaves little free memory behind.
const LONG: Duration = Duration::from_millis(250);

/// Returns free memory in the allocator's arenas to the kernel, including gaps between used blocks, which
/// glibc would keep. Blocks for 4 to 20 ms after 50 to 100 MiB; allocations in other threads wait meanwhile.
pub fn give_back() {
    settings::syncd_allocator_give_back();
}

/// Calls [`give_back`] unless the work since `started` was too short to justify its cost.
pub fn give_back_after(started: Instant) {
    if started.elapsed() >= LONG {
        give_back();
    }
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use super::*;

    const BLOCK_BYTES: usize = 4096;

    fn resident_bytes() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    #[test]
    fn what_is_free_between_what_is_in_use_goes_back() {
        let mut blocks: Vec<Vec<u8>> = (0..16 * 1024).map(|n| vec![n as u8 | 1; BLOCK_BYTES]).collect();
        let mut number = 0;
        blocks.retain(|_| {
            number += 1;
            number % 64 == 0
        });
        let kept = resident_bytes();
        give_back_after(Instant::now());
        assert!(resident_bytes() > kept - kept / 4, "too short to be worth it");
        give_back();
        let left = resident_bytes();
        assert!(left + 48 * 1024 * 1024 < kept, "{kept} bytes before, {left} after");
        assert_eq!(blocks.len(), 256);
    }
}
