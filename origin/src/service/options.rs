//! Options of `serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use syncd_runtime::rate::Rate;
use syncd_shared::TreePath;

use crate::collected::{CollectedOptions, Collection, OnNodes};
use crate::commit::Trigger;
use crate::fleet::rollout::Policies;
use crate::publish::PublishOptions;
use crate::purge::PurgeOptions;
use crate::scan::{CollectedPlaces, MtimePolicy, ScanOptions, SymlinkPolicy};
use crate::source::{GitOptions, SourceLocation};
use crate::store::Retention;

/// Options of `serve`.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    pub tree: PathBuf,
    /// Directory of keys and store.
    pub data: PathBuf,
    /// Address for agents; port 0 selects a free one.
    pub listen: SocketAddr,
    /// Address for health checks; port 0 selects a free one.
    pub http: SocketAddr,
    /// Whether an occupied `http` port is an error.
    pub http_required: bool,
    /// Address of the page for other machines; port 0 selects a free one.
    pub page_listen: Option<SocketAddr>,
    pub trigger: Trigger,
    /// `--hold-while`.
    pub hold_while: Option<TreePath>,
    /// `tree` is a git repository, published as these options say.
    pub git: Option<GitOptions>,
    /// Interval of walks of subtrees without events.
    pub poll: Duration,
    /// `--mtime`.
    pub mtime: MtimePolicy,
    /// `--symlinks`.
    pub symlinks: SymlinkPolicy,
    /// Extent of the history.
    pub retention: Retention,
    /// How generations go to the nodes.
    pub policies: Policies,
    /// Limit shared by all agents.
    pub bwlimit: Option<Rate>,
    /// `--publish`, `--publish-bwlimit`.
    pub publish: Option<PublishOptions>,
    /// `--purge`, `--purge-site`.
    pub purge: Option<PurgeOptions>,
    /// `--on-rollout`.
    pub on_rollout: Option<String>,
    /// Tables `[collect.NAME]`.
    pub collected: Vec<CollectedOptions>,
    /// Group whose members may use the admin socket.
    pub admin_group: Option<u32>,
}

impl ServeOptions {
    /// The directory or repository that is published.
    pub(crate) fn location(&self) -> SourceLocation {
        SourceLocation { tree: self.tree.clone(), git: self.git.clone() }
    }

    /// Directories that must not be published yet are left out, with a line in the log.
    pub(super) fn scan(
        &self,
        collection: Option<&Collection>,
        on_nodes: impl Fn(&CollectedOptions) -> OnNodes,
    ) -> ScanOptions {
        let location = self.location();
        let is_published = |one: &&CollectedOptions| {
            let reason =
                collection.and_then(|collection| collection.withheld(one, &location, || on_nodes(one)));
            if let Some(reason) = &reason {
                tracing::error!(directory = %one.name, reason, "a collected directory is not published");
            }
            reason.is_none()
        };
        let place = |one: &CollectedOptions| (one.path.clone(), one.name.clone(), one.owner);
        let collected = CollectedPlaces::new(self.collected.iter().filter(is_published).map(place));
        ScanOptions { mtime: self.mtime, symlinks: self.symlinks, collected, ..ScanOptions::default() }
    }
}
