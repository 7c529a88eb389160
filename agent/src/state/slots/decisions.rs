//! Changes of the node's [`Decisions`]. The trial of a switch is recorded with the switch itself.

use super::Slots;
use crate::state::SlotError;
use crate::state::decisions::{Decisions, read_refused, write_refused};
use crate::state::record::{Change, RecordError};
use crate::test_faults::{self, Bug};

impl Slots {
    pub fn decisions(&self) -> &Decisions {
        &self.known.decisions
    }

    /// Records decisions, durably. Refusals are in the file first, which outlives the record.
    pub fn decide(&mut self, decisions: Decisions) -> Result<(), SlotError> {
        if decisions.refused != self.known.decisions.refused && !test_faults::has(Bug::RefusedInRecord) {
            write_refused(&self.layout.state, &decisions.refused)?;
        }
        Ok(self.keep_decisions(decisions, true)?)
    }

    /// Records decisions that refuse what was refused before. Without `durable` they may be lost, and have to
    /// be found out again.
    pub fn keep_decisions(&mut self, decisions: Decisions, durable: bool) -> Result<(), RecordError> {
        if decisions != self.known.decisions {
            self.record.apply(&Change { decisions: Some(&decisions), ..Change::default() }, durable)?;
            self.known.decisions = decisions;
        }
        Ok(())
    }

    /// Takes over refusals that only the file has.
    pub(super) fn recover_refused(&mut self) -> Result<(), SlotError> {
        let mut decisions = self.known.decisions.clone();
        let in_file = read_refused(&self.layout.state)?;
        for refusal in &in_file {
            if !decisions.refused.iter().any(|known| known.generation == refusal.generation) {
                decisions.refuse(refusal.clone());
            }
        }
        if in_file != decisions.refused {
            write_refused(&self.layout.state, &decisions.refused)?;
        }
        Ok(self.keep_decisions(decisions, true)?)
    }

    /// Whether a decision keeps the tree of this slot.
    pub(super) fn is_kept_by_decision(&self, slot: u64) -> bool {
        // The planted bug would be masked: the last good tree is often the one that is still served.
        let planted = test_faults::has(Bug::Unprotected);
        let Some(held) = self.state(slot).and_then(super::Slot::held).filter(|_| !planted) else {
            return false;
        };
        let pinned = self.known.decisions.node.pinned.map(|pin| pin.generation);
        self.known.decisions.is_good(held) || pinned == Some(held.number().get())
    }
}
