//! A generation that an agent holds and this origin does not know. It is stored until an operator has
//! committed past it, because the agent may be away when the origin restarts.
//!
//! One record, `commit`/`observed`: the signature, then the generation's record. Its number may be long
//! outdated.

use syncd_shared::SignedGeneration;

use crate::keys::Keys;
use crate::store::{Store, StoreError};

const NAMESPACE: &str = "commit";
const NAME: &[u8] = b"observed";
const SIGNATURE_BYTES: usize = 64;

/// The last observed generation; `None` if there is none, or none signed by this origin.
pub(super) fn load(store: &Store, keys: &Keys) -> Result<Option<SignedGeneration>, StoreError> {
    let Some(bytes) = store.record(NAMESPACE, NAME)? else { return Ok(None) };
    let parts = bytes.split_at_checked(SIGNATURE_BYTES);
    Ok(parts.and_then(|(signature, record)| keys.verify(record, signature).ok()))
}

/// Durable on return.
pub(super) fn save(store: &Store, observed: &SignedGeneration) -> Result<(), StoreError> {
    let bytes = [observed.signature().as_ref(), observed.record()].concat();
    store.update_records(|records| records.put(NAMESPACE, NAME, &bytes))
}

/// Whether a generation held by an agent is news: above the current one, or another one with the same number.
/// Lower ones are obsolete.
pub(super) fn is_news(current: Option<&SignedGeneration>, observed: &SignedGeneration) -> bool {
    current.is_none_or(|current| {
        observed.number() > current.number()
            || (observed.number() == current.number() && observed.root_hash() != current.root_hash())
    })
}
