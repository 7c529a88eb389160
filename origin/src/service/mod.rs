//! Assembles an origin: watch -> scan -> store -> commit -> plan -> serve, with the fleet and the admin
//! interfaces.

mod error;
mod options;
mod pages;
mod parts;
mod sockets;
mod standby;
mod upkeep;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use syncd_runtime::own_directory;
use syncd_shared::delta::DeltaEffort;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::audit::Audit;
use crate::collected::{Collection, OnNodes};
pub use crate::commit::Trigger;
use crate::commit::{CollectionGate, Committer, Parts, Sealer};
use crate::events::Events;
use crate::fleet::Fleet;
use crate::keys::{Keys, KeysError};
use crate::overlap;
pub use crate::overlap::OverlapError;
use crate::plan::{EffortRule, PlanBudget, Planner};
use crate::publish::{Deposed, FencedCommits};
pub use crate::publish::{PublishOptions, restore};
pub use crate::purge::PurgeOptions;
pub use crate::scan::{MtimePolicy, SymlinkPolicy};
pub use crate::source::{GitOptions, Lfs, Mtime, Submodules};
use crate::source::{GitTree, NewDirectories, TreeSource, WorkTree};
use crate::store::Store;
use crate::watch::Watch;
pub use error::StartError;
pub use options::ServeOptions;
use pages::Ports;
use sockets::Sockets;
pub use standby::{StoodBy, stand_by};

/// Time that a stop waits for running tasks.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Length of the queue of unknown generations reported by agents to the committer.
const OBSERVED_QUEUE: usize = 16;
/// Connected nodes from which the bytes of an update count more than the time of its encoding.
const MANY_NODES: usize = 8;

/// A serving origin.
pub struct Running {
    grpc_address: SocketAddr,
    http_address: Option<SocketAddr>,
    committer: Committer,
    fleet: Fleet,
    _new_directories: Option<NewDirectories>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// Creates keys and an empty store in `data`, which must not be initialised. Keys without a store are
/// accepted: an earlier `init` was interrupted, or only the keys were restored from a backup.
pub fn init(data: &Path) -> Result<Keys, StartError> {
    create(data, None)
}

/// Like [`init`], with a passphrase that seals the root key. It is asked for if keys are made.
pub fn init_sealed(
    data: &Path,
    passphrase: impl FnOnce() -> anyhow::Result<Option<String>>,
) -> anyhow::Result<Keys> {
    match Keys::check_unused(data) {
        Ok(()) => Ok(create(data, passphrase()?.as_deref())?),
        // The keys were restored, and their root key is elsewhere.
        Err(KeysError::Initialised { .. }) if !Store::exists(data) => Ok(create(data, None)?),
        Err(error) => Err(error.into()),
    }
}

/// Whether `data` has keys and a store.
pub fn is_complete(data: &Path) -> bool {
    matches!(Keys::check_unused(data), Err(KeysError::Initialised { .. })) && Store::exists(data)
}

fn create(data: &Path, passphrase: Option<&str>) -> Result<Keys, StartError> {
    overlap::check_data(data)?;
    let keys = match Keys::create_sealed(data, passphrase) {
        Err(KeysError::Initialised { .. }) if !Store::exists(data) => Keys::open(data)?,
        keys => keys?,
    };
    Store::create(data)?;
    Ok(keys)
}

/// Starts an origin, which is serving on return.
pub async fn start(options: ServeOptions) -> Result<Running, StartError> {
    syncd_runtime::open_files::raise_limit();
    overlap::check(&options.tree, &options.data)?;
    own_directory::warn_of_owner(&options.data);
    let origin = Origin::open(options).await?;
    let sockets = Sockets::bind(&origin.options).await?;
    // If a later step fails, this stops the parts already started.
    let unfinished = origin.shutdown.clone().drop_guard();
    let core = origin.start_core(origin.fence().await?)?;
    let running = origin.serve(core, sockets)?;
    unfinished.disarm();
    Ok(running)
}

/// The opened data directory, and what every part of an origin shares.
struct Origin {
    options: ServeOptions,
    keys: Arc<Keys>,
    store: Arc<Store>,
    audit: Audit,
    /// `None`: none is configured, and DATA has none.
    collected: Option<Collection>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// The source of trees. For a directory, its watch, and where trees settle, the watch of new directories.
type Watched = (Box<dyn TreeSource>, Option<Arc<Watch>>, Option<NewDirectories>);

/// The parts that turn the tree into generations and updates.
struct Core {
    planner: Planner,
    fleet: Fleet,
    /// `None` if the source is no directory.
    watch: Option<Arc<Watch>>,
    /// In settle mode only.
    new_directories: Option<NewDirectories>,
    gate: CollectionGate,
    committer: Committer,
}

impl Origin {
    async fn open(options: ServeOptions) -> Result<Self, StartError> {
        let (data, directories) = (options.data.clone(), options.collected.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let (keys, store) = open(&data)?;
            let audit = Audit::open(&data)?;
            let collected = match directories.is_empty() {
                true => Collection::open_existing(&data)?,
                false => Some(Collection::open(&data, directories)?),
            };
            Ok((keys, store, audit, collected))
        });
        let (keys, store, audit, collected) = opened.await.unwrap_or(Err(StartError::Interrupted))?;
        if let Err(source) = std::fs::read_dir(&options.tree)
            && store.latest()?.is_none()
        {
            return Err(StartError::NoTree { tree: options.tree, source });
        }
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        Ok(Self { options, keys, store, audit, collected, shutdown, tasks })
    }

    fn start_core(&self, fence: Option<FencedCommits>) -> Result<Core, StartError> {
        let Self { options, keys, store, audit, collected, shutdown, tasks } = self;
        let (observed_sender, observed) = mpsc::channel(OBSERVED_QUEUE);
        let fleet = Fleet::start(store.clone(), keys.clone(), observed_sender, shutdown.clone(), tasks)?;
        let effort = effort_of_updates(options, &fleet);
        let planner = Planner::with_effort(store.clone(), &options.data, PlanBudget::default(), effort)?;
        let (source, watch, new_directories) = self.source()?;
        let gate = CollectionGate::default();
        let sealer = Sealer::open(Parts {
            source,
            options: options.scan(collected.as_ref(), |one| OnNodes::of(store, keys, one)),
            store: store.clone(),
            keys: keys.clone(),
            audit: audit.clone(),
            retention: options.retention,
            policies: Arc::new(options.policies.clone()),
            fleet: fleet.clone(),
            gate: gate.clone(),
            cancel: shutdown.clone(),
        })?;
        let sealer = sealer.with_fence(fence, deposed(options));
        if let Some(current) = sealer.current() {
            fleet.publish(current.clone(), sealer.current_plan().clone());
        }
        let (committer, owner) = Committer::start(sealer, options.trigger, observed, shutdown.clone());
        tasks.spawn(async move {
            if let Err(error) = owner.await {
                tracing::error!(%error, "the committer died");
            }
        });
        Ok(Core { planner, fleet, watch, new_directories, gate, committer })
    }

    async fn fence(&self) -> Result<Option<FencedCommits>, StartError> {
        let Some(publish) = self.options.publish.clone().filter(|publish| publish.fenced) else {
            return Ok(None);
        };
        let (bucket, store, keys) = (publish.url.open()?, self.store.clone(), self.keys.clone());
        let opened = tokio::task::spawn_blocking(move || FencedCommits::open(bucket, &store, keys));
        Ok(Some(opened.await.map_err(|_| StartError::Interrupted)??))
    }

    /// The source of trees, and what watches a directory for it.
    fn source(&self) -> Result<Watched, StartError> {
        let options = &self.options;
        if let Some(git) = &options.git {
            let source = GitTree::open(options.tree.clone(), git.clone(), options.poll);
            return Ok((Box::new(source.map_err(StartError::Thread)?), None, None));
        }
        let watch = Arc::new(Watch::start(&options.tree, &options.data, options.poll)?);
        let settles = matches!(options.trigger, Trigger::Settle { .. });
        let new_directories = settles.then(|| NewDirectories::follow(watch.clone())).transpose();
        let new_directories = new_directories.map_err(StartError::Thread)?;
        let source =
            WorkTree::new(options.tree.clone(), watch.clone()).hold_while(options.hold_while.clone());
        Ok((Box::new(source), Some(watch), new_directories))
    }

    fn serve(self, core: Core, sockets: Sockets) -> Result<Running, StartError> {
        let Sockets { grpc, grpc_address, http, http_address, page, admin } = sockets;
        let extras = self.start_extras(&core)?;
        self.serve_agents(grpc, &core, &extras)?;
        let state = self.state(&core, extras, self.start_upkeep(), grpc_address, http_address);
        let (directory, sources) = (self.directory(&core), self.sources(state.clone()));
        let Self { options, audit, collected, shutdown, tasks, .. } = self;
        let Core { fleet, new_directories, committer, .. } = core;
        let page = Ports { http, http_address, page }.serve(sources, directory.clone(), &tasks, &shutdown)?;
        let news = collected.map(|collection| collection.news());
        let events = Events::start(&options.data, state.clone(), news, shutdown.clone(), &tasks)?;
        let (answered, asked) = (committer.clone(), fleet.clone());
        let answering = Admin { directory, committer: answered, fleet: asked, state, events, audit, page };
        tasks.spawn(answering.serve(admin, shutdown.clone()));
        let health = http_address.map(tracing::field::display);
        tracing::info!(tree = %options.tree.display(), agents = %grpc_address, health, "serving");
        let _new_directories = new_directories;
        Ok(Running { grpc_address, http_address, committer, fleet, _new_directories, shutdown, tasks })
    }
}

/// Bytes count more than the origin's time where many nodes fetch them, where they are published, and where
/// the line is limited.
fn effort_of_updates(options: &ServeOptions, fleet: &Fleet) -> EffortRule {
    let is_thin = options.bwlimit.is_some() || options.publish.is_some();
    let view = fleet.view();
    Box::new(move || {
        let connected = || view.borrow().agents.iter().filter(|agent| agent.connected).count();
        if is_thin || connected() >= MANY_NODES { DeltaEffort::High } else { DeltaEffort::Low }
    })
}

fn deposed(options: &ServeOptions) -> Deposed {
    options.publish.as_ref().map(|publish| publish.deposed.clone()).unwrap_or_default()
}

/// Closes the port for agents when this origin is deposed, so that they use their next address.
async fn leave_agents(deposed: Deposed, agents: CancellationToken) {
    tokio::select! {
        () = agents.cancelled() => {}
        () = deposed.found() => {
            tracing::warn!("this origin is deposed: agents are left to the one that was promoted");
            agents.cancel();
        }
    }
}

/// Opens keys and store. Reads the whole index: blocks.
fn open(data: &Path) -> Result<(Arc<Keys>, Arc<Store>), StartError> {
    let (keys, store) = (Keys::open(data)?, Store::open(data)?);
    upkeep::look_after(&keys);
    Ok((Arc::new(keys), Arc::new(store)))
}

impl Running {
    /// Bound address for agents.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Bound address for health checks; `None` if the default port was occupied.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    pub fn committer(&self) -> &Committer {
        &self.committer
    }

    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Returns when the origin has ended without being stopped. Cancel safe.
    pub async fn ended(&self) {
        let mut view = self.committer.view();
        while view.changed().await.is_ok() {}
    }

    /// Stops everything. A generation being sealed is completed, and streams are closed.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_DEADLINE, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "stopping without waiting any longer");
        }
    }
}
