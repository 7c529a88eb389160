//! `status` and `verify` while no agent runs: the replica is opened here, under its lock.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use tokio::runtime::Handle as Runtime;

use crate::config::RunOptions;
use crate::fetch::OriginSource;
use crate::hooks;
use crate::identity::AgentIdentity;
use crate::renew::Keeper;
use crate::replica::work;
use crate::service::{self, ServiceError};
use crate::session::worker::{Display, Failure, ReplicaWork, Verified};
use crate::status::{AgentStatus, State};

/// Why a command could not do its work on a replica.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The replica or the identity can't be opened.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// It was not verified.
    #[error(transparent)]
    Verify(#[from] Failure),
    /// A defect: the thread panicked.
    #[error("the verification has ended unexpectedly: report this")]
    Panicked,
}

/// What the record says. Blocks.
pub fn status(root: &Path) -> Result<AgentStatus, OfflineError> {
    let options = RunOptions::new(root.to_owned());
    let identity = AgentIdentity::load(root).map_err(ServiceError::from)?;
    let replica = work::open_as_before(&options).map_err(ServiceError::from)?;
    let held = replica.state();
    let live = held.live.as_ref().map(|g| g.number().get());
    // The hook's command is the running agent's alone: what is due is all that is known here.
    let hook = hooks::left_due(&root.join("state"), live);
    let reached = if hook.is_some() { State::Switched } else { State::Live };
    Ok(AgentStatus {
        generation: live,
        root: held.live.as_ref().map(|g| g.root_hash().to_string()),
        state: if held.live.is_some() { reached } else { State::Empty },
        accepted: held.accepted.as_ref().map(|g| g.number().get()),
        generations: held.generations.iter().map(|n| n.get()).collect(),
        spares: held.spares,
        drift: held.drift,
        hook,
        running: false,
        settings: None,
        ..service::about(&options, &identity)
    })
}

/// Re-hashes everything, and heals from the origin what it can. Not cancel safe.
pub async fn verify(root: &Path) -> Result<Verified, OfflineError> {
    let options = RunOptions::new(root.to_owned());
    let identity = AgentIdentity::load(root).map_err(ServiceError::from)?;
    let keeper = Keeper::new(root.to_owned(), identity, None).map_err(ServiceError::from)?;
    let mut source = OriginSource::new(Runtime::current(), keeper.dialer(), None);
    let work = move || {
        let mut replica = work::open_as_before(&options).map_err(ServiceError::from)?;
        let shown = Display::new("verification");
        let never = AtomicBool::new(false);
        let verified = ReplicaWork::verify(&mut replica, &mut source, &|now| shown.show(now), &never)?;
        shown.finish();
        Ok(verified)
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| OfflineError::Panicked)?
}
