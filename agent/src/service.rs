//! Assembles a running agent: starts and stops session, worker, renewal, hooks, admin socket and health page
//! together.
//!
//! One process may run several agents, each on its own root; the quickstart and the tests do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use syncd_runtime::local_socket::{LocalListener, LocalSocketError};
use syncd_runtime::own_directory;
use syncd_runtime::tls::TlsError;
use syncd_shared::identity::SignedTrust;
use syncd_shared::limits::PATH_MAX_BYTES;
use syncd_shared::text::{error_chain, one_line};
use syncd_shared::{AgentState, NodeStanding, OrderedStanding};
use tokio::net::TcpListener;
use tokio::runtime::Handle as Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::check::Check;
pub use crate::config::RunOptions;
use crate::dialer::Dialer;
use crate::fetch::OriginSource;
use crate::follow::{self, FollowError, Follower};
use crate::hooks::{DurableHook, Hook, HookName, Occasion};
use crate::http::BindError;
use crate::identity::{AgentIdentity, IdentityError};
use crate::metrics::{self, Observed};
use crate::renew::Keeper;
use crate::replica::work;
use crate::session::worker::{Hooks, OpenSource, ReplicaWork};
use crate::session::{Handle, Parts, Session, SessionError};
use crate::source::Source;
use crate::source::chain::{Chain, GivenUp};
use crate::source::located::Places;
use crate::state::disk::Owners;
use crate::state::layout;
use crate::status::{AgentStatus, RunSettings};
use crate::{admin, collected, hooks, http};

/// Time for everything except the session to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Reason why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The identity could not be loaded.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The published tree could not be trusted, or not be read for the first time.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The parts of the identity do not match.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The replica could not be opened.
    #[error(transparent)]
    Replica(#[from] crate::replica::OpenReplicaError),
    /// The HTTP port given by the operator could not be bound.
    #[error(transparent)]
    Http(#[from] BindError),
    /// The admin socket could not be created.
    #[error(transparent)]
    Socket(#[from] LocalSocketError),
    /// The session ended on its own.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A task panicked, which is a defect.
    #[error("a task of the agent has ended unexpectedly: start the agent again and report this")]
    Panicked,
}

/// A running agent. Dropping it stops the agent.
#[derive(Debug)]
pub struct Running {
    session: Handle,
    http_address: Option<SocketAddr>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), SessionError>>,
    others: TaskTracker,
}

impl Running {
    /// The current status.
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.session.status.clone()
    }

    /// Address of the health page; `None`: the default port was taken.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Handle of the session.
    pub fn session(&self) -> &Handle {
        &self.session
    }

    /// Waits until the agent ends on its own, which only a defect causes. Cancel safe.
    pub async fn ended(&mut self) -> Result<(), ServiceError> {
        Ok((&mut self.task).await.map_err(|_| ServiceError::Panicked)??)
    }

    /// Finishes an activation in progress and stops everything else at once. Not cancel safe.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if !self.task.is_finished()
            && let Err(error) = self.ended().await
        {
            tracing::error!(error = error_chain(&error), "the agent did not stop cleanly");
        }
        self.others.close();
        if tokio::time::timeout(STOP_LIMIT, self.others.wait()).await.is_err() {
            tracing::warn!(tasks = self.others.len(), "some tasks did not stop in time");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts the agent on a root that has joined. Recovery, which needs no origin, is complete when this
/// returns.
pub async fn start(options: RunOptions) -> Result<Running, ServiceError> {
    let identity = match options.follow.clone() {
        Some(follow) => follow::identity(&options.root, follow).await?,
        None => AgentIdentity::load(&options.root)?,
    };
    own_directory::warn_of_owner(&options.root);
    if let Some(closed) = own_directory::closed(&options.root) {
        tracing::warn!("{closed}");
    }
    let opening = options.clone();
    let signers = work::signers(&identity);
    let replica = tokio::task::spawn_blocking(move || work::open(&opening, signers))
        .await
        .map_err(|_| ServiceError::Panicked)??;
    start_with(options, identity, replica).await
}

/// Starts the agent with an open replica.
pub async fn start_with<R: ReplicaWork>(
    options: RunOptions,
    identity: AgentIdentity,
    replica: R,
) -> Result<Running, ServiceError> {
    let http = listen_http(&options).await?;
    let for_others = listen_for_others(&options).await?;
    let http_address = http.as_ref().and_then(|listener| listener.local_addr().ok());
    let socket = LocalListener::bind(&admin::socket_path(&options.root))?;
    let stop = CancellationToken::new();
    let others = TaskTracker::new();

    let about = about(&options, &identity);
    let keeper = Arc::new(Keeper::new(options.root.clone(), identity, options.peer())?);
    let dialer = keeper.dialer();
    let follower = options.follow.as_ref().map(Follower::new).transpose()?;
    let live = replica.state().live.map(|live| live.number().get());
    let (replica, hooks) = run_missing(replica, hooks(&options, live)).await?;
    let parts = Parts {
        replica,
        open_source: open_source(&options, dialer.clone(), follower.clone()),
        hooks: hooks.clone(),
        check: options.check.clone().map(|check| Check::new(check, options.root.clone())),
        dialer: dialer.clone(),
        follower,
        follow: take_trust(keeper.clone()),
        about,
    };
    let (session, handle) = Session::new(parts)?;

    for hook in [hooks.on, hooks.after].into_iter().flatten() {
        others.spawn(run_hook(hook, handle.clone(), options.root.clone(), stop.clone()));
    }
    let (report, collected) = watch::channel(None);
    others.spawn(admin::serve(socket, handle.clone(), keeper.clone(), collected.clone(), stop.clone()));
    let certified = keeper.clone();
    if options.follow.is_none() {
        let renewing = stop.clone();
        others.spawn(async move { keeper.serve(renewing).await });
        // The option --owner is for the replica, which visitors do not write to.
        let owners = Owners::new(None);
        let (root, status) = (options.root.clone(), handle.status.clone());
        others.spawn(collected::serve(root, dialer, owners, status, report, stop.clone()));
    }
    let observed = Arc::new(Observed::default());
    let sources = metrics::Sources {
        status: handle.status.clone(),
        live: handle.live.clone(),
        observed,
        collected,
        root: options.root.clone(),
        certificate_end: Arc::new(move || certified.certificate_end()),
    };
    serve_pages(http, for_others, sources, &others, &stop);
    let task = tokio::spawn(session.run(stop.clone()));
    Ok(Running { session: handle, http_address, stop, task, others })
}

/// Opens sources for each command: the places that an announcement names, then the origin or object store.
fn open_source(options: &RunOptions, dialer: Dialer, follower: Option<Follower>) -> OpenSource {
    let (source, given_up) =
        (OriginSource::new(Runtime::current(), dialer, options.bwlimit), GivenUp::default());
    let mut places = Places::default();
    Box::new(move |elsewhere, abandoned| {
        let named = elsewhere.map(|elsewhere| places.sources(&elsewhere, &abandoned));
        let last: (_, Box<dyn Source>) = match &follower {
            Some(follower) => ("object store", Box::new(follower.source(abandoned))),
            None => ("origin", Box::new(source.until(abandoned))),
        };
        Box::new(Chain::new(given_up.clone(), named.unwrap_or_default().into_iter().chain([last])))
    })
}

/// Stores newer trust documents.
fn take_trust(keeper: Arc<Keeper>) -> Box<dyn FnMut(SignedTrust) + Send> {
    Box::new(move |document| {
        if let Err(error) = keeper.follow(document) {
            tracing::warn!(error = error_chain(&error), "the newer trust document was not stored");
        }
    })
}

/// Serves health on both ports, and metrics on that of `http` alone.
fn serve_pages(
    http: Option<TcpListener>,
    for_others: Option<TcpListener>,
    sources: metrics::Sources,
    others: &TaskTracker,
    stop: &CancellationToken,
) {
    let pages = http::pages(&sources.status);
    if let Some(listener) = for_others {
        others.spawn(syncd_runtime::health::serve(listener, pages.clone(), stop.clone()));
    }
    if let Some(listener) = http {
        others.spawn(sources.observed.clone().follow(sources.status.clone(), stop.clone()));
        let pages = pages.merge(syncd_runtime::metrics::page(move || metrics::registry(&sources)));
        others.spawn(syncd_runtime::health::serve(listener, pages, stop.clone()));
    }
}

/// Runs the on-activate hook that an earlier process did not run to its end.
async fn run_missing<R: ReplicaWork>(replica: R, hooks: Hooks) -> Result<(R, Hooks), ServiceError> {
    let run = tokio::task::spawn_blocking(move || {
        hooks.run_missing(&replica);
        (replica, hooks)
    });
    run.await.map_err(|_| ServiceError::Panicked)
}

async fn listen_for_others(options: &RunOptions) -> Result<Option<TcpListener>, ServiceError> {
    match options.health_listen {
        Some(address) => Ok(Some(http::bind(address).await?)),
        None => Ok(None),
    }
}

async fn listen_http(options: &RunOptions) -> Result<Option<TcpListener>, ServiceError> {
    match http::bind(options.http).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if options.http_required => Err(error.into()),
        Err(error) => {
            tracing::warn!(error = error_chain(&error), "there is no health page");
            Ok(None)
        }
    }
}

/// Status before any event.
pub(crate) fn about(options: &RunOptions, identity: &AgentIdentity) -> AgentStatus {
    AgentStatus {
        name: identity.name().to_string(),
        root_key: identity.trust().root.to_string(),
        trust: identity.trust().document.number(),
        root_directory: one_line(&options.root.display().to_string(), PATH_MAX_BYTES),
        origin: options.peer().unwrap_or_else(|| identity.origin_address().to_owned()),
        connected: false,
        revoked: false,
        generation: None,
        root: None,
        live: one_line(&options.root.join("live").display().to_string(), PATH_MAX_BYTES),
        swap: options.swap.unwrap_or_default(),
        state: AgentState::Empty,
        accepted: None,
        generations: Vec::new(),
        spares: 0,
        running: true,
        progress: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        origin_version: None,
        origin_collects: false,
        last_contact: None,
        head: None,
        head_due: None,
        error: None,
        fork: None,
        warning: own_directory::closed(&options.root),
        drift: None,
        healed: 0,
        collected: None,
        hook: None,
        after: None,
        check: None,
        label: None,
        refused: Vec::new(),
        node: NodeStanding::default(),
        ordered: OrderedStanding::default(),
        behind: false,
        settings: Some(RunSettings {
            keep: options.keep,
            grace_ms: u64::try_from(options.grace.as_millis()).unwrap_or(u64::MAX),
            on_activate: options.on_activate.clone(),
        }),
    }
}

/// Creates the hooks of an open replica, where generation `live` is live. If a hook is no longer set, drops
/// what was due for it.
fn hooks(options: &RunOptions, live: Option<u64>) -> Hooks {
    let state = options.root.join("state");
    let hook = |name, command: &Option<String>| {
        let limit = options.hook_timeout.unwrap_or(HookName::limit(name));
        command.as_ref().map(|command| Hook::new(name, command.clone(), limit, &state))
    };
    let durable = |name, command: &Option<String>| {
        if command.is_none()
            && let Err(error) = hooks::forget(&state, name)
        {
            let error = error_chain(&error);
            tracing::warn!(error, "can't remove the record of an {name} hook that is no longer set");
        }
        Some(DurableHook::new(hook(name, command)?, live))
    };
    let on = durable(HookName::OnActivate, &options.on_activate).map(Arc::new);
    let first = on.as_ref().map(|on| on.state());
    let after = durable(HookName::AfterActivate, &options.after_activate);
    Hooks {
        before: hook(HookName::BeforeActivate, &options.before_activate),
        after: after.map(|after| Arc::new(after.following(first))),
        on,
    }
}

async fn run_hook(
    hook: Arc<DurableHook>,
    session: Handle,
    root: std::path::PathBuf,
    stop: CancellationToken,
) {
    let live = move || {
        let live = session.live.borrow();
        let generation = live.as_ref()?;
        let link = root.join("live");
        Some(Occasion::of(generation, None, layout::live_tree(&link), link))
    };
    hook.serve(live, stop).await;
}
