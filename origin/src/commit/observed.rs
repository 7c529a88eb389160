//! A generation that an agent holds and this origin does not know. It is stored until an operator has
//! committed past it, because the agent may be away when the origin restarts.
//!
//! One record, `commit`/`observed`: the signature, 1 if a node refuses the tree and otherwise 0, then the
//! generation's record. Its number may be long outdated.

use syncd_shared::SignedGeneration;

use crate::keys::Keys;
use crate::store::{Store, StoreError};

const NAMESPACE: &str = "commit";
const NAME: &[u8] = b"observed";
const SIGNATURE_BYTES: usize = 64;

/// The highest observed generation.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) generation: SignedGeneration,
    /// A node that was connected since refuses the tree, because its check failed there. Never adopted then.
    pub(super) is_refused: bool,
}

impl Observed {
    /// The last one saved; `None` if there is none, or none signed by this origin.
    pub(super) fn load(store: &Store, keys: &Keys) -> Result<Option<Self>, StoreError> {
        let Some(bytes) = store.record(NAMESPACE, NAME)? else { return Ok(None) };
        let Some((signature, rest)) = bytes.split_at_checked(SIGNATURE_BYTES) else { return Ok(None) };
        let Some((refused, record)) = rest.split_first() else { return Ok(None) };
        let generation = keys.verify(record, signature).ok();
        Ok(generation.map(|generation| Self { generation, is_refused: *refused != 0 }))
    }

    /// Durable on return.
    pub(super) fn save(&self, store: &Store) -> Result<(), StoreError> {
        let Self { generation, is_refused } = self;
        let bytes = [generation.signature().as_ref(), &[(*is_refused).into()], generation.record()].concat();
        store.update_records(|records| records.put(NAMESPACE, NAME, &bytes))
    }

    /// Whether this is news to an origin with this current generation.
    pub(super) fn is_news(&self, current: Option<&SignedGeneration>) -> bool {
        is_news(current, &self.generation)
    }
}

/// Whether a generation held by an agent is news: above the current one, or another one with the same number.
/// Lower ones are obsolete.
pub(super) fn is_news(current: Option<&SignedGeneration>, observed: &SignedGeneration) -> bool {
    current.is_none_or(|current| {
        observed.number() > current.number()
            || (observed.number() == current.number() && observed.root_hash() != current.root_hash())
    })
}
