//! Removes differences between measurements that are compared.

use std::hint::black_box;
use std::process::Command;

use crate::processes::complete;

/// More than twice the size of docs, which are cached as files and as the image of their file system.
const MEMORY_BYTES: u64 = 3 * 1024 * 1024 * 1024;
/// Free memory that stays untouched, so that the kernel does not drop cached data.
const SPARED_BYTES: u64 = 1024 * 1024 * 1024;
/// Number of threads that touch memory.
const TOUCHERS: u64 = 2;
/// At most the page size of the machine.
const PAGE_BYTES: usize = 4096;

/// Writes everything back, so that no write-back runs during another measurement.
pub fn sync_all() {
    complete(&mut Command::new("sync"));
}

/// Like [`sync_all`], and also touches free memory. A virtual machine may have returned freed memory to its
/// host (free page reporting), and the next writer would wait until the host supplies it again. The last
/// peer's files have just been deleted, so chance would decide who pays for that. Nothing cached is dropped.
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

/// Memory that is not used, not even as a cache.
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
