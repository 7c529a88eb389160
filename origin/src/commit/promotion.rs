//! The place from which an origin goes on after it was promoted, or restored from an object store.
//!
//! One record, `commit`/`promotion`: `u32` epoch and `u64` number, little endian. Generations that are sealed
//! from then on have at least both. The first one has the tree of the last generation, and ends the epoch of
//! the origin before. Nothing else is published until an operator commits, because the content tree beside
//! this origin may be older.

use syncd_shared::GenerationNumber;
use syncd_shared::identity::TrustDocument;
use syncd_shared::published::fencing::PROMOTION_JUMP;

use crate::store::{Records, Store, StoreError};

const NAMESPACE: &str = "commit";
const NAME: &[u8] = b"promotion";

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promotion {
    pub epoch: u32,
    pub number: GenerationNumber,
}

impl Promotion {
    /// The place after every generation with this epoch or an earlier one, and out of reach of numbers that
    /// their origin used without publishing them. `None` if the signing key has no such place left.
    pub fn after(epoch: u32, number: GenerationNumber, document: &TrustDocument) -> Option<Self> {
        let epoch = epoch.checked_add(1)?;
        let number = GenerationNumber::new(number.get().checked_add(PROMOTION_JUMP)?)?;
        document.check_place(epoch, number).ok().map(|()| Self { epoch, number })
    }

    pub fn load(store: &Store) -> Result<Option<Self>, StoreError> {
        let Some(bytes) = store.record(NAMESPACE, NAME)? else { return Ok(None) };
        Self::decode(&bytes).map(Some).ok_or(StoreError::Entry { table: "records" })
    }

    /// Writes the record in the caller's transaction.
    pub fn put(&self, records: &mut Records<'_>) -> Result<(), StoreError> {
        records.put(
            NAMESPACE,
            NAME,
            &[&self.epoch.to_le_bytes()[..], &self.number.get().to_le_bytes()].concat(),
        )
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (epoch, number) = bytes.split_first_chunk::<4>()?;
        let number = GenerationNumber::new(u64::from_le_bytes(number.try_into().ok()?))?;
        Some(Self { epoch: u32::from_le_bytes(*epoch), number })
    }
}
