//! Keeps copies of signed generation records beside the record: one for each slot that holds a generation, or
//! will.

use std::io::Read;
use std::os::unix::fs::FileExt;

use rustix::fs::FileType;
use syncd_shared::ed25519::VerifyingKey;
use syncd_shared::limits::GENERATION_RECORD_MAX_BYTES;
use syncd_shared::{SignedGeneration, TreeId};

use super::Slots;
use crate::state::disk::DiskError;
use crate::state::layout::{LIVE_SLOT, slot_name};
use crate::state::number;
use crate::state::slot::{decode_generation, encode_generation};
use crate::state::syncing::Syncing;

/// Copies are padded to a multiple of this, so that overwriting a copy keeps its length.
const BLOCK_BYTES: usize = 512;

/// The origin's tree and keys, to verify signatures.
#[derive(Debug, Clone)]
pub struct Signers {
    pub tree_id: TreeId,
    /// All keys with which the origin has ever signed and that this node trusts.
    pub keys: Vec<VerifyingKey>,
}

impl Signers {
    fn has_signed(&self, generation: &SignedGeneration) -> bool {
        let (record, signature) = (generation.record(), generation.signature());
        self.keys.iter().any(|key| SignedGeneration::verify(record, signature, self.tree_id, key).is_ok())
    }
}

impl Slots {
    /// Writes the copy for the generation that `slot` will hold. Returns whether its name is new. Not
    /// durable. A linked slot already has its copy.
    pub fn write_signed(&self, slot: u64, generation: &SignedGeneration) -> Result<bool, DiskError> {
        let (signed, name) = (&self.layout.signed, slot_name(slot));
        if signed.stat(&name)?.is_some_and(|stat| stat.kind != FileType::RegularFile) {
            self.layout.remove(signed, &name)?;
        }
        let (file, is_new) = match signed.open_file_for_write(&name) {
            Err(e) if e.is_absent() => (signed.create_file(&name)?, true),
            other => (other?, false),
        };
        let failed = |source| signed.failed_at("write", &name, source);
        let record = encode_generation(generation);
        let mut bytes = (record.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&record);
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        file.write_all_at(&bytes, 0).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() != bytes.len() as u64 {
            file.set_len(bytes.len() as u64).map_err(failed)?;
        }
        Ok(is_new)
    }

    /// Writes the copy, and makes it durable on a thread.
    pub fn keep_signed(&self, slot: u64, generation: &SignedGeneration) -> Result<Syncing, DiskError> {
        let is_new = self.write_signed(slot, generation)?;
        let (signed, name) = (self.layout.signed.reopen()?, slot_name(slot));
        Syncing::start(move || {
            signed.sync_content(&name)?;
            if is_new { signed.sync_names() } else { Ok(()) }
        })
    }

    /// All copies with a valid signature. An unverified copy could contain any number, which no generation
    /// could follow.
    pub(super) fn verified_copies(&self) -> Result<Vec<SignedGeneration>, DiskError> {
        let mut copies = Vec::new();
        for listed in self.layout.signed.list()? {
            let copy = number(&listed.name).map(|slot| self.read_signed(slot)).transpose()?.flatten();
            copies.extend(copy.filter(|copy| self.signers.as_ref().is_none_or(|s| s.has_signed(copy))));
        }
        Ok(copies)
    }

    /// Follows an exchange of `slot` with `live`. Need not be durable, because recovery compares the copies.
    pub(super) fn exchange_signed(&self, slot: u64) -> Result<(), DiskError> {
        let (signed, name, live) = (&self.layout.signed, slot_name(slot), slot_name(LIVE_SLOT));
        match signed.stat(&live)? {
            None => signed.rename(&name, signed, &live),
            Some(_) => signed.exchange(&name, signed, &live),
        }
    }

    /// Signed records that the tree of a live slot may have, the likeliest first. A crash may have left the
    /// copy for the tree at `live` under another name.
    pub(super) fn copies_of_live(&self, linked: u64) -> Result<Vec<SignedGeneration>, DiskError> {
        let mut copies: Vec<_> = self.read_signed(linked)?.into_iter().collect();
        if linked == LIVE_SLOT {
            let mut others = Vec::new();
            for listed in self.layout.signed.list()? {
                let slot = number(&listed.name).filter(|slot| *slot != LIVE_SLOT);
                others.extend(slot.map(|slot| self.read_signed(slot)).transpose()?.flatten());
            }
            others.sort_unstable_by_key(|copy| std::cmp::Reverse(copy.number()));
            copies.extend(others);
        }
        Ok(copies)
    }

    /// Copy of the signed record of a slot; `None`: there is no readable copy.
    pub(super) fn read_signed(&self, slot: u64) -> Result<Option<SignedGeneration>, DiskError> {
        let (signed, name) = (&self.layout.signed, slot_name(slot));
        let file = match signed.open_file(&name) {
            Ok(file) => file,
            Err(e) if e.is_no_directory() => return Ok(None),
            Err(e) => return Err(e),
        };
        if signed.stat(&name)?.is_none_or(|stat| stat.kind != FileType::RegularFile) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let limit = 4 + 64 + GENERATION_RECORD_MAX_BYTES + BLOCK_BYTES;
        file.take(limit as u64)
            .read_to_end(&mut bytes)
            .map_err(|source| signed.failed_at("read", &name, source))?;
        Ok(decode_signed(&bytes))
    }
}

/// Decodes the output of [`Slots::write_signed`].
fn decode_signed(bytes: &[u8]) -> Option<SignedGeneration> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    decode_generation(rest.get(..u32::from_le_bytes(*length) as usize)?).ok()
}
