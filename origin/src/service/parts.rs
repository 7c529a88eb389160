//! The parts that serve: publisher, purger, herald, the port for agents, upkeep, and the views of them all.

use std::net::SocketAddr;
use std::sync::Arc;

use syncd_runtime::rate::Bucket;
use syncd_shared::limits::PATH_MAX_BYTES;
use syncd_shared::text::one_line;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Core, Origin, StartError, deposed, leave_agents, upkeep};
use crate::admin::offline::DataDirectory;
use crate::http::metrics;
use crate::on_rollout::Herald;
use crate::publish::{PublishRequests, Publisher};
use crate::purge::{PurgeView, Purger};
use crate::serve::{self, Services};
use crate::state::{DataTrouble, OriginState};

/// Access to the parts that only some origins have.
pub(super) struct Extras {
    /// `None` without `--publish`.
    publish: Option<PublishRequests>,
    /// `None` without `--purge`.
    purge: Option<watch::Receiver<PurgeView>>,
}

impl Origin {
    /// Starts the parts that are configured: publisher, purger and the command of rollouts.
    pub(super) fn start_extras(&self, core: &Core) -> Result<Extras, StartError> {
        let extras = Extras { publish: self.start_publisher(core)?, purge: self.start_purger(core)? };
        if let Some(command) = self.options.on_rollout.clone() {
            let (store, shutdown) = (self.store.clone(), self.shutdown.clone());
            let (rollout, committer) = (core.fleet.rollout(), core.committer.view());
            self.tasks.spawn(Herald { store, command, rollout, committer, shutdown }.run());
        }
        Ok(extras)
    }

    fn start_publisher(&self, core: &Core) -> Result<Option<PublishRequests>, StartError> {
        let Some(options) = self.options.publish.clone() else { return Ok(None) };
        let (store, keys) = (self.store.clone(), self.keys.clone());
        let (planner, data) = (core.planner.clone(), self.options.data.clone());
        let bucket = options.url.open()?;
        let publisher = Publisher { bucket, store, keys, planner, data, options };
        let (requests, task) = publisher.start(core.fleet.rollout(), self.shutdown.clone());
        self.tasks.spawn(task);
        Ok(Some(requests))
    }

    fn start_purger(&self, core: &Core) -> Result<Option<watch::Receiver<PurgeView>>, StartError> {
        let Some(options) = self.options.purge.clone() else { return Ok(None) };
        let (fleet, rollout) = (core.fleet.view(), core.fleet.rollout());
        let (store, shutdown) = (self.store.clone(), self.shutdown.clone());
        let purger = Purger { store, options, fleet, rollout, committer: core.committer.view(), shutdown };
        let (view, task) = purger.start()?;
        self.tasks.spawn(task);
        Ok(Some(view))
    }

    /// Serves agents until the origin stops or is deposed.
    pub(super) fn serve_agents(
        &self,
        grpc: TcpListener,
        core: &Core,
        extras: &Extras,
    ) -> Result<(), StartError> {
        let services = Services {
            keys: self.keys.clone(),
            fleet: core.fleet.clone(),
            planner: core.planner.clone(),
            limit: self.options.bwlimit.map(|rate| Arc::new(Bucket::new(rate))),
            // A directory that is no longer configured stays in DATA, and is not offered to nodes.
            collected: self.collected.clone().filter(|_| !self.options.collected.is_empty()),
            locations: extras.publish.as_ref().and_then(PublishRequests::locations),
            audit: self.audit.clone(),
        };
        let agents = self.shutdown.child_token();
        self.tasks.spawn(serve::serve(grpc, services, agents.clone())?);
        self.tasks.spawn(leave_agents(deposed(&self.options), agents));
        Ok(())
    }

    /// The state of all parts. `data_trouble` comes from [`Self::start_upkeep`].
    pub(super) fn state(
        &self,
        core: &Core,
        extras: Extras,
        data_trouble: watch::Receiver<Option<DataTrouble>>,
        grpc_address: SocketAddr,
        http_address: Option<SocketAddr>,
    ) -> OriginState {
        let Extras { publish, purge } = extras;
        OriginState {
            tree: one_line(&self.options.tree.display().to_string(), PATH_MAX_BYTES),
            grpc_address,
            http_address,
            committer: core.committer.view(),
            fleet: core.fleet.view(),
            rollout: core.fleet.rollout(),
            data_trouble,
            deposed: deposed(&self.options),
            publish,
            purge,
            watch: core.watch.clone(),
        }
    }

    /// Starts the periodic checks. Returns the part of DATA that is found to be missing.
    pub(super) fn start_upkeep(&self) -> watch::Receiver<Option<DataTrouble>> {
        let Self { keys, store, collected, shutdown, tasks, .. } = self;
        if let Some(collection) = collected {
            tasks.spawn(upkeep::expire_collected(collection.clone(), shutdown.clone()));
        }
        tasks.spawn(upkeep::keep_certificate(keys.clone(), shutdown.clone()));
        let (trouble, data_trouble) = watch::channel(None);
        tasks.spawn(upkeep::watch_data(store.clone(), keys.clone(), trouble, shutdown.clone()));
        data_trouble
    }

    /// State and files that the metrics are read from.
    pub(super) fn sources(&self, state: OriginState) -> metrics::Sources {
        let (store, keys, collected) = (self.store.clone(), self.keys.clone(), self.collected.clone());
        metrics::Sources { state, store, keys, data: self.options.data.clone(), collected }
    }

    /// The data directory, as admin commands and the page use it.
    pub(super) fn directory(&self, core: &Core) -> Arc<DataDirectory> {
        let (store, keys, location) = (self.store.clone(), self.keys.clone(), self.options.location());
        let directory = DataDirectory::new(store, keys, core.gate.clone(), Some(location));
        Arc::new(directory.with_collected(self.collected.clone()))
    }
}
