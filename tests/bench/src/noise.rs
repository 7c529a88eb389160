//! What must not differ between two measurements that are compared.

use std::hint::black_box;
use std::process::Command;

use crate::processes::complete;

/// Memory that docs take twice, once as files and once as the image of their file system, and more.
const MEMORY_BYTES: u64 = 3 * 1024 * 1024 * 1024;
/// Free memory that is left alone, so that the kernel does not make more of what is cached.
const SPARED_BYTES: u64 = 1024 * 1024 * 1024;
/// Threads that touch it.
const TOUCHERS: u64 = 2;
/// At least as small as the machine's pages.
const PAGE_BYTES: usize = 4096;

/// Nobody's write-back runs inside another's window.
pub fn sync_all() {
    complete(&mut Command::new("sync"));
}

/// [`sync_all`], and free memory that is there: what a virtual machine has freed may have gone back to its host (free
/// page reporting), and whoever writes next waits until the host has supplied it again. Files of the last peer were
/// deleted just before, so that it would be chance who pays. Nothing that is cached is driven out.
pub fn settle() {
    sync_all();
    let bytes = MEMORY_BYTES.min(free_memory_bytes().saturating_sub(SPARED_BYTES));
    std::thread::scope(|scope| {
        for _ in 0..TOUCHERS {
            scope.spawn(|| {
                let mut memory = vec![0u8; (bytes / TOUCHERS) as usize];
                memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
                black_box(&memory);
            });
        }
    });
}

/// What nobody uses, not even as a cache.
fn free_memory_bytes() -> u64 {
    let known = std::fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    let free = known.lines().find_map(|line| line.strip_prefix("MemFree:")?.split_whitespace().next());
    free.and_then(|kib| kib.parse::<u64>().ok()).expect("MemFree in /proc/meminfo, in KiB") * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_memory_is_free() {
        assert!(free_memory_bytes() > 0);
    }
}
