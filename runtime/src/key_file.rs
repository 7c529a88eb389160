//! Key files: private, marked in their first line, and replaced atomically.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use syncd_shared::marks::PRIVATE_LINE;

/// Errors of reading or writing a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("reading {path} failed", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    /// Creating, writing, renaming or syncing failed.
    #[error("writing {path} failed", path = path.display())]
    Write {
        /// The file, or its directory.
        path: PathBuf,
        source: io::Error,
    },
}

/// Reads a whole small file as text, without the line that marks it as private. A file without that line is
/// accepted, because an operator may have restored it by hand.
pub fn read(path: &Path) -> Result<String, FileError> {
    let text =
        fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    Ok(match text.strip_prefix(PRIVATE_LINE) {
        Some(text) => text.to_owned(),
        None => text,
    })
}

/// Sets the mode of a file that others can read or write to 0600, with a warning. Follows symlinks, because
/// secrets are often mounted through them.
pub fn keep_private(path: &Path) -> Result<(), FileError> {
    let read = |source| FileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    let mode = file.metadata().map_err(read)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        let private = fs::Permissions::from_mode(0o600);
        file.set_permissions(private).map_err(|source| FileError::Write { path: path.to_owned(), source })?;
        tracing::warn!(path = %path.display(), "others could read this file: its mode was {mode:04o} and is 0600 now");
    }
    Ok(())
}

/// Replaces `path` with `text` after [`PRIVATE_LINE`], with mode 0600 whatever the umask. After return the
/// new text survives a power cut. A crash before leaves the old file or the new one, and possibly a `.new`
/// beside it, which the next call removes. A symlink in the place of either is replaced, never followed. The
/// creation of the directory itself is not made durable.
pub fn write(path: &Path, text: &str) -> Result<(), FileError> {
    let failed = |source| FileError::Write { path: path.to_owned(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Exclusive, so that nothing is written through a file planted meanwhile.
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
    file.write_all(PRIVATE_LINE.as_bytes()).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Makes the names in a directory survive a power cut, but not the content of its files.
pub fn sync_directory(path: &Path) -> Result<(), FileError> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let failed = |source| FileError::Write { path: path.to_owned(), source };
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::own_directory::{self, Access};

    #[test]
    fn a_written_file_is_private_and_replaces_what_was_there() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("a/keys");
        own_directory::claim(&directory, Access::Private).unwrap();
        let path = directory.join("key");
        fs::write(directory.join("key.new"), "left by a crash, and longer").unwrap();
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(read(&path).unwrap(), "two");
        assert!(syncd_shared::marks::is_private(&fs::read(&path).unwrap()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }

    #[test]
    fn planted_symlinks_are_replaced_and_not_written_through() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let path = directory.path().join("key");
        for planted in [&path, &directory.path().join("key.new")] {
            std::os::unix::fs::symlink(&victim, planted).unwrap();
        }
        write(&path, "one").unwrap();
        assert_eq!(
            (read(&path).unwrap().as_str(), fs::read(&victim).unwrap().as_slice()),
            ("one", &b"precious"[..])
        );
    }

    #[test]
    fn a_file_that_others_could_read_is_made_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        write(&path, "one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        keep_private(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
