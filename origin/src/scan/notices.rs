//! Warnings about content that is not replicated, or probably should not be. Each is given once.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use syncd_shared::TreePath;
use tracing::warn;

use super::error::Paths;

/// Number of skipped paths remembered. Beyond that, warnings repeat.
const REMEMBERED_MAX: usize = 100_000;

/// Something in the tree that generations do not contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// A device, socket or fifo.
    Special,
    /// A setuid or setgid bit.
    SetId,
    /// The identity of two names of one file.
    HardLink,
    /// Extended attributes other than access control lists.
    ExtendedAttributes,
    /// Access control lists.
    AccessControlList,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Loss::Special => "devices, sockets and fifos are not published",
            Loss::SetId => "setuid and setgid bits are not published",
            Loss::HardLink => "hard links are published as separate files",
            Loss::ExtendedAttributes => "extended attributes are not published",
            Loss::AccessControlList => "access control lists are not published",
        })
    }
}

/// Warnings already given. Lives as long as the process.
#[derive(Debug, Default)]
pub struct Notices(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    kinds: BTreeSet<Loss>,
    special: BTreeSet<TreePath>,
    /// Names that look private, reported or not.
    private: BTreeSet<TreePath>,
    /// Those of them that the next warning will name.
    untold: Vec<TreePath>,
}

impl Notices {
    /// Warns about a loss: for special files once per path, otherwise once. Returns whether it did.
    pub(super) fn tell(&self, loss: Loss, path: &TreePath) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = match loss {
            Loss::Special if said.special.len() < REMEMBERED_MAX => said.special.insert(path.clone()),
            Loss::Special => !said.special.contains(path),
            _ => said.kinds.insert(loss),
        };
        if new {
            warn!(%path, "{loss}");
        }
        new
    }

    /// Records a name that is published for the first time and seldom meant to be. [`Notices::tell_private`]
    /// reports it.
    pub(super) fn looks_private(&self, path: &TreePath) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.private.len() < REMEMBERED_MAX && said.private.insert(path.clone()) {
            said.untold.push(path.clone());
        }
    }

    /// Forgets the names recorded since the last call of [`Notices::tell_private`]: the scan failed, and the
    /// next one records them again.
    pub(super) fn forget_private(&self) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for path in std::mem::take(&mut said.untold) {
            said.private.remove(&path);
        }
    }

    /// Warns about the names recorded since the last call, in one line. Returns their number.
    pub(super) fn tell_private(&self) -> usize {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let paths = std::mem::take(&mut said.untold);
        let count = paths.len();
        if count > 0 {
            warn!(
                count,
                paths = %Paths(paths),
                "names that are seldom meant for visitors belong to what is published: list them in .syncdignore if they \
                 should not"
            );
        }
        count
    }

    /// Whether a loss was not reported yet.
    fn is_open(&self, loss: Loss) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).kinds.contains(&loss)
    }

    /// Checks the attributes of an open file, as long as one of the losses was not reported yet.
    pub(super) fn attributes(&self, file: impl AsFd, path: &TreePath) {
        if !self.is_open(Loss::ExtendedAttributes) && !self.is_open(Loss::AccessControlList) {
            return;
        }
        let mut names = Vec::with_capacity(1024);
        if rustix::fs::flistxattr(file, rustix::buffer::spare_capacity(&mut names)).is_err() {
            return;
        }
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            // POSIX lists, and those of NFS, SMB and others, which use similar names.
            if name.starts_with(b"system.") && name.windows(3).any(|part| part == b"acl") {
                self.tell(Loss::AccessControlList, path);
            } else if name != b"security.selinux" {
                self.tell(Loss::ExtendedAttributes, path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_is_told_once_and_every_special_file() {
        let path = |p: &str| TreePath::from_bytes(p.as_bytes()).unwrap();
        let notices = Notices::default();
        assert!(notices.tell(Loss::Special, &path("a")) && notices.tell(Loss::Special, &path("b")));
        assert!(!notices.tell(Loss::Special, &path("a")));
        assert!(notices.tell(Loss::SetId, &path("a")) && !notices.tell(Loss::SetId, &path("b")));
    }

    #[test]
    fn a_name_that_looks_private_is_told_once() {
        let path = |p: &str| TreePath::from_bytes(p.as_bytes()).unwrap();
        let notices = Notices::default();
        for name in [".env", "a/b.sql", ".env"] {
            notices.looks_private(&path(name));
        }
        assert_eq!(notices.tell_private(), 2);
        notices.looks_private(&path("a/b.sql"));
        assert_eq!(notices.tell_private(), 0);
        // A scan that failed publishes nothing, and the next one finds the name again.
        notices.looks_private(&path("c.sql"));
        notices.forget_private();
        assert_eq!(notices.tell_private(), 0);
        notices.looks_private(&path("c.sql"));
        assert_eq!(notices.tell_private(), 1);
    }

    #[test]
    fn an_access_control_list_is_called_one() {
        let directory = tempfile::tempdir().unwrap();
        let list = |arguments: &[&str]| {
            let status = std::process::Command::new("setfacl").args(arguments).arg(directory.path()).status();
            assert!(status.expect("setfacl is missing: apt-get install acl").success());
        };
        for arguments in [["-m", "u:33:r"], ["-dm", "u:33:r"]] {
            list(&arguments);
            let notices = Notices::default();
            notices.attributes(std::fs::File::open(directory.path()).unwrap(), &TreePath::root());
            assert!(!notices.is_open(Loss::AccessControlList) && notices.is_open(Loss::ExtendedAttributes));
            list(&["-b"]);
        }
    }
}
