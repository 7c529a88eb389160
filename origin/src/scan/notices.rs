//! What is not replicated, said once and never silently.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use syncd_shared::TreePath;
use tracing::warn;

/// Skipped paths that are remembered; beyond that, warnings repeat.
const REMEMBERED_MAX: usize = 100_000;

/// Something in the tree that a generation does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// A device, socket or fifo.
    Special,
    /// The setuid or setgid bit.
    SetId,
    /// That two names are one file.
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

/// What was said already. One for as long as a process runs.
#[derive(Debug, Default)]
pub struct Notices(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    kinds: BTreeSet<Loss>,
    special: BTreeSet<TreePath>,
}

impl Notices {
    /// Warns of a loss: of special files once for each path, of all else once.
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

    /// Whether a loss still has to be told of.
    fn is_open(&self, loss: Loss) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).kinds.contains(&loss)
    }

    /// Looks at the attributes of an open file, as long as there is something to tell.
    pub(super) fn attributes(&self, file: impl AsFd, path: &TreePath) {
        if !self.is_open(Loss::ExtendedAttributes) && !self.is_open(Loss::AccessControlList) {
            return;
        }
        let mut names = Vec::with_capacity(1024);
        if rustix::fs::flistxattr(file, rustix::buffer::spare_capacity(&mut names)).is_err() {
            return;
        }
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if name.starts_with(b"system.posix_acl") {
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
}
