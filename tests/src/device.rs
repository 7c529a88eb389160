//! A disk that refuses writes, below a file system: the kernel meets the error during write-back, long after
//! a program's `write` succeeded.
//!
//! ```text
//! file system  ->  loop device  ->  one file, served by this process (FUSE)  ->  the image
//! ```
//!
//! The file is itself a mount point, so the kernel asks for little more than its bytes. Refused writes fail
//! with EIO and change nothing. The file system reacts as on a real disk: it reports the error to the next
//! sync, and treats the data as written. The content of a write decides whether it is refused, so that
//! content can be lost while the file system's own tables stay whole. Everything ends with the process. Needs
//! root.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::libc;
use rustix::mount::{MountFlags, mount};

/// Start of each page of content to which [`Refused::Marked`] applies.
pub const MARK: &[u8; 16] = b"a marked page of";
/// Unit in which content is written to the disk, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// Longest write that the kernel is allowed to make. No request of the loop device may need two writes. If
/// the first succeeds and the second is refused, the kernel's loop driver takes the short write for a whole
/// one (seen with Linux 6.18), and the file system never learns of the refusal. [`crate::mounts::Mount`]
/// therefore limits requests to this size. The file system's blocks are whole pages, because a request that
/// starts within a page takes two writes.
pub const WRITE_BYTES: usize = 1024 * 1024;
const HEADER_BYTES: usize = 40;
/// Version of the protocol (`linux/fuse.h`).
const VERSION: [u32; 2] = [7, 31];

/// Writes that the disk refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refused {
    /// None.
    Nothing,
    /// Writes that contain [`MARK`].
    Marked,
    /// All.
    Everything,
}

/// Controls the disk's refusal, from any thread.
#[derive(Debug, Clone, Default)]
pub struct Wear {
    refused: Arc<AtomicU8>,
    refusals: Arc<AtomicU64>,
}

impl Wear {
    /// Sets what is refused from now on.
    pub fn refuse(&self, what: Refused) {
        self.refused.store(what as u8, Ordering::SeqCst);
    }

    /// Number of writes refused so far.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::SeqCst)
    }

    fn refuses(&self, bytes: &[u8]) -> bool {
        let refused = self.refused.load(Ordering::SeqCst);
        let is_marked = || bytes.windows(MARK.len()).any(|window| window == MARK);
        let hit = refused == Refused::Everything as u8 || refused == Refused::Marked as u8 && is_marked();
        self.refusals.fetch_add(u64::from(hit), Ordering::SeqCst);
        hit
    }
}

/// Makes `bytes` of content. Each page is marked, and differs from every page of another `seed`.
pub fn marked(seed: u64, bytes: usize) -> Vec<u8> {
    let mut content = crate::Seeded::new(seed).bytes(bytes);
    for page in content.chunks_mut(PAGE_BYTES) {
        let length = page.len().min(MARK.len());
        page[..length].copy_from_slice(&MARK[..length]);
    }
    content
}

/// A file with the bytes of an image. Everything that uses it must be unmounted before this is dropped.
pub struct Device {
    path: PathBuf,
    wear: Wear,
}

impl Device {
    /// Serves the image at `image` whenever the file is opened.
    #[track_caller]
    pub fn of(image: &Path) -> Self {
        crate::require_root("it mounts a file system");
        let path = image.with_extension("device");
        File::create(&path).expect("create a mount point");
        let kernel = File::options().read(true).write(true).open("/dev/fuse").expect("open /dev/fuse");
        let options = format!("fd={},rootmode=100600,user_id=0,group_id=0", kernel.as_raw_fd());
        let options = CString::new(options).expect("options");
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("syncd-device", &path, "fuse", flags, Some(options.as_c_str())).expect("mount a device");
        let wear = Wear::default();
        let server =
            Server { kernel, image: image.to_path_buf(), opened: Mutex::default(), wear: wear.clone() };
        std::thread::spawn(move || server.run());
        Self { path, wear }
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Control of the refusal.
    pub fn wear(&self) -> Wear {
        self.wear.clone()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Lazily, because a loop device may still be releasing it. The thread ends with the last user.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = fs::remove_file(&self.path);
    }
}

/// Answers the kernel's requests one by one.
struct Server {
    kernel: File,
    image: PathBuf,
    opened: Mutex<Option<File>>,
    wear: Wear,
}

/// A request without its header.
struct Request<'a> {
    operation: u32,
    unique: u64,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Self { operation: u32_at(bytes, 4), unique: u64_at(bytes, 8), body: &bytes[HEADER_BYTES..] }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Server {
    fn run(mut self) {
        let mut buffer = vec![0; WRITE_BYTES + 2 * PAGE_BYTES];
        loop {
            let length = match self.kernel.read(&mut buffer) {
                Ok(length) => length,
                // ENOENT: the request was withdrawn.
                Err(error)
                    if [libc::EINTR, libc::EAGAIN, libc::ENOENT]
                        .map(Some)
                        .contains(&error.raw_os_error()) =>
                {
                    continue;
                }
                // The file was unmounted.
                Err(_) => return,
            };
            let request = Request::of(&buffer[..length]);
            let Some(answer) = self.answer(&request) else { continue };
            let (errno, body) = match answer {
                Ok(body) => (0, body),
                Err(error) => (error.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
            };
            let total = (16 + body.len()) as u32;
            let header = [&total.to_le_bytes()[..], &(-errno).to_le_bytes(), &request.unique.to_le_bytes()];
            let message = [header.concat(), body].concat();
            // The process that asked may be gone.
            let _ = self.kernel.write(&message);
        }
    }

    /// `None`: no answer is expected.
    fn answer(&self, request: &Request<'_>) -> Option<io::Result<Vec<u8>>> {
        let body = request.body;
        Some(match request.operation {
            // FORGET, INTERRUPT, BATCH_FORGET
            2 | 36 | 42 => return None,
            // GETATTR, SETATTR (times and set-id bits, which are not needed)
            3 | 4 => self.attributes(),
            // OPEN
            14 => File::options().read(true).write(true).open(&self.image).map(|file| {
                *self.opened() = Some(file);
                vec![0; 16]
            }),
            // READ
            15 => self.read(u64_at(body, 8), u32_at(body, 16) as usize),
            // WRITE
            16 => self.write(u64_at(body, 8), &body[40..]),
            // STATFS
            17 => Ok(statistics()),
            // INIT
            26 => Ok(greeting()),
            // RELEASE, FSYNC, FLUSH, ACCESS, DESTROY
            18 | 20 | 25 | 34 | 38 => Ok(Vec::new()),
            _ => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
        })
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, Option<File>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, work: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        self.opened().as_ref().map_or_else(|| Err(io::Error::from_raw_os_error(libc::EBADF)), work)
    }

    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.with(|file| {
            let mut bytes = vec![0; length.min(WRITE_BYTES)];
            let mut filled = 0;
            while let read @ 1.. = file.read_at(&mut bytes[filled..], offset + filled as u64)? {
                filled += read;
            }
            bytes.truncate(filled);
            Ok(bytes)
        })
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<Vec<u8>> {
        if self.wear.refuses(bytes) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.with(|file| file.write_all_at(bytes, offset))?;
        Ok(u64::to_le_bytes(bytes.len() as u64).to_vec())
    }

    fn attributes(&self) -> io::Result<Vec<u8>> {
        let size = fs::metadata(&self.image)?.len();
        // Valid for no time; inode, size and blocks, no times; mode, one name, owned by root, block size.
        let wide = [0, 0, 1, size, size.div_ceil(512), 0, 0, 0];
        let narrow = [0, 0, 0, 0o100_600, 1, 0, 0, 0, PAGE_BYTES as u32, 0];
        Ok(wide
            .iter()
            .flat_map(|n: &u64| n.to_le_bytes())
            .chain(narrow.iter().flat_map(|n| n.to_le_bytes()))
            .collect())
    }
}

fn greeting() -> Vec<u8> {
    const MAX_PAGES: u32 = 1 << 22;
    const BIG_WRITES: u32 = 1 << 5;
    let mut body = Vec::new();
    for number in [VERSION[0], VERSION[1], WRITE_BYTES as u32, MAX_PAGES | BIG_WRITES] {
        body.extend(number.to_le_bytes());
    }
    // Number of background requests, and the number that counts as congestion.
    body.extend([16_u16, 12].iter().flat_map(|n| n.to_le_bytes()));
    body.extend([WRITE_BYTES as u32, 1].iter().flat_map(|n| n.to_le_bytes()));
    body.extend([(WRITE_BYTES / PAGE_BYTES) as u16, 0].iter().flat_map(|n| n.to_le_bytes()));
    body.resize(64, 0);
    body
}

fn statistics() -> Vec<u8> {
    let mut body = vec![0; 40];
    for number in [PAGE_BYTES as u32, 255, PAGE_BYTES as u32, 0] {
        body.extend(number.to_le_bytes());
    }
    body.resize(80, 0);
    body
}
