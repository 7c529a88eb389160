//! What the agent says of itself on the control stream, and how announced updates are read.

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_shared::limits::HELD_GENERATIONS_MAX;
use syncd_shared::wire::{FEATURE_DELTAS, Frame, WireError, root_hash};
use syncd_shared::{GenerationNumber, RootHash, SignedGeneration};

use super::worker::{Inline, ReplicaState};

/// Versions of the protocol that this agent speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// See [`PROTOCOL_MIN`].
pub const PROTOCOL_MAX: u32 = 1;
/// Optional abilities that this agent names.
pub(crate) const FEATURES: &[&str] = &[FEATURE_DELTAS];

/// The first message on a stream.
pub(super) fn hello(boot_id: &str, replica: &ReplicaState) -> v1::Hello {
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
    }
}

fn signed(generation: &SignedGeneration) -> v1::SignedGeneration {
    v1::SignedGeneration {
        record: Bytes::copy_from_slice(generation.record()),
        signature: Bytes::copy_from_slice(generation.signature()),
    }
}

/// A tree is complete and verified.
pub(super) fn staged(number: GenerationNumber, root: RootHash) -> ToOrigin {
    ToOrigin::Staged(v1::Staged { generation: number.get(), root: Bytes::copy_from_slice(root.as_bytes()) })
}

/// A generation is live and durable.
pub(super) fn activated(live: &SignedGeneration, spare_misses: u64) -> ToOrigin {
    ToOrigin::Activated(v1::Activated {
        generation: live.number().get(),
        root: Bytes::copy_from_slice(live.root_hash().as_bytes()),
        spare_misses,
    })
}

/// An update that came with its announcement.
pub(super) fn inline_update(update: v1::InlineUpdate) -> Result<Inline, WireError> {
    let from = root_hash(&update.from_root, "from_root")?;
    let frames = update.frames.into_iter().map(Frame::from_message).collect::<Result<_, _>>()?;
    Ok(Inline { from, frames })
}
