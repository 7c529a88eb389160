//! Hashes files.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;

use syncd_shared::ContentHash;

const BUFFER_BYTES: usize = 128 * 1024;

/// Hashes a whole file. The file is read, not mapped: truncating a mapped file would kill the process.
pub(crate) fn hash_file(file: &std::fs::File) -> std::io::Result<ContentHash> {
    #[cfg(test)]
    COUNTED.with(|counted| counted.set(counted.get() + 1));
    let mut hasher = blake3::Hasher::new();
    hash_stretch(file, 0, u64::MAX, &mut hasher)?;
    Ok(ContentHash::finish(&hasher))
}

/// Hashes a file from `start` to `end`, or to its end.
pub(crate) fn hash_stretch(
    file: &std::fs::File,
    start: u64,
    end: u64,
    hasher: &mut blake3::Hasher,
) -> std::io::Result<()> {
    thread_local! {
        // Allocating a buffer for each call would cost more than hashing a small file.
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_BYTES]);
    }
    BUFFER.with_borrow_mut(|buffer| {
        let mut at = start;
        while at < end {
            let most =
                usize::try_from(end.saturating_sub(at)).map_or(buffer.len(), |most| most.min(buffer.len()));
            let Some(room) = buffer.get_mut(..most) else { break };
            match file.read_at(room, at) {
                Ok(0) => break,
                Ok(n) => {
                    hasher.update(room.get(..n).unwrap_or(room));
                    at = at.saturating_add(n as u64);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    })
}

#[cfg(test)]
thread_local! {
    static COUNTED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Files that this thread has hashed.
#[cfg(test)]
pub(crate) fn counted() -> u64 {
    COUNTED.get()
}
