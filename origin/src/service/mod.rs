//! Assembles an origin: watch -> scan -> store -> commit -> plan -> serve, with the fleet and the admin
//! interfaces.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Gid, Mode};
use syncd_shared::limits::{PATH_MAX_BYTES, REASON_MAX_BYTES};
use syncd_shared::local_socket::{LocalListener, LocalSocketError};
use syncd_shared::rate::{Bucket, Rate};
use syncd_shared::text::one_line;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::offline::{Desk, describe};
use crate::admin::status::{AgentStatus, HoldStatus, Status};
use crate::admin::{Admin, socket_path};
use crate::commit::{CollectionGate, CommitError, Committer, Parts, Sealer, State, Trigger};
use crate::fleet::Fleet;
use crate::http::health as http;
use crate::keys::{Keys, KeysError};
use crate::overlap;
pub use crate::overlap::OverlapError;
use crate::plan::{PlanBudget, Planner};
use crate::scan::{MtimePolicy, ScanOptions, SymlinkPolicy};
use crate::serve::{self, Services};
use crate::store::{OpenStoreError, Retention, Store, StoreError};
use crate::watch::{Watch, WatchError};

/// Time that a stop waits for running tasks.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Interval of checks of the origin's certificate.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(24 * 60 * 60);
/// Length of the queue of unknown generations reported by agents to the committer.
const OBSERVED_QUEUE: usize = 16;

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
    pub trigger: Trigger,
    /// Interval of walks of subtrees without events.
    pub poll: Duration,
    /// `--mtime`.
    pub mtime: MtimePolicy,
    /// `--symlinks`.
    pub symlinks: SymlinkPolicy,
    /// Extent of the history.
    pub retention: Retention,
    /// Limit shared by all agents.
    pub bwlimit: Option<Rate>,
    /// Group whose members may use the admin socket.
    pub admin_group: Option<u32>,
}

/// Reasons that an origin does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The keys are unreadable, or DATA is not an origin's data directory.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// TREE and DATA overlap.
    #[error(transparent)]
    Overlap(#[from] OverlapError),
    /// Opening the store failed.
    #[error(transparent)]
    OpenStore(#[from] OpenStoreError),
    /// Reading the store failed.
    #[error("read the store")]
    Store(#[from] StoreError),
    /// The runtime is shutting down.
    #[error("the start was interrupted")]
    Interrupted,
    /// There is neither a tree nor a generation.
    #[error("content tree {tree} can't be read and there is no generation yet to serve: give the right --tree", tree = tree.display())]
    NoTree {
        tree: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Starting the watch failed.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// Listening on a port failed.
    #[error("listen on {address}: {hint}")]
    Listen {
        address: SocketAddr,
        /// The next step.
        hint: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// Creating the admin socket failed.
    #[error(transparent)]
    Socket(#[from] LocalSocketError),
    /// Giving `--admin-group` access failed.
    #[error("let the admin group into {path}: start the origin as root, or as a member of that group", path = path.display())]
    AdminGroup {
        /// DATA.
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Loading the fleet's records failed.
    #[error("load the fleet")]
    Fleet(#[from] crate::fleet::FleetError),
    /// Loading the last generation failed.
    #[error(transparent)]
    Sealer(#[from] CommitError),
    /// Preparing the spool of encoded updates failed.
    #[error(transparent)]
    Plan(#[from] crate::plan::PlanError),
    #[error("set up TLS")]
    Tls(#[from] syncd_shared::identity::TlsError),
}

/// A serving origin.
pub struct Running {
    grpc_address: SocketAddr,
    http_address: Option<SocketAddr>,
    committer: Committer,
    fleet: Fleet,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// Creates keys and an empty store in `data`, which must not be initialised. Keys without a store are
/// accepted: an earlier `init` was interrupted, or only the keys were restored from a backup.
pub fn init(data: &Path) -> Result<Keys, StartError> {
    overlap::check_data(data)?;
    let keys = match Keys::create(data) {
        Err(KeysError::Initialised { .. }) if !Store::exists(data) => Keys::open(data)?,
        keys => keys?,
    };
    Store::create(data)?;
    Ok(keys)
}

/// Starts an origin, which is serving on return.
pub async fn start(options: ServeOptions) -> Result<Running, StartError> {
    syncd_shared::open_files::raise_limit();
    overlap::check(&options.tree, &options.data)?;
    let data = options.data.clone();
    let (keys, store) =
        tokio::task::spawn_blocking(move || open(&data)).await.unwrap_or(Err(StartError::Interrupted))?;
    if let Err(source) = std::fs::read_dir(&options.tree)
        && store.latest()?.is_none()
    {
        return Err(StartError::NoTree { tree: options.tree, source });
    }
    let grpc = bind(options.listen, "another program has this port; give another --listen").await?;
    let http = match bind(options.http, "another program has this port; give another --http").await {
        Ok(listener) => Some(listener),
        Err(error) if options.http_required => return Err(error),
        Err(error) => {
            tracing::warn!("health is not answered: {}", crate::error_chain(&error));
            None
        }
    };
    let grpc_address = address_of(&grpc, options.listen)?;
    let http_address = http.as_ref().map(|l| address_of(l, options.http)).transpose()?;
    let group = options.admin_group.map(Gid::from_raw);
    if let Some(group) = group {
        let source = |source| StartError::AdminGroup { path: options.data.clone(), source };
        let_through(&options.data, group).map_err(source)?;
    }
    let socket = LocalListener::bind_for(&socket_path(&options.data), group)?;

    let shutdown = CancellationToken::new();
    // If a later step fails, this stops the parts already started.
    let unfinished = shutdown.clone().drop_guard();
    let tasks = TaskTracker::new();
    let (observed_sender, observed) = mpsc::channel(OBSERVED_QUEUE);
    let planner = Planner::new(store.clone(), &options.data, PlanBudget::default())?;
    let fleet = Fleet::start(store.clone(), keys.clone(), observed_sender, shutdown.clone(), &tasks)?;
    let watch = Arc::new(Watch::start(&options.tree, &options.data, options.poll)?);
    let scan_options =
        ScanOptions { mtime: options.mtime, symlinks: options.symlinks, ..ScanOptions::default() };
    let gate = CollectionGate::default();
    let sealer = Sealer::open(Parts {
        tree: options.tree.clone(),
        options: scan_options,
        store: store.clone(),
        watch: watch.clone(),
        keys: keys.clone(),
        retention: options.retention,
        fleet: fleet.clone(),
        gate: gate.clone(),
        cancel: shutdown.clone(),
    })?;
    if let Some(current) = sealer.current() {
        fleet.announce(current.clone());
    }
    let (committer, owner) =
        Committer::start(sealer, watch.clone(), options.trigger, observed, shutdown.clone());
    tasks.spawn(async move {
        if let Err(error) = owner.await {
            tracing::error!(%error, "the committer died");
        }
    });
    let services = Services {
        keys: keys.clone(),
        fleet: fleet.clone(),
        planner,
        limit: options.bwlimit.map(|rate| Arc::new(Bucket::new(rate))),
    };
    tasks.spawn(serve::serve(grpc, services, shutdown.clone())?);
    tasks.spawn(keep_certificate(keys.clone(), shutdown.clone()));
    let (gone_sender, gone) = watch::channel(None);
    tasks.spawn(http::watch_data(store.clone(), gone_sender, shutdown.clone()));
    if let Some(http) = http {
        let (view, agents, gone) = (committer.view(), fleet.view(), gone.clone());
        let health = move || http::health(&view.borrow(), &agents.borrow(), gone.borrow().as_deref());
        tasks.spawn(syncd_shared::health::serve(http, health, shutdown.clone()));
    }
    let status = {
        let (keys, fleet, committer, watch) = (keys.clone(), fleet.clone(), committer.clone(), watch);
        let described = store.clone();
        let tree = one_line(&options.tree.display().to_string(), PATH_MAX_BYTES);
        move || {
            let mut view = committer.view().borrow().clone();
            if let Some(gone) = gone.borrow().clone() {
                (view.state, view.reason) = (State::Held, Some(gone));
            }
            Status {
                tree: Some(tree.clone()),
                grpc_address: Some(grpc_address.to_string()),
                http_address: http_address.map(|a| a.to_string()),
                state: view.state,
                reason: view.reason,
                hold: view.hold.map(HoldStatus::from),
                polled: watch
                    .polled()
                    .iter()
                    .map(|polled| one_line(&polled.to_string(), REASON_MAX_BYTES))
                    .collect(),
                agents: fleet.view().borrow().agents.iter().map(AgentStatus::new).collect(),
                ..describe(&keys, &described, view.current.as_ref())
            }
        }
    };
    let admin = Admin {
        desk: Arc::new(Desk::new(store, keys, gate)),
        committer: committer.clone(),
        fleet: fleet.clone(),
        status: Arc::new(status),
    };
    tasks.spawn(admin.serve(socket, shutdown.clone()));
    let http = http_address.map(tracing::field::display);
    tracing::info!(tree = %options.tree.display(), grpc = %grpc_address, http, "serving");
    unfinished.disarm();
    Ok(Running { grpc_address, http_address, committer, fleet, shutdown, tasks })
}

/// Lets a group pass through DATA to the socket. Mode 0710 allows entering, but not listing or reading.
fn let_through(data: &Path, group: Gid) -> std::io::Result<()> {
    rustix::fs::chown(data, None, Some(group))?;
    Ok(rustix::fs::chmod(data, Mode::RWXU | Mode::XGRP)?)
}

/// Opens keys and store. Reads the whole index: blocks.
fn open(data: &Path) -> Result<(Arc<Keys>, Arc<Store>), StartError> {
    let (keys, store) = (Keys::open(data)?, Store::open(data)?);
    look_after(&keys);
    Ok((Arc::new(keys), Arc::new(store)))
}

/// Reissues the origin's certificate if due, and warns about the authority's expiry. Blocks.
fn look_after(keys: &Keys) {
    let now = OffsetDateTime::now_utc();
    match keys.reissue_origin_certificate(now) {
        Ok(true) => tracing::info!("the origin's certificate was reissued"),
        Ok(false) => {}
        Err(error) => {
            tracing::error!(error = %crate::error_chain(&error), "reissuing the origin's certificate failed");
        }
    }
    for warning in keys.warnings(now) {
        tracing::warn!("{warning}");
    }
}

/// Checks the keys periodically while the origin serves.
async fn keep_certificate(keys: Arc<Keys>, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(CERTIFICATE_LOOK)).await.is_some() {
        let keys = keys.clone();
        // Fails only if the runtime is shutting down.
        let _ = tokio::task::spawn_blocking(move || look_after(&keys)).await;
    }
}

async fn bind(address: SocketAddr, hint: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, hint, source })
}

fn address_of(listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, StartError> {
    let hint = "the address of the socket can't be read";
    listener.local_addr().map_err(|source| StartError::Listen { address: asked, hint, source })
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
