//! Settings of the C library's allocator, applied before `main` in every program that links this crate, and what it keeps
//! given back.
//!
//! glibc gives up to eight arenas a core to threads, and keeps what is freed in each: an origin that served first syncs
//! had 132 MB of which 50 were in use. docs/decisions.md has what was measured. Elsewhere than with glibc nothing is set,
//! and nothing given back.

use std::time::{Duration, Instant};

#[allow(unsafe_code)]
mod settings {
    // SAFETY: as settings.c defines it. It takes nothing, and may be called from any thread at any time, as
    // malloc_trim(3) may.
    unsafe extern "C" {
        pub(super) safe fn syncd_allocator_give_back();
    }
}

/// Work that took less leaves little.
const LONG: Duration = Duration::from_millis(250);

/// Gives to the kernel what is free in the allocator's arenas, also between what is in use: what a large piece of work
/// leaves lies there in pieces, which glibc keeps. Blocks, and whoever allocates meanwhile waits, for 4 to 20 ms after
/// 50 to 100 MiB.
pub fn give_back() {
    settings::syncd_allocator_give_back();
}

/// [`give_back`], unless the work that began at `started` was so short that this would be dear beside it.
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
