//! Signing generations, also again after a signing key was replaced.

use syncd_shared::identity::SignedTrust;
use syncd_shared::{Generation, GenerationNumber, RootEntry, SignedGeneration};

use super::{How, Sealer};
use crate::clock::now_ms;
use crate::commit::outcome::{CommitError, Outcome};
use crate::publish::FenceError;

impl Sealer {
    /// Takes a signed trust document, whose keys count from now on, and signs the current tree with them.
    pub fn take_trust(&mut self, document: &SignedTrust) -> Result<Outcome, CommitError> {
        self.resolve_doubt()?;
        self.parts.keys.take(document)?;
        tracing::info!(document = document.number(), "a trust document was taken");
        self.sign_again()
    }

    /// Seals the current tree again if a superseded key has signed it, because agents that know the newest
    /// trust document take nothing new from that one; or if this origin takes the place of another one, whose
    /// epoch ends with it. Costs no tree and no content. If agents hold a
    /// generation that this origin does not know, its operator's next commit does it.
    pub(super) fn sign_again(&mut self) -> Result<Outcome, CommitError> {
        let Some(current) = &self.current else { return Ok(Outcome::Scanned) };
        let newest = self.parts.keys.verify_newest(current.record(), current.signature());
        let takes_over = self.promotion.is_some_and(|promotion| promotion.epoch > current.epoch());
        if (newest.is_ok() && !takes_over) || self.observed.is_some() {
            return Ok(Outcome::Scanned);
        }
        let label = current.generation().label.clone();
        let generation = self.next_generation(current.generation().root, label)?;
        let rollbacks = self.rollbacks.signed_again(generation.number());
        let plan = self.plan(&How::Again)?;
        self.seal(self.parts.store.writer()?, self.base.clone(), generation, (Some(rollbacks), plan))
    }

    /// The next generation, committed where commits are fenced, and signed under the newest trust document.
    pub(super) fn next_generation(
        &self,
        root: RootEntry,
        label: String,
    ) -> Result<SignedGeneration, CommitError> {
        if let Some(reason) = self.deposed.reason() {
            return Err(FenceError::from(reason).into());
        }
        let keys = &self.parts.keys;
        let trust = keys.trust();
        let document = trust.document();
        // Neither ever falls, whatever a later trust document allows.
        let observed = self.observed.as_ref().map(|observed| &observed.generation);
        let before = || self.current.iter().chain(observed);
        let last = before().map(SignedGeneration::number).max();
        let epoch = before().map(SignedGeneration::epoch).max();
        let epoch = epoch.map_or(document.epochs.first, |epoch| epoch.max(document.epochs.first));
        let number = last.map_or(Some(document.numbers.first), GenerationNumber::next);
        let number = number.map(|number| number.max(document.numbers.first));
        let (epoch, number) = match self.promotion {
            Some(promotion) => {
                (epoch.max(promotion.epoch), number.map(|number| number.max(promotion.number)))
            }
            None => (epoch, number),
        };
        let number = number.filter(|number| document.check_place(epoch, *number).is_ok());
        let last = last.unwrap_or(GenerationNumber::FIRST);
        let generation = Generation {
            tree_id: keys.tree_id(),
            epoch,
            number: number.ok_or(CommitError::NoNumberLeft { last })?,
            trust: trust.number(),
            root,
            parent: self.current.as_ref().map(SignedGeneration::number),
            created_ms: now_ms(),
            label,
        };
        let generation = keys.sign(generation);
        match &self.fence {
            Some(fence) => Ok(fence.commit(generation, self.current.as_ref(), self.promotion)?),
            None => Ok(generation),
        }
    }
}
