//! `status`, `verify` and orders while no agent runs. The command opens the replica and holds its lock.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use syncd_shared::AgentState;
use syncd_shared::identity::RootFingerprint;
use tokio::runtime::Handle as Runtime;

use crate::admin::Order;
use crate::config::RunOptions;
use crate::fetch::OriginSource;
use crate::hooks;
use crate::identity::{AgentIdentity, IdentityError};
use crate::renew::Keeper;
use crate::replica::work;
use crate::service::{self, ServiceError};
use crate::session::worker::{Display, Failure, ReplicaWork, Verified};
use crate::status::{AgentStatus, Refused};

/// Reason why a command could not use a replica.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The replica or the identity could not be opened.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The verification failed, or an order can't be kept.
    #[error(transparent)]
    Work(#[from] Failure),
    /// The verifying thread panicked, which is a defect.
    #[error("the verification has ended unexpectedly: report this")]
    Panicked,
}

/// Reads the status from the record. Blocks.
pub fn status(root: &Path) -> Result<AgentStatus, OfflineError> {
    let options = RunOptions::new(root.to_owned());
    let identity = AgentIdentity::load(root).map_err(ServiceError::from)?;
    let replica = work::open_as_before(&options, work::signers(&identity)).map_err(ServiceError::from)?;
    let held = replica.state();
    let live = held.live.as_ref().map(|g| g.number().get());
    // Only a running agent knows the hook's command, so only the due generation is known here.
    let hook = hooks::left_due(&root.join("state"), live);
    let reached = if hook.is_some() { AgentState::Switched } else { AgentState::Live };
    Ok(AgentStatus {
        generation: live,
        root: held.live.as_ref().map(|g| g.root_hash().to_string()),
        state: if held.live.is_some() { reached } else { AgentState::Empty },
        accepted: held.accepted.as_ref().map(|g| g.number().get()),
        generations: held.generations.iter().map(|n| n.get()).collect(),
        spares: held.spares,
        drift: held.drift,
        label: held.live.as_ref().map(|g| g.generation().label.clone()),
        refused: held.decisions.refused.iter().map(Refused::of).collect(),
        node: held.decisions.node,
        ordered: held.decisions.ordered,
        hook,
        after: None,
        swap: replica.swap(),
        running: false,
        settings: None,
        ..service::about(&options, &identity)
    })
}

/// Records an order. A pin to another generation takes effect at the next start. Blocks.
pub fn order(root: &Path, order: Order) -> Result<(), OfflineError> {
    let options = RunOptions::new(root.to_owned());
    let identity = AgentIdentity::load(root).map_err(ServiceError::from)?;
    let mut replica = work::open_as_before(&options, work::signers(&identity)).map_err(ServiceError::from)?;
    Ok(ReplicaWork::decide(&mut replica, order.into())?)
}

/// Pins another root key in the identity. Blocks.
pub fn pin_root(root: &Path, fingerprint: RootFingerprint) -> Result<(), IdentityError> {
    let mut identity = AgentIdentity::load(root)?;
    identity.pin_root(fingerprint);
    identity.store(root)
}

/// Hashes all files again, and heals what can be healed from the origin. Not cancel safe.
pub async fn verify(root: &Path) -> Result<Verified, OfflineError> {
    let options = RunOptions::new(root.to_owned());
    let identity = AgentIdentity::load(root).map_err(ServiceError::from)?;
    let signers = work::signers(&identity);
    let keeper = Keeper::new(root.to_owned(), identity, None).map_err(ServiceError::from)?;
    let mut source = OriginSource::new(Runtime::current(), keeper.dialer(), None);
    let work = move || {
        let mut replica = work::open_as_before(&options, signers).map_err(ServiceError::from)?;
        let shown = Display::new("verification");
        let never = AtomicBool::new(false);
        let verified = ReplicaWork::verify(&mut replica, &mut source, &|now| shown.show(now), &never)?;
        shown.finish();
        Ok(verified)
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| OfflineError::Panicked)?
}
