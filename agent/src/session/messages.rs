//! Builds the agent's messages on the control stream, and reads announced updates.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use bytes::Bytes;
use prost::Message;
use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_proto::v1::fetch_frame::Frame as F;
use syncd_shared::limits::{HELD_GENERATIONS_MAX, LOCATION_MAX_BYTES, LOCATIONS_MAX, REASON_MAX_BYTES};
use syncd_shared::text::one_line;
use syncd_shared::wire::{FEATURE_DELTAS, Frame, WireError};
use syncd_shared::{GenerationNumber, RootHash, SignedGeneration, Totals, update_file};

use super::worker::{Inline, ReplicaState};
use crate::hooks::{HookState, RunOutcome};
use crate::identity::Trusted;
use crate::state::decisions::Named;
use crate::status::Drift;

/// Oldest version of the protocol that this agent speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// Newest version of the protocol that this agent speaks.
pub const PROTOCOL_MAX: u32 = 1;
/// Uncompressed bytes of directories and patches in an announced update.
const INLINE_DIRECTORIES_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Optional features that this agent announces.
pub(crate) const FEATURES: &[&str] = &[FEATURE_DELTAS];

/// First message on a stream.
pub(super) fn hello(
    boot_id: &str,
    trust: &Trusted,
    replica: &ReplicaState,
    hook: Option<v1::HookReport>,
    (has_check, check): (bool, Option<v1::CheckReport>),
) -> v1::Hello {
    let live = replica.live.as_ref();
    let held = replica.held.iter().filter(|h| live.is_none_or(|l| l.number() != h.number()));
    v1::Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        features: FEATURES.iter().map(|f| (*f).to_owned()).collect(),
        boot_id: boot_id.to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        live: live.map(signed),
        accepted: replica.accepted.as_ref().map(signed),
        held: held.take(HELD_GENERATIONS_MAX).map(signed).collect(),
        hook,
        drift: replica.drift.as_ref().map(drift_report),
        trust: trust.document.number(),
        refused: replica.decisions.refused.iter().map(|refusal| refused(&refusal.generation)).collect(),
        check,
        standing: Some(replica.decisions.node.into()),
        has_check,
        root_key: Bytes::copy_from_slice(trust.root.as_bytes()),
    }
}

fn refused(generation: &Named) -> v1::RefusedGeneration {
    let Named { epoch, number, root } = *generation;
    v1::RefusedGeneration { epoch, number, root: Bytes::copy_from_slice(root.as_bytes()) }
}

/// Reports local changes, which both this agent's status and the origin's show.
pub(super) fn drift(drift: Option<&Drift>) -> ToOrigin {
    ToOrigin::Drift(drift.map(drift_report).unwrap_or_default())
}

fn drift_report(drift: &Drift) -> v1::DriftReport {
    v1::DriftReport {
        generation: drift.generation,
        paths: drift.paths,
        first_path: one_line(&drift.first, REASON_MAX_BYTES),
        kept: one_line(drift.kept.as_deref().unwrap_or_default(), REASON_MAX_BYTES),
        lost: drift.lost,
    }
}

fn signed(generation: &SignedGeneration) -> v1::SignedGeneration {
    v1::SignedGeneration {
        record: Bytes::copy_from_slice(generation.record()),
        signature: Bytes::copy_from_slice(generation.signature()),
    }
}

/// Reports that a tree is complete and verified.
pub(super) fn staged(number: GenerationNumber, root: RootHash) -> ToOrigin {
    ToOrigin::Staged(v1::Staged { generation: number.get(), root: Bytes::copy_from_slice(root.as_bytes()) })
}

/// Reports that a generation is linked and durable. With `hook_due` it is live only once the on-activate hook
/// has succeeded.
pub(super) fn activated(live: &SignedGeneration, spare_misses: u64, hook_due: bool) -> ToOrigin {
    ToOrigin::Activated(v1::Activated {
        generation: live.number().get(),
        root: Bytes::copy_from_slice(live.root_hash().as_bytes()),
        spare_misses,
        hook_due,
    })
}

/// Reports the state of the on-activate hook; `None`: it was never due. `waits` is the announced generation
/// that is activated only once the hook succeeds.
pub(super) fn hook_report(state: &HookState, waits: Option<u64>) -> Option<v1::HookReport> {
    let succeeded = state.succeeded.unwrap_or(0);
    let run = state.run.as_ref();
    let Some(due) = state.due else {
        let run = run.filter(|run| run.outcome == RunOutcome::Ok)?;
        return Some(v1::HookReport {
            generation: run.generation,
            outcome: v1::HookOutcome::Ok.into(),
            duration_ms: run.duration_ms,
            attempt: run.attempt,
            succeeded,
            ..v1::HookReport::default()
        });
    };
    // A run for an earlier generation is no evidence for this one.
    let run = run.filter(|run| run.generation == due && run.outcome != RunOutcome::Ok);
    let outcome = match run.map(|run| run.outcome) {
        Some(RunOutcome::Running) => v1::HookOutcome::Running,
        Some(RunOutcome::Failed) => v1::HookOutcome::Failed,
        Some(RunOutcome::Ok) | None => v1::HookOutcome::Due,
    };
    Some(v1::HookReport {
        generation: due,
        outcome: outcome.into(),
        duration_ms: run.map_or(0, |run| run.duration_ms),
        output: run.map(|run| run.output.clone()).unwrap_or_default(),
        attempt: run.map_or(0, |run| run.attempt),
        succeeded,
        waits: waits.unwrap_or(0),
    })
}

/// Checks the number and length of an announcement's locations.
pub(super) fn check_locations(locations: &[String]) -> Result<(), WireError> {
    let check = |what, actual: usize, limit: usize| match actual > limit {
        true => Err(WireError::Limit { what, actual: actual as u64, limit: limit as u64 }),
        false => Ok(()),
    };
    check("locations", locations.len(), LOCATIONS_MAX)?;
    locations.iter().try_for_each(|location| check("a location", location.len(), LOCATION_MAX_BYTES))
}

/// Reads the update file of an announcement of `to`, between trees that do not exceed these totals.
pub(super) fn inline_update(file: &Bytes, to: &RootHash, totals: &Totals) -> Result<Inline, WireError> {
    let (index, frames) = update_file::read_whole(file)?;
    if index.to() != *to {
        return Err(WireError::OtherUpdate { to: index.to() });
    }
    let frames = frames.into_iter().map(v1::FetchFrame::decode).collect::<Result<Vec<_>, _>>()?;
    // The frames are decoded together, so the limit holds for their sum.
    let limit = INLINE_DIRECTORIES_MAX_BYTES as u64;
    let directories = frames.iter().map(|frame| match &frame.frame {
        Some(F::Directories(objects)) => u64::from(objects.uncompressed_bytes),
        Some(F::Patches(patches)) => u64::from(patches.uncompressed_bytes),
        _ => 0,
    });
    let actual = directories.fold(0, u64::saturating_add);
    if actual > limit {
        return Err(WireError::Limit { what: "directories of an announced update", actual, limit });
    }
    let frames = frames.into_iter().map(|frame| Frame::from_message_within(frame, totals));
    Ok(Inline { from: index.from(), frames: frames.collect::<Result<_, _>>()? })
}
