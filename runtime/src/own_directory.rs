//! Directories that syncd owns: created with exact modes whatever the umask, and checked so that no other
//! user can plant or replace their content.
//!
//! | directory | created with | refused or corrected |
//! | --- | --- | --- |
//! | [`Access::Private`]: DATA, keys, `ROOT/state` | 0700 | any access for others, write access for the group |
//! | [`Access::Served`]: ROOT | 0755 | write access for the group and for others |
//! | [`Access::Open`]: `ROOT/slots` | 0755 | every other mode |
//!
//! A wrong mode is corrected with a warning, and failing to correct it is an error. ROOT is the operator's,
//! who decides who may enter it: [`closed`] only describes a ROOT that nobody can enter. A directory of
//! another user is refused, because that user could replace anything in it. [`check`] makes two exceptions
//! for directories that are only read: root may look into any, and any user into those of root.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, Stat};
use syncd_shared::limits::PATH_MAX_BYTES;
use syncd_shared::text::one_line;

/// Class of users that may read a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The owner. A group given read access on purpose keeps it.
    Private,
    /// Everybody, because a web server reads it. The operator may admit fewer.
    Served,
    /// Everybody, because a web server reads it. ROOT above it decides who may come so far.
    Open,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Private => 0o700,
            Self::Served | Self::Open => 0o755,
        }
    }

    /// The right mode for a directory with this mode.
    fn mended(self, mode: u32) -> u32 {
        match self {
            Self::Private if mode & 0o027 == 0 => mode,
            Self::Served => mode & !0o022,
            Self::Private | Self::Open => self.mode(),
        }
    }
}

/// Reasons not to use a directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Creating, opening or changing it failed.
    #[error("preparing {} failed", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A symlink or a file occupies its place.
    #[error("{} is not a directory: move it away, it was not made by syncd", path.display())]
    Occupied { path: PathBuf },
    #[error(
        "{} belongs to user {uid}, who could replace what is in it: run as that user, or give it away with chown",
        path.display()
    )]
    Foreign {
        path: PathBuf,
        /// Owner of the directory.
        uid: u32,
    },
}

/// Creates a directory, or takes over one that this user owns. Missing parents are created with mode 0755.
/// `path` may be a symlink, because the operator named it. Its name is not yet durable on return.
pub fn claim(path: &Path, access: Access) -> Result<(), DirectoryError> {
    let failed = |source: io::Error| DirectoryError::Io { path: path.to_owned(), source };
    let missing = path.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists());
    let missing: Vec<&Path> = missing.collect();
    for directory in missing.iter().rev() {
        let own = *directory == path;
        make(directory, if own { access.mode() } else { Access::Served.mode() }).map_err(failed)?;
    }
    let (directory, stat) = open(path, OFlags::empty()).map_err(failed)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(DirectoryError::Foreign { path: path.to_owned(), uid: stat.st_uid });
    }
    mend(&directory, &stat, path, access)
}

/// Like [`claim`], for a name inside a claimed directory. A symlink is refused: the operator did not name it.
pub fn claim_inside(path: &Path, access: Access) -> Result<(), DirectoryError> {
    if let Ok(found) = path.symlink_metadata()
        && !found.is_dir()
    {
        return Err(DirectoryError::Occupied { path: path.to_owned() });
    }
    claim(path, access)
}

/// Checks a directory in use and corrects its mode. Root may check directories of other users.
pub fn check(path: &Path, access: Access) -> Result<(), DirectoryError> {
    inspect(path, access)?.mend()
}

/// A directory that is not refused. Nothing was changed so far.
#[derive(Debug)]
pub struct Inspected {
    directory: OwnedFd,
    stat: Stat,
    path: PathBuf,
    access: Access,
}

impl Inspected {
    /// Mends its mode.
    pub fn mend(self) -> Result<(), DirectoryError> {
        mend(&self.directory, &self.stat, &self.path, self.access)
    }
}

/// Refuses what [`check`] refuses, and changes nothing.
pub fn inspect(path: &Path, access: Access) -> Result<Inspected, DirectoryError> {
    let (directory, stat) =
        open(path, OFlags::empty()).map_err(|source| DirectoryError::Io { path: path.to_owned(), source })?;
    let own = rustix::process::geteuid();
    if stat.st_uid != own.as_raw() && stat.st_uid != 0 && !own.is_root() {
        return Err(DirectoryError::Foreign { path: path.to_owned(), uid: stat.st_uid });
    }
    Ok(Inspected { directory, stat, path: path.to_owned(), access })
}

/// Warns where root is about to run a daemon on a directory of another user. Returns that user.
pub fn warn_of_owner(path: &Path) -> Option<u32> {
    let (_, stat) = open(path, OFlags::empty()).ok()?;
    let uid = Some(stat.st_uid).filter(|uid| *uid != 0 && rustix::process::geteuid().is_root())?;
    tracing::warn!(
        path = %path.display(),
        "user {uid} owns this directory and could replace what root reads in it: run as that user, or give it to root \
         with chown -R"
    );
    Some(uid)
}

/// Describes a directory that only its owner may enter, and says how to open it. `None`: others may enter it,
/// or it can't be read.
pub fn closed(path: &Path) -> Option<String> {
    let (_, stat) = open(path, OFlags::empty()).ok()?;
    let mode = stat.st_mode & 0o7777;
    (mode & 0o011 == 0).then(|| {
        format!(
            "only user {} may enter {shown} (mode {mode:04o}), so a web server of another user answers 403: \
             chmod 0755 {shown}",
            stat.st_uid,
            shown = one_line(&path.display().to_string(), PATH_MAX_BYTES)
        )
    })
}

/// Creates a directory with exactly this mode. An existing one is left for the caller to check.
fn make(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        // Created by somebody else meanwhile; the caller checks it next.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    let (directory, _) = open(path, OFlags::NOFOLLOW)?;
    Ok(rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode))?)
}

fn open(path: &Path, flags: OFlags) -> io::Result<(OwnedFd, Stat)> {
    let flags = flags | OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&directory)?;
    Ok((directory, stat))
}

fn mend(directory: &OwnedFd, stat: &Stat, path: &Path, access: Access) -> Result<(), DirectoryError> {
    let mode = stat.st_mode & 0o7777;
    let mended = access.mended(mode);
    if mode == mended {
        return Ok(());
    }
    rustix::fs::fchmod(directory, Mode::from_raw_mode(mended))
        .map_err(|errno| DirectoryError::Io { path: path.to_owned(), source: errno.into() })?;
    let reason = match mode & !mended {
        0 => "a web server could not enter this directory",
        _ => "others could use this directory",
    };
    tracing::warn!(path = %path.display(), "{reason}: its mode was {mode:04o} and is {mended:04o} now");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn new_directories_have_their_modes_and_their_parents_can_be_entered() {
        let base = tempfile::tempdir().unwrap();
        let (data, root) = (base.path().join("lib/syncd/origin"), base.path().join("lib/syncd/agent"));
        claim(&data, Access::Private).unwrap();
        claim(&root, Access::Served).unwrap();
        assert_eq!((mode(&data), mode(&root)), (0o700, 0o755));
        assert_eq!((mode(data.parent().unwrap()), mode(&base.path().join("lib"))), (0o755, 0o755));
    }

    #[test]
    fn what_others_may_use_is_mended() {
        let base = tempfile::tempdir().unwrap();
        let cases = [
            (Access::Private, 0o755, 0o700),
            (Access::Private, 0o777, 0o700),
            (Access::Private, 0o750, 0o750),
            (Access::Served, 0o777, 0o755),
            (Access::Served, 0o775, 0o755),
            (Access::Served, 0o700, 0o700),
            (Access::Open, 0o700, 0o755),
            (Access::Open, 0o777, 0o755),
        ];
        for (access, before, after) in cases {
            for use_it in [claim, check] {
                std::fs::set_permissions(base.path(), PermissionsExt::from_mode(before)).unwrap();
                use_it(base.path(), access).unwrap();
                assert_eq!(mode(base.path()), after, "{access:?} {before:o}");
            }
        }
    }

    #[test]
    fn a_directory_that_only_its_owner_may_enter_is_described() {
        let base = tempfile::tempdir().unwrap();
        for (mode, is_closed) in
            [(0o755, false), (0o750, false), (0o711, false), (0o744, true), (0o700, true)]
        {
            std::fs::set_permissions(base.path(), PermissionsExt::from_mode(mode)).unwrap();
            let described = closed(base.path());
            assert_eq!(described.is_some(), is_closed, "{mode:o}: {described:?}");
        }
        let described = closed(base.path()).unwrap();
        assert!(described.ends_with(&format!("chmod 0755 {}", base.path().display())), "{described}");
        assert_eq!(closed(&base.path().join("missing")), None);
    }

    #[test]
    fn a_planted_symlink_and_a_directory_of_another_user_are_refused() {
        let base = tempfile::tempdir().unwrap();
        let (inner, elsewhere) = (base.path().join("state"), tempfile::tempdir().unwrap());
        symlink(elsewhere.path(), &inner).unwrap();
        assert!(matches!(claim_inside(&inner, Access::Private), Err(DirectoryError::Occupied { .. })));
        assert!(claim(&inner, Access::Private).is_ok(), "one that the operator names is followed");
        if rustix::process::geteuid().is_root() {
            chown(elsewhere.path(), Some(65_534), None).unwrap();
            let refused = claim(elsewhere.path(), Access::Private);
            assert!(matches!(refused, Err(DirectoryError::Foreign { uid: 65_534, .. })), "{refused:?}");
            check(elsewhere.path(), Access::Private).unwrap();
            assert_eq!(warn_of_owner(elsewhere.path()), Some(65_534));
            assert_eq!(warn_of_owner(base.path()), None);
        }
    }
}
