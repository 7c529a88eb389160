//! File systems of a test's own: small ones that fill up, fresh ones for the bench. Needs root.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::tool;
use crate::scene::{require_program, require_root};

/// A mounted file system; unmounted when this is dropped.
pub struct Mount {
    directory: PathBuf,
    image: Option<PathBuf>,
}

impl Mount {
    /// A fresh ext4 in an image file of `mebibytes` beside `directory`, mounted there.
    #[track_caller]
    pub fn ext4(directory: &Path, mebibytes: u64) -> Self {
        require_program("mkfs.ext4", "e2fsprogs");
        let made = ["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
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
        let options = OsString::from(format!("remount,{option}"));
        tool("mount", [OsString::from("-o"), options, self.directory.clone().into()]);
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
        let mount = Self { directory: directory.to_path_buf(), image: Some(image) };
        mount.attach();
        mount
    }

    #[track_caller]
    fn attach(&self) {
        let image = self.image.as_ref().expect("a file system in an image");
        tool("mount", [OsString::from("-o"), "loop".into(), image.into(), self.directory.clone().into()]);
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
        tool("umount", [&self.directory]);
        self.attach();
    }

    /// [`Self::power_up`] with nothing of the disk in memory, as after a boot of the machine. An image that lies in memory
    /// itself stays there.
    #[track_caller]
    pub fn power_up_cold(&self) {
        let image = self.image.as_ref().expect("a file system in an image");
        tool("umount", [&self.directory]);
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
        tool("umount", [&self.directory]);
        copy_sparsely(image, &copy);
        self.attach();
        copy
    }

    /// Puts a [`Self::save`]d image in the place of what is mounted.
    #[track_caller]
    pub fn restore(&self, saved: &Path) {
        let image = self.image.as_ref().expect("a file system in an image");
        tool("umount", [&self.directory]);
        copy_sparsely(saved, image);
        self.attach();
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
        Self { directory: directory.to_path_buf(), image: None }
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
