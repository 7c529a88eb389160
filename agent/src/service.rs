//! A running agent: session, worker, renewal, hooks, admin socket and health page, started and stopped together.
//!
//! Several agents may run in one process, on roots of their own; the quickstart and the tests do that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use syncd_shared::identity::tls::TlsError;
use syncd_shared::limits::PATH_MAX_BYTES;
use syncd_shared::local_socket::{LocalListener, LocalSocketError};
use syncd_shared::own_directory;
use syncd_shared::text::{error_chain, one_line};
use tokio::net::TcpListener;
use tokio::runtime::Handle as Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::config::RunOptions;
use crate::fetch::OriginSource;
use crate::hooks::{AfterHook, Hook, HookName, Occasion};
use crate::http::BindError;
use crate::identity::{AgentIdentity, IdentityError};
use crate::renew::Keeper;
use crate::session::worker::{Hooks, ReplicaWork};
use crate::session::{Handle, Parts, Session, SessionError};
use crate::state::layout;
use crate::status::{AgentStatus, RunSettings, State};
use crate::{admin, hooks, http};

/// Everything but the session is given so long to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// It does not know who it is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The parts of its identity don't belong together.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Its replica can't be opened.
    #[error(transparent)]
    Replica(#[from] crate::replica::OpenReplicaError),
    /// The HTTP port that was asked for is taken.
    #[error(transparent)]
    Http(#[from] BindError),
    /// No admin socket.
    #[error(transparent)]
    Socket(#[from] LocalSocketError),
    /// It ended by itself.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A defect: a task panicked.
    #[error("a task of the agent has ended unexpectedly: start the agent again and report this")]
    Panicked,
}

/// An agent that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Running {
    session: Handle,
    http_address: Option<SocketAddr>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), SessionError>>,
    others: TaskTracker,
}

impl Running {
    /// What the agent says of itself, always current.
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.session.status.clone()
    }

    /// Where health is answered; `None`: the default port was taken.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Asks things of the session.
    pub fn session(&self) -> &Handle {
        &self.session
    }

    /// Waits until the agent ends by itself, which it does only on a defect. Cancel safe.
    pub async fn ended(&mut self) -> Result<(), ServiceError> {
        Ok((&mut self.task).await.map_err(|_| ServiceError::Panicked)??)
    }

    /// Stops: finishes an activation in flight, ends everything else at once. Not cancel safe.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if !self.task.is_finished()
            && let Err(error) = self.ended().await
        {
            tracing::error!(error = error_chain(&error), "the agent did not stop in order");
        }
        self.others.close();
        if tokio::time::timeout(STOP_LIMIT, self.others.wait()).await.is_err() {
            tracing::warn!(tasks = self.others.len(), "tasks are left behind");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts the agent on a root that has joined. Recovery, which needs no origin, is done when this returns.
pub async fn start(options: RunOptions) -> Result<Running, ServiceError> {
    let identity = AgentIdentity::load(&options.root)?;
    own_directory::warn_of_owner(&options.root);
    let opening = options.clone();
    let replica = tokio::task::spawn_blocking(move || crate::replica::work::open(&opening))
        .await
        .map_err(|_| ServiceError::Panicked)??;
    start_with(options, identity, replica).await
}

/// Starts the agent with a replica that is open already.
pub async fn start_with<R: ReplicaWork>(
    options: RunOptions,
    identity: AgentIdentity,
    replica: R,
) -> Result<Running, ServiceError> {
    let http = listen_http(&options).await?;
    let http_address = http.as_ref().and_then(|listener| listener.local_addr().ok());
    let socket = LocalListener::bind(&admin::socket_path(&options.root))?;
    let stop = CancellationToken::new();
    let others = TaskTracker::new();

    let about = about(&options, &identity);
    let (tree_id, signing_key) = (identity.tree_id(), *identity.signing_key());
    let keeper = Arc::new(Keeper::new(options.root.clone(), identity, options.origin.clone())?);
    let dialer = keeper.dialer();
    let source = OriginSource::new(Runtime::current(), dialer.clone(), options.bwlimit);
    let live = replica.state().live.map(|live| live.number().get());
    let hooks = hooks(&options, live);
    let pinning = keeper.clone();
    let parts = Parts {
        replica,
        open_source: Box::new(move |abandoned| Box::new(source.until(abandoned))),
        hooks: hooks.clone(),
        dialer,
        tree_id,
        signing_key,
        pin: Box::new(move |key| match pinning.pin(key) {
            Ok(()) => tracing::info!("the origin's signing key has changed"),
            Err(error) => tracing::warn!(error = error_chain(&error), "new signing key not stored"),
        }),
        about,
    };
    let (session, handle) = Session::new(parts)?;

    if let Some(after) = hooks.after {
        others.spawn(run_after_hook(after, handle.clone(), options.root.clone(), stop.clone()));
    }
    others.spawn(admin::serve(socket, handle.clone(), keeper.clone(), stop.clone()));
    let renewing = stop.clone();
    others.spawn(async move { keeper.serve(renewing).await });
    if let Some(listener) = http {
        let status = handle.status.clone();
        let health = move || http::health(&status.borrow());
        others.spawn(syncd_shared::health::serve(listener, health, stop.clone()));
    }
    let task = tokio::spawn(session.run(stop.clone()));
    Ok(Running { session: handle, http_address, stop, task, others })
}

async fn listen_http(options: &RunOptions) -> Result<Option<TcpListener>, ServiceError> {
    match http::bind(options.http).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if options.http_required => Err(error.into()),
        Err(error) => {
            tracing::warn!(error = error_chain(&error), "no health page");
            Ok(None)
        }
    }
}

/// A status before anything has happened.
pub(crate) fn about(options: &RunOptions, identity: &AgentIdentity) -> AgentStatus {
    AgentStatus {
        name: identity.name().to_string(),
        root_directory: one_line(&options.root.display().to_string(), PATH_MAX_BYTES),
        origin: options.origin.clone().unwrap_or_else(|| identity.origin_address().to_owned()),
        connected: false,
        generation: None,
        root: None,
        live: one_line(&options.root.join("live").display().to_string(), PATH_MAX_BYTES),
        state: State::Empty,
        accepted: None,
        generations: Vec::new(),
        spares: 0,
        running: true,
        progress: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        origin_version: None,
        last_contact: None,
        error: None,
        drift: None,
        hook: None,
        settings: Some(RunSettings {
            keep: options.keep,
            grace_ms: u64::try_from(options.grace.as_millis()).unwrap_or(u64::MAX),
            on_activate: options.on_activate.clone(),
        }),
    }
}

/// The hooks of a replica that is open, with this generation live. What is due of a hook that is not set any more is
/// dropped.
fn hooks(options: &RunOptions, live: Option<u64>) -> Hooks {
    let state = options.root.join("state");
    if options.on_activate.is_none()
        && let Err(error) = hooks::forget(&state)
    {
        tracing::warn!(error = error_chain(&error), "the record of an on-activate hook that is gone stays");
    }
    let hook = |name, command: &Option<String>| {
        command.as_ref().map(|command| Hook::new(name, command.clone(), options.hook_timeout, &state))
    };
    Hooks {
        before: hook(HookName::BeforeActivate, &options.before_activate),
        after: hook(HookName::OnActivate, &options.on_activate)
            .map(|hook| Arc::new(AfterHook::new(hook, live))),
    }
}

async fn run_after_hook(
    hook: Arc<AfterHook>,
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
