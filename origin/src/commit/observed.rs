//! The generation that an agent holds and this origin does not know, kept until an operator has committed past it: the
//! agent may be away when the origin is started again.
//!
//! One record, `commit`/`observed`: signature, then the generation's record. It may be of a number long past.

use syncd_shared::SignedGeneration;

use crate::keys::Keys;
use crate::store::{Store, StoreError};

const NAMESPACE: &str = "commit";
const NAME: &[u8] = b"observed";
const SIGNATURE_BYTES: usize = 64;

/// What was observed last; `None` where there is nothing, or nothing of ours.
pub(super) fn load(store: &Store, keys: &Keys) -> Result<Option<SignedGeneration>, StoreError> {
    let Some(bytes) = store.record(NAMESPACE, NAME)? else { return Ok(None) };
    let parts = bytes.split_at_checked(SIGNATURE_BYTES);
    Ok(parts.and_then(|(signature, record)| keys.verify(record, signature).ok()))
}

/// Durable when it returns.
pub(super) fn save(store: &Store, observed: &SignedGeneration) -> Result<(), StoreError> {
    let bytes = [observed.signature().as_ref(), observed.record()].concat();
    store.update_records(|records| records.put(NAMESPACE, NAME, &bytes))
}
