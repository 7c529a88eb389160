//! Reads, copies and writes the bytes of open files, and tells the page cache what to keep.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use super::{fault, stat_file};

/// Drops cached pages that are already on disk, so that the next read comes from the disk.
pub fn drop_cached(file: &File) {
    // Only a hint: if the kernel refuses it, cached bytes are read.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

/// Drops the cached pages of a stretch of a file.
pub fn drop_cached_at(file: &File, offset: u64, bytes: u64) {
    // Only a hint.
    let length = std::num::NonZeroU64::new(bytes);
    let _ =
        length.map(|length| rustix::fs::fadvise(file, offset, Some(length), rustix::fs::Advice::DontNeed));
}

/// Turns off readahead for a file.
pub fn read_at_random(file: &File) {
    // Only a hint.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
}

/// Reads cached bytes of a file at `offset`; `None`: nothing is cached there, or the file system cannot tell.
pub fn read_cached_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
    let flags = rustix::io::ReadWriteFlags::NOWAIT;
    match rustix::io::preadv2(file, &mut [io::IoSliceMut::new(buffer)], offset, flags) {
        Ok(read) => Ok(Some(read)),
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::INTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Starts reading a stretch of a file ahead of use.
pub fn will_read(file: &File, offset: u64, length: u64) {
    // Only a hint.
    let _ =
        rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(length), rustix::fs::Advice::WillNeed);
}

/// Copies a whole file, with its holes, into an empty one: by reflink, otherwise in the kernel, otherwise
/// through memory.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    fault::point()?;
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => return Ok(()),
        Err(error) if is_damage(error) => return Err(error.into()),
        Err(_) => {}
    }
    let stat = stat_file(from)?;
    if stat.allocated_bytes < stat.size {
        return copy_data(from, to, stat.size);
    }
    let (mut from, mut to) = (from, to);
    io::copy(&mut from, &mut to).map(|_| ())
}

/// Whether a failed reflink is a fault of the disk, which must be reported. After any other error a copy may
/// succeed: the file system has no reflinks, or no room for them (for which XFS reports ENOSPC).
pub(super) fn is_damage(error: Errno) -> bool {
    matches!(error, Errno::IO | Errno::ROFS)
}

/// Copies the data of a file of `size` bytes, without its holes.
fn copy_data(mut from: &File, mut to: &File, size: u64) -> io::Result<()> {
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(start))?;
        rustix::fs::seek(from, rustix::fs::SeekFrom::Start(start))?;
        rustix::fs::seek(to, rustix::fs::SeekFrom::Start(start))?;
        io::copy(&mut io::Read::take(&mut from, end - start), &mut to)?;
        at = end;
    }
    Ok(())
}

/// Size of the aligned blocks that become holes if they are zero.
const HOLE_BYTES: usize = 4096;

/// Writes a stretch of a new file where nothing was written before. Aligned blocks of zeros become holes. If
/// the stretch ends the file, the caller sets the file's length.
pub fn write_sparse_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    const ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
    let write = |start: usize, end: usize| match bytes.get(start..end) {
        Some(data) if !data.is_empty() => file.write_all_at(data, offset.saturating_add(start as u64)),
        _ => Ok(()),
    };
    let unaligned = (offset % HOLE_BYTES as u64) as usize;
    let mut next = if unaligned == 0 { 0 } else { HOLE_BYTES - unaligned };
    let mut written = 0;
    while let Some(block) = bytes.get(next..next + HOLE_BYTES) {
        if block == ZEROS {
            write(written, next)?;
            written = next + HOLE_BYTES;
        }
        next += HOLE_BYTES;
    }
    write(written, bytes.len())
}
