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
        require_root("it mounts a file system");
        require_program("mkfs.ext4", "e2fsprogs");
        let image = directory.with_extension("image");
        let file = fs::File::create(&image).expect("create an image");
        file.set_len(mebibytes * 1024 * 1024).expect("size an image");
        tool(
            "mkfs.ext4",
            [
                OsString::from("-q"),
                "-E".into(),
                "lazy_itable_init=0,lazy_journal_init=0".into(),
                image.clone().into(),
            ],
        );
        fs::create_dir_all(directory).expect("create a mount point");
        tool("mount", [OsString::from("-o"), "loop".into(), image.clone().into(), directory.into()]);
        let _ = fs::remove_dir(directory.join("lost+found"));
        Self { directory: directory.to_path_buf(), image: Some(image) }
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

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a process that is still being reaped must not leave the mount behind.
        let _ = Command::new("umount").arg("-l").arg(&self.directory).status();
        if let Some(image) = &self.image {
            let _ = fs::remove_file(image);
        }
    }
}
