//! File systems of a test's own: small ones that fill up, fresh ones for the bench. Needs root.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::device::{Device, WRITE_BYTES, Wear};
use crate::process::tool;
use crate::scene::{require_program, require_root};

/// A mounted file system; unmounted when this is dropped.
pub struct Mount {
    directory: PathBuf,
    image: Option<PathBuf>,
    /// What lies between the file system and its image.
    device: Option<Device>,
    options: &'static str,
}

impl Mount {
    /// A fresh ext4 in an image file of `mebibytes` beside `directory`, mounted there. Its blocks are of 4 KiB, as those
    /// of any larger one are.
    #[track_caller]
    pub fn ext4(directory: &Path, mebibytes: u64) -> Self {
        require_program("mkfs.ext4", "e2fsprogs");
        let made = ["-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        let mount = Self::image(directory, mebibytes, "mkfs.ext4", &made);
        let _ = fs::remove_dir(directory.join("lost+found"));
        mount
    }

    /// As [`Self::ext4`], with room for only so many files and directories.
    #[track_caller]
    pub fn ext4_of_inodes(directory: &Path, mebibytes: u64, inodes: u64) -> Self {
        require_program("mkfs.ext4", "e2fsprogs");
        Self::image(directory, mebibytes, "mkfs.ext4", &["-q", "-N", &inodes.to_string()])
    }

    /// Mounts it anew with this option (`ro`, `rw`); no process may have anything open for writing on it.
    #[track_caller]
    pub fn remount(&self, option: &str) {
        Self::try_remount(&self.directory, option).unwrap_or_else(|why| panic!("remount {option}: {why}"));
    }

    /// [`Self::remount`] of what is mounted at `directory`. Err: what the kernel says, "busy" where something is open.
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

    /// Everything that would change it waits until it is thawed.
    #[track_caller]
    pub fn freeze(&self, frozen: bool) {
        tool("fsfreeze", [OsString::from(if frozen { "-f" } else { "-u" }), self.directory.clone().into()]);
    }

    /// A fresh xfs, as [`Self::ext4`]; at least 300 MiB, less is none to `mkfs.xfs`.
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

    /// Puts a disk below it that can refuse to write. The file system's blocks have to be whole pages ([`WRITE_BYTES`]).
    #[track_caller]
    pub fn on_a_worn_disk(mut self) -> (Self, Wear) {
        self.detach();
        let device = Device::of(self.image.as_ref().expect("a file system in an image"));
        let wear = device.wear();
        self.device = Some(device);
        self.attach();
        (self, wear)
    }

    /// Mounts it with this option from now on.
    #[track_caller]
    pub fn with_options(mut self, options: &'static str) -> Self {
        self.detach();
        self.options = options;
        self.attach();
        self
    }

    /// Unmounts it, and waits until its loop device is gone: where another test's mount namespace still has a copy of the
    /// mount, the next mount would be of the same file system, not of what the disk has.
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
        // It outlives the mount, and the next one to have that loop device may be another's. 0 is the driver's own.
        let most = self.device.as_ref().map_or(0, |_| WRITE_BYTES / 1024);
        let queue = loop_device_of(source).expect("a loop device").join("queue/max_sectors_kb");
        fs::write(queue, most.to_string()).expect("bound the loop device's requests");
    }

    /// The moment of a power cut: from here on the disk has what it has, everything else is lost, the file system's log
    /// in memory included. Every call on it fails until [`Self::power_up`].
    #[track_caller]
    pub fn cut_power(&self) {
        require_program("xfs_io", "xfsprogs");
        tool("xfs_io", [OsString::from("-x"), "-c".into(), "shutdown".into(), self.directory.clone().into()]);
    }

    /// The boot after [`Self::cut_power`]: the file system is mounted anew, and recovers by its log. No process may
    /// have anything open on it.
    #[track_caller]
    pub fn power_up(&self) {
        self.detach();
        self.attach();
    }

    /// [`Self::power_up`] with nothing of the disk in memory, as after a boot of the machine. An image that lies in memory
    /// itself stays there.
    #[track_caller]
    pub fn power_up_cold(&self) {
        let image = self.image.as_ref().expect("a file system in an image");
        self.detach();
        let file = fs::File::open(image).expect("open an image");
        file.sync_all().expect("sync an image");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("forget what is cached");
        self.attach();
    }

    /// Copies the image, unmounted for that moment, to `name` beside it.
    #[track_caller]
    pub fn save(&self, name: &str) -> PathBuf {
        let image = self.image.as_ref().expect("a file system in an image");
        let copy = image.with_file_name(name);
        self.detach();
        copy_sparsely(image, &copy);
        self.attach();
        copy
    }

    /// Puts a [`Self::save`]d image in the place of what is mounted.
    #[track_caller]
    pub fn restore(&self, saved: &Path) {
        let image = self.image.as_ref().expect("a file system in an image");
        self.detach();
        copy_sparsely(saved, image);
        self.attach();
    }

    /// Shows the directory `source` at `directory`, too.
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

    /// Where it is mounted.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The directory in `/sys/block` of the loop device on this file.
fn loop_device_of(file: &Path) -> Option<PathBuf> {
    let is_backed = |device: &PathBuf| {
        let Ok(backing) = fs::read(device.join("loop/backing_file")) else { return false };
        // A line; " (deleted)" follows where it is.
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
        // Lazily: a process that is still being reaped must not leave the mount behind.
        let _ = Command::new("umount").arg("-l").arg(&self.directory).status();
        if let Some(image) = &self.image {
            let _ = fs::remove_file(image);
        }
    }
}

/// A file that lies on another file system than its name, so that it can be open for writing while that one becomes
/// read-only. The name is free again when this is dropped.
pub struct Elsewhere {
    file: PathBuf,
}

impl Elsewhere {
    /// Copies `file` into the directory `to` and mounts the copy where it was. No process may have it open.
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
