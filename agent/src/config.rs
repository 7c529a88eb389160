//! Options of `syncd-agent run`, from command line, environment and file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use syncd_runtime::accounts::{UnknownAccountError, group_id, user_id};
use syncd_runtime::rate::Rate;

use crate::check::CheckOptions;
use crate::follow::FollowOptions;
use crate::state::swap::Swap;

/// Default of `--root`.
pub const ROOT: &str = "/var/lib/syncd/agent";
/// Default of `--http`.
pub const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8875);
/// Default of `--keep`.
pub const KEEP: u32 = 2;
/// Default of `--grace`. Longer than the default lifetime of PHP's realpath cache, 120 s.
pub const GRACE: Duration = Duration::from_secs(150);

/// Default of `--verify-every`.
pub const VERIFY_EVERY: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// All options of `syncd-agent run`.
#[derive(Debug, Clone)]
pub struct RunOptions {
    pub root: PathBuf,
    /// HOST:PORT; by default, where the node joined.
    pub origin: Option<String>,
    /// Follows a published tree in place of the origin.
    pub follow: Option<FollowOptions>,
    /// Address of the health page. Port 0 picks a free port.
    pub http: SocketAddr,
    /// Whether a taken HTTP port is an error (given by the operator) or a warning (the default).
    pub http_required: bool,
    /// Another address of the same pages, for other hosts.
    pub health_listen: Option<SocketAddr>,
    /// Kind of `live`; `None`: as it is.
    pub swap: Option<Swap>,
    /// Number of generations to keep.
    pub keep: u32,
    /// Grace period during which a retired tree is left alone.
    pub grace: Duration,
    /// Pause between two background verifications of the live tree; zero: none.
    pub verify_every: Duration,
    /// Owner of all files, in place of the owner in the manifest.
    pub owner: Option<Owner>,
    /// Command that `sh -c` runs before an activation.
    pub before_activate: Option<String>,
    /// Command that `sh -c` runs after an activation.
    pub on_activate: Option<String>,
    /// Command that `sh -c` runs once a generation is live.
    pub after_activate: Option<String>,
    /// The node's own check; `None`: none is set.
    pub check: Option<CheckOptions>,
    /// Time limit of each hook; `None`: that of its kind.
    pub hook_timeout: Option<Duration>,
    /// Limit of the rate at which bulk bytes are received.
    pub bwlimit: Option<Rate>,
}

impl RunOptions {
    /// Default options on `root`.
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            origin: None,
            follow: None,
            http: HTTP,
            http_required: false,
            health_listen: None,
            swap: None,
            keep: KEEP,
            grace: GRACE,
            verify_every: VERIFY_EVERY,
            owner: None,
            before_activate: None,
            on_activate: None,
            after_activate: None,
            check: None,
            hook_timeout: None,
            bwlimit: None,
        }
    }

    /// The given address of the origin, or URL of the published tree.
    pub fn peer(&self) -> Option<String> {
        let follow = self.follow.as_ref().map(|follow| follow.url.to_string());
        follow.or_else(|| self.origin.clone())
    }
}

/// Value of `--owner USER:GROUP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
}

/// Reason why `--owner` was refused.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The value has another form.
    #[error("an owner is USER:GROUP, names or numbers, as in www-data:www-data or 33:33")]
    Form,
    /// This machine has no such user or group.
    #[error(transparent)]
    Unknown(#[from] UnknownAccountError),
}

impl FromStr for Owner {
    type Err = OwnerError;

    fn from_str(text: &str) -> Result<Self, OwnerError> {
        match text.split_once(':') {
            Some((user, group)) if !user.is_empty() && !group.is_empty() => {
                Ok(Self { uid: user_id(user)?, gid: group_id(group)? })
            }
            _ => Err(OwnerError::Form),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_names_or_numbers() {
        assert_eq!("33:44".parse::<Owner>().unwrap(), Owner { uid: 33, gid: 44 });
        assert_eq!("root:root".parse::<Owner>().unwrap(), Owner { uid: 0, gid: 0 });
        for bad in ["root", "root:", ":root", "no-such-user-here:root", "-1:0", ""] {
            assert!(bad.parse::<Owner>().is_err(), "{bad}");
        }
    }
}
