//! Changes of the node's [`Decisions`]. The trial of a switch is recorded with the switch itself.

use syncd_shared::{NodeStanding, OrderedStanding, SignedGeneration};

use super::Slots;
use crate::state::SlotError;
use crate::state::decisions::{Decisions, Named, Refusal, STARTS, Trial, read_refused, write_refused};
use crate::state::record::{Change, RecordError};
use crate::test_faults::{self, Bug};

impl Slots {
    pub fn decisions(&self) -> &Decisions {
        &self.known.decisions
    }

    fn decide(&mut self, decisions: Decisions, durable: bool) -> Result<(), RecordError> {
        if decisions != self.known.decisions {
            self.record.apply(&Change { decisions: Some(&decisions), ..Change::default() }, durable)?;
            self.known.decisions = decisions;
        }
        Ok(())
    }

    /// Decisions once `target` is live, which is recorded with the switch.
    pub(super) fn decisions_with(&self, target: &SignedGeneration, on_trial: bool) -> Decisions {
        let mut decisions = self.known.decisions.clone();
        let target_name = Named::of(target);
        decisions.trial = None;
        if decisions.is_good(target) {
            decisions.good = Some(target_name);
        } else if on_trial {
            decisions.trial = Some(Trial { target: target_name, starts_left: STARTS });
        }
        decisions
    }

    /// Decisions once the live tree has the number of `target`.
    pub(super) fn decisions_renamed(&self, target: &SignedGeneration) -> Decisions {
        let mut decisions = self.known.decisions.clone();
        let name = Named::of(target);
        if decisions.is_good(target) {
            decisions.good = Some(name);
        }
        if let Some(trial) = &mut decisions.trial {
            trial.target = name;
        }
        decisions
    }

    /// Notes that the live generation has passed. Without `durable` it may be lost, and is found out again.
    pub fn pass(&mut self, durable: bool) -> Result<(), RecordError> {
        let good = self.live().map(Named::of).or(self.known.decisions.good);
        self.decide(Decisions { good, trial: None, ..self.known.decisions.clone() }, durable)
    }

    /// Ends a trial without a result, because a person has decided or no check is set.
    pub fn end_trial(&mut self) -> Result<(), RecordError> {
        self.decide(Decisions { trial: None, ..self.known.decisions.clone() }, true)
    }

    /// Puts the live generation on trial, unless it has passed, is refused, or a person has pinned it.
    pub fn begin_trial(&mut self) -> Result<(), RecordError> {
        let Some(live) = self.live() else { return Ok(()) };
        let (mut decisions, target) = (self.known.decisions.clone(), Named::of(live));
        let is_decided = decisions.is_good(live)
            || decisions.refusal(live).is_some()
            || decisions.node.pinned.is_some()
            || decisions.trial.is_some_and(|trial| trial.target == target);
        if !is_decided {
            decisions.trial = Some(Trial { target, starts_left: STARTS });
        }
        self.decide(decisions, true)
    }

    /// Counts a start of the agent in a trial.
    pub fn count_start(&mut self) -> Result<(), RecordError> {
        let mut decisions = self.known.decisions.clone();
        if let Some(trial) = &mut decisions.trial {
            trial.starts_left = trial.starts_left.saturating_sub(1);
        }
        self.decide(decisions, true)
    }

    /// Refuses a generation from now on, durably: in the file first, which outlives the record.
    pub fn refuse(&mut self, refusal: Refusal) -> Result<(), SlotError> {
        let mut decisions = self.known.decisions.clone();
        decisions.refuse(refusal);
        if !test_faults::has(Bug::RefusedInRecord) {
            write_refused(&self.layout.state, &decisions.refused)?;
        }
        Ok(self.decide(decisions, true)?)
    }

    /// Notes that the tree of a refused generation was announced under another number.
    pub fn note_announced(&mut self, refused: Named, number: u64) -> Result<(), SlotError> {
        let mut decisions = self.known.decisions.clone();
        let Some(refusal) = decisions.refused.iter_mut().find(|refusal| refusal.generation == refused) else {
            return Ok(());
        };
        refusal.announced = Some(number);
        write_refused(&self.layout.state, &decisions.refused)?;
        Ok(self.decide(decisions, true)?)
    }

    /// Forgets the refusals of a number. Returns whether there were any.
    pub fn accept(&mut self, number: u64) -> Result<bool, SlotError> {
        let mut decisions = self.known.decisions.clone();
        let before = decisions.refused.len();
        decisions.refused.retain(|refusal| !refusal.is_named(number));
        let found = decisions.refused.len() < before;
        if found {
            write_refused(&self.layout.state, &decisions.refused)?;
            self.decide(decisions, true)?;
        }
        Ok(found)
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
        Ok(self.decide(decisions, true)?)
    }

    /// Keeps an order given on the node, durably.
    pub fn order_here(&mut self, node: NodeStanding) -> Result<(), RecordError> {
        self.decide(Decisions { node, ..self.known.decisions.clone() }, true)
    }

    /// Keeps an order of the origin, durably.
    pub fn order_there(&mut self, ordered: OrderedStanding) -> Result<(), RecordError> {
        self.decide(Decisions { ordered, ..self.known.decisions.clone() }, true)
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
