//! File systems of a test's own: small ones that fill up, and fresh ones for the bench. Needs root.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::device::{Device, WRITE_BYTES, Wear};
use crate::process::tool;
use crate::scene::{require_program, require_root};

/// A mounted file system. Dropping this unmounts it.
pub struct Mount {
    directory: PathBuf,
    image: Option<PathBuf>,
    /// Device between the file system and its image.
    device: Option<Device>,
    options: &'static str,
}

impl Mount {
    /// A fresh ext4 in an image file of `mebibytes` beside `directory`, mounted there. Its blocks are 4 KiB,
    /// as on larger file systems.
    #[track_caller]
    pub fn ext4(directory: &Path, mebibytes: u64) -> Self {
        require_program("mkfs.ext4", "e2fsprogs");
        let made = ["-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        let mount = Self::image(directory, mebibytes, "mkfs.ext4", &made);
        let _ = fs::remove_dir(directory.join("lost+found"));
        mount
    }

    /// Like [`Self::ext4`], with a limit of files and directories.
    #[track_caller]
    pub fn ext4_of_inodes(directory: &Path, mebibytes: u64, inodes: u64) -> Self {
        require_program("mkfs.ext4", "e2fsprogs");
        Self::image(directory, mebibytes, "mkfs.ext4", &["-q", "-N", &inodes.to_string()])
    }

    /// Remounts with this option (`ro`, `rw`). No process may have a file open for writing on it.
    #[track_caller]
    pub fn remount(&self, option: &str) {
        Self::try_remount(&self.directory, option).unwrap_or_else(|why| panic!("remount {option}: {why}"));
    }

    /// Like [`Self::remount`], for the mount at `directory`. Err: the kernel's message, which contains "busy"
    /// if a file is open.
    pub fn try_remount(directory: &Path, option: &str) -> Result<(), String> {
        let outcome = Command::new("mount")
            .args(["-o", &format!("remount,{option}")])
            .arg(directory)
            .output()
            .map_err(|error| error.to_string())?;
        if outcome.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&outcome.stderr).into_owned())
        }
    }

    /// Freezes or thaws the file system. Changes wait while it is frozen.
    #[track_caller]
    pub fn freeze(&self, frozen: bool) {
        tool("fsfreeze", [OsString::from(if frozen { "-f" } else { "-u" }), self.directory.clone().into()]);
    }

    /// Like [`Self::ext4`], but xfs. `mkfs.xfs` needs at least 300 MiB.
    #[track_caller]
    pub fn xfs(directory: &Path, mebibytes: u64) -> Self {
        require_program("mkfs.xfs", "xfsprogs");
        Self::image(directory, mebibytes, "mkfs.xfs", &["-q"])
    }

    #[track_caller]
    fn image(directory: &Path, mebibytes: u64, mkfs: &str, options: &[&str]) -> Self {
        require_root("it mounts a file system");
        let image = directory.with_extension("image");
        let file = fs::File::create(&image).expect("create an image");
        file.set_len(mebibytes * 1024 * 1024).expect("size an image");
        let options = options.iter().map(|option| OsString::from(*option));
        tool(mkfs, options.chain([image.clone().into_os_string()]));
        fs::create_dir_all(directory).expect("create a mount point");
        let mount =
            Self { directory: directory.to_path_buf(), image: Some(image), device: None, options: "loop" };
        mount.attach();
        mount
    }

    /// Adds a disk below the file system that can refuse writes. The file system's blocks must be whole pages
    /// ([`WRITE_BYTES`]).
    #[track_caller]
    pub fn on_a_worn_disk(mut self) -> (Self, Wear) {
        self.detach();
        let device = Device::of(self.image.as_ref().expect("a file system in an image"));
        let wear = device.wear();
        self.device = Some(device);
        self.attach();
        (self, wear)
    }

    /// Adds this option to every later mount.
    #[track_caller]
    pub fn with_options(mut self, options: &'static str) -> Self {
        self.detach();
        self.options = options;
        self.attach();
        self
    }

    /// Unmounts, and waits until the loop device is gone. If another test's mount namespace still has a copy
    /// of the mount, the next mount would show the same file system instead of the disk's contents.
    #[track_caller]
    fn detach(&self) {
        tool("umount", [&self.directory]);
        let source = self.device.as_ref().map(Device::path).or(self.image.as_deref());
        let Some(source) = source else { return };
        crate::wait::until("the loop device to be gone", || loop_device_of(source).is_none().then_some(()));
    }

    #[track_caller]
    fn attach(&self) {
        let image = self.image.as_ref().expect("a file system in an image");
        let source = self.device.as_ref().map_or(image.as_path(), Device::path);
        tool(
            "mount",
            [OsString::from("-o"), self.options.into(), source.into(), self.directory.clone().into()],
        );
        // The setting outlives the mount, and another mount may get the loop device next. 0 is the driver's
        // default.
        let most = self.device.as_ref().map_or(0, |_| WRITE_BYTES / 1024);
        let queue = loop_device_of(source).expect("a loop device").join("queue/max_sectors_kb");
        fs::write(queue, most.to_string()).expect("bound the loop device's requests");
    }

    /// Cuts the power: the disk keeps what it has, and everything else is lost, including the file system's
    /// log in memory. Every later call fails until [`Self::power_up`].
    #[track_caller]
    pub fn cut_power(&self) {
        require_program("xfs_io", "xfsprogs");
        tool("xfs_io", [OsString::from("-x"), "-c".into(), "shutdown".into(), self.directory.clone().into()]);
    }

    /// Boots after [`Self::cut_power`]: mounts the file system again, which recovers from its log. No process
    /// may have anything open on it.
    #[track_caller]
    pub fn power_up(&self) {
        self.detach();
        self.attach();
    }

    /// Like [`Self::power_up`], with nothing of the disk cached, as after a boot of the machine. An image
    /// that is itself in memory stays there.
    #[track_caller]
    pub fn power_up_cold(&self) {
        let image = self.image.as_ref().expect("a file system in an image");
        self.detach();
        let file = fs::File::open(image).expect("open an image");
        file.sync_all().expect("sync an image");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("forget what is cached");
        self.attach();
    }

    /// Copies the image to `name` beside it. Unmounts it meanwhile.
    #[track_caller]
    pub fn save(&self, name: &str) -> PathBuf {
        let image = self.image.as_ref().expect("a file system in an image");
        let copy = image.with_file_name(name);
        self.detach();
        copy_sparsely(image, &copy);
        self.attach();
        copy
    }

    /// Replaces the mounted image by one made by [`Self::save`].
    #[track_caller]
    pub fn restore(&self, saved: &Path) {
        let image = self.image.as_ref().expect("a file system in an image");
        self.detach();
        copy_sparsely(saved, image);
        self.attach();
    }

    /// Mounts the directory `source` at `directory` as well.
    #[track_caller]
    pub fn bind(source: &Path, directory: &Path) -> Self {
        require_root("it mounts a file system");
        fs::create_dir_all(directory).expect("create a mount point");
        tool("mount", [OsString::from("--bind"), source.into(), directory.into()]);
        Self { directory: directory.to_path_buf(), image: None, device: None, options: "" }
    }

    /// A tmpfs of at most `mebibytes`.
    #[track_caller]
    pub fn tmpfs(directory: &Path, mebibytes: u64) -> Self {
        require_root("it mounts a file system");
        fs::create_dir_all(directory).expect("create a mount point");
        let options = format!("size={mebibytes}m,mode=755");
        tool(
            "mount",
            [
                OsString::from("-t"),
                "tmpfs".into(),
                "-o".into(),
                options.into(),
                "tmpfs".into(),
                directory.into(),
            ],
        );
        Self { directory: directory.to_path_buf(), image: None, device: None, options: "" }
    }

    /// Changes the size of a tmpfs.
    #[track_caller]
    pub fn resize(&self, mebibytes: u64) {
        let options = format!("remount,size={mebibytes}m");
        tool("mount", [OsString::from("-o"), options.into(), self.directory.clone().into()]);
    }

    /// Mount point.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Directory in `/sys/block` of the loop device on this file.
fn loop_device_of(file: &Path) -> Option<PathBuf> {
    let is_backed = |device: &PathBuf| {
        let Ok(backing) = fs::read(device.join("loop/backing_file")) else { return false };
        // One line. It ends with " (deleted)" if the file was deleted.
        let rest = backing.strip_prefix(file.as_os_str().as_bytes());
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'\n' | b' ')))
    };
    let devices = fs::read_dir("/sys/block").ok()?.filter_map(Result::ok);
    devices.map(|device| device.path()).find(is_backed)
}

#[track_caller]
fn copy_sparsely(from: &Path, to: &Path) {
    let _ = fs::remove_file(to);
    tool("cp", ["--sparse=always".as_ref(), from, to]);
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily, so that a process that is just being reaped cannot keep the mount.
        let _ = Command::new("umount").arg("-l").arg(&self.directory).status();
        if let Some(image) = &self.image {
            let _ = fs::remove_file(image);
        }
    }
}

/// A file that is on another file system than its name, so that it can stay open for writing while the name's
/// file system becomes read-only. Dropping this frees the name.
pub struct Elsewhere {
    file: PathBuf,
}

impl Elsewhere {
    /// Copies `file` into the directory `to`, and mounts the copy in its place. No process may have it open.
    #[track_caller]
    pub fn keep(file: &Path, to: &Path) -> Self {
        require_root("it mounts a file");
        let kept = to.join(file.file_name().expect("a file name"));
        fs::copy(file, &kept).expect("copy a file");
        tool("mount", ["--bind".as_ref(), kept.as_path(), file]);
        Self { file: file.to_path_buf() }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.file).status();
    }
}
