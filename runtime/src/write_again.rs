//! Repairs a file after a failed sync.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes read and rewritten at a time.
const BLOCK_BYTES: usize = 1024 * 1024;

/// Rewrites a whole file in place and makes it durable. After a failed sync the kernel marks unwritten pages
/// as clean: a second sync would succeed without them, and reads would return data that the disk does not
/// have. Writing in place needs no space, which a full disk would not have for a copy.
pub fn write_again(path: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut offset = 0;
    loop {
        let read = file.read_at(&mut block, offset)?;
        if read == 0 {
            return file.sync_all();
        }
        file.write_all_at(&block[..read], offset)?;
        offset += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stays_what_it_is() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let path = temp.path().join("file");
        let content: Vec<u8> = (0..BLOCK_BYTES + 4321).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).expect("write");
        write_again(&path).expect("write again");
        assert!(std::fs::read(&path).expect("read") == content);
        let missing = write_again(&temp.path().join("missing")).expect_err("is not made");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
