//! One test's directory, and requirements of tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A directory that is removed after the test (unless `SYNCD_KEEP` is set). Every user may enter it, so that
/// a web server with its own user can serve its contents.
pub struct Scene {
    directory: PathBuf,
    guard: Option<TempDir>,
}

impl Scene {
    /// Creates an empty directory whose path contains `name`.
    pub fn new(name: &str) -> Self {
        Self::within(&std::env::temp_dir(), name)
    }

    /// Creates an empty directory in memory if possible: for images that are mounted and cut so often that a
    /// disk would dominate the time.
    pub fn in_memory(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::within(memory, name) } else { Self::new(name) }
    }

    fn within(directory: &Path, name: &str) -> Self {
        let guard = tempfile::Builder::new()
            .prefix(&format!("syncd-{name}-"))
            .tempdir_in(directory)
            .expect("create the test's directory");
        fs::set_permissions(guard.path(), fs::Permissions::from_mode(0o755))
            .expect("open the test's directory");
        let directory = guard.path().canonicalize().expect("resolve the test's directory");
        if std::env::var_os("SYNCD_KEEP").is_some() {
            println!("keeping {}", directory.display());
            let _ = guard.keep();
            return Self { directory, guard: None };
        }
        Self { directory, guard: Some(guard) }
    }

    /// Path of the directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Creates a subdirectory.
    pub fn new_directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).expect("create a directory of the test");
        path
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            // Root can remove directories that a test closed to others; without root, they stay.
            let _ = guard.close();
        }
    }
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Fails the test with the reason unless this process is root.
pub fn require_root(why: &str) {
    assert!(is_root(), "this test must be root: {why}");
}

/// Fails the test with the package to install unless `name` is a program on the search path.
pub fn require_program(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file());
    found
        .unwrap_or_else(|| panic!("{name} is missing: apt-get install {package}, or run ./tests/run as root"))
}
