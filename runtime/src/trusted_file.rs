//! Whether commands may be taken from a configuration file.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Reasons that no command is taken from a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum TrustedFileError {
    /// The metadata could not be read.
    #[error("can't read the permissions of {}", path.display())]
    Stat {
        /// Path of the file or directory.
        path: PathBuf,
        source: io::Error,
    },
    /// Other users can write the file, and could have commands run.
    #[error("{path} names commands and can be written by others: chown it to root and chmod go-w it", path = path.display())]
    Writable { path: PathBuf },
    /// Other users could replace the file.
    #[error(
        "{file} names commands and lies below {path}, where others can put files: keep it where only root and the \
         service's user may write",
        file = file.display(), path = path.display()
    )]
    Replaceable {
        file: PathBuf,
        /// Path of the directory.
        path: PathBuf,
    },
}

/// Checks whether commands may be taken from this file. Only its owner may be able to write it, and the owner
/// must be root or this process's user. The same applies to every directory above it, as in ssh. Higher up, a
/// directory with the sticky bit (`/tmp`) is allowed, because other users cannot rename its entries. Symlinks
/// are resolved first. Access lists are not read: their mask shows as the group's rights.
pub fn check_trusted(path: &Path) -> Result<(), TrustedFileError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| TrustedFileError::Stat { path, source }
    };
    let real = fs::canonicalize(path).map_err(failed(path))?;
    let own = rustix::process::geteuid().as_raw();
    let is_ours = |found: &Metadata| found.uid() == own || found.uid() == 0;
    let found = fs::metadata(&real).map_err(failed(&real))?;
    if found.mode() & 0o022 != 0 || !is_ours(&found) {
        return Err(TrustedFileError::Writable { path: path.to_owned() });
    }
    for above in real.ancestors().skip(1) {
        let found = fs::metadata(above).map_err(failed(above))?;
        let is_shared = found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0;
        if is_shared || !is_ours(&found) {
            return Err(TrustedFileError::Replaceable { file: path.to_owned(), path: above.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn commands_come_from_no_file_that_others_can_write() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let chmod = |mode| fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        chmod(0o644);
        assert!(check_trusted(file.path()).is_ok());
        for mode in [0o664, 0o646] {
            chmod(mode);
            assert!(matches!(check_trusted(file.path()), Err(TrustedFileError::Writable { .. })));
        }
    }

    #[test]
    fn commands_come_from_no_directory_that_others_can_write() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("etc").join("syncd");
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("agent.toml");
        fs::write(&file, "").unwrap();
        let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        chmod(&file, 0o644);
        let link = base.path().join("link.toml");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let etc = base.path().join("etc");
        for (of_etc, of_directory, trusted) in
            [(0o755, 0o755, true), (0o755, 0o775, false), (0o777, 0o755, false), (0o1777, 0o700, true)]
        {
            chmod(&etc, of_etc);
            chmod(&directory, of_directory);
            for path in [&file, &link] {
                let checked = check_trusted(path);
                assert_eq!(checked.is_ok(), trusted, "{of_etc:o} {of_directory:o}: {checked:?}");
            }
        }
    }
}
