//! Records the node's decisions, after checking that they can be kept.

use syncd_shared::{NodeStanding, Pin};
use time::OffsetDateTime;

use crate::replica::Replica;
use crate::session::worker::Decision;
use crate::state::SlotError;
use crate::state::decisions::{Named, Refusal};
use crate::state::disk::DiskError;
use crate::state::record::RecordError;

/// Reason why a decision was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// Nothing is live.
    #[error("nothing is live yet on this node: wait for its first generation")]
    Empty,
    /// The node has no tree of this generation.
    #[error("generation {number} is not held on this node: it has {held}")]
    NotHeld {
        /// Number of the generation.
        number: u64,
        /// Numbers that it has.
        held: String,
    },
    /// The generation to pin is refused.
    #[error("generation {number} is refused on this node: run `syncd-agent accept {number}` first")]
    Refused {
        /// Number of the generation.
        number: u64,
    },
    /// The generation to accept is not refused.
    #[error("generation {number} is not refused on this node: `syncd-agent refused` lists those that are")]
    NotRefused {
        /// Number of the generation.
        number: u64,
    },
    /// A system call failed.
    #[error("write the list of refused generations")]
    Disk(#[from] DiskError),
    /// The record failed.
    #[error("record the decision")]
    Record(#[from] RecordError),
}

impl From<SlotError> for DecideError {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::Disk(e) => e.into(),
            SlotError::Record(e) => e.into(),
        }
    }
}

impl Replica {
    /// Records a decision, durably.
    pub fn decide(&mut self, decision: Decision) -> Result<(), DecideError> {
        let node = self.slots.decisions().node;
        match decision {
            Decision::Pass(passed) => {
                if self.slots.live().is_some_and(|live| live.root_hash() == passed.root) {
                    self.slots.pass(true)?;
                }
            }
            Decision::Stay(tried) => {
                if self.slots.live().is_some_and(|live| live.root_hash() == tried.root) {
                    self.slots.end_trial()?;
                }
            }
            Decision::Refuse(generation, reason) => {
                let back = self.slots.decisions().good;
                self.slots.refuse(Refusal {
                    generation,
                    reason,
                    since_ms: now_ms(),
                    back,
                    announced: None,
                })?;
            }
            Decision::Announced(refused, number) => self.slots.note_announced(refused, number)?,
            Decision::Accept(number) => {
                if !self.slots.accept(number)? {
                    return Err(DecideError::NotRefused { number });
                }
            }
            Decision::Drain(drained) => self.slots.order_here(NodeStanding { drained, ..node })?,
            Decision::Pin(generation) => {
                let generation = self.pinnable(generation)?;
                let pinned = Some(Pin { generation, since_ms: now_ms() });
                self.slots.end_trial()?;
                self.slots.order_here(NodeStanding { pinned, ..node })?;
            }
            Decision::Unpin => {
                self.slots.order_here(NodeStanding { pinned: None, ..node })?;
                if self.options.checks {
                    self.slots.begin_trial()?;
                }
            }
            Decision::Ordered(ordered) => self.slots.order_there(ordered)?,
        }
        self.publish();
        Ok(())
    }

    /// The generation to pin: held, and not refused.
    fn pinnable(&self, wanted: Option<u64>) -> Result<u64, DecideError> {
        let live = self.slots.live().ok_or(DecideError::Empty)?;
        let number = wanted.unwrap_or(live.number().get());
        let held = self.slots.generations();
        let Some(slot) = held.get(&number) else {
            let held: Vec<_> = held.keys().map(u64::to_string).collect();
            return Err(DecideError::NotHeld { number, held: held.join(", ") });
        };
        let generation = self.slots.state(*slot).and_then(crate::state::slot::Slot::held);
        match generation.and_then(|generation| self.slots.decisions().refusal(generation)) {
            Some(_) => Err(DecideError::Refused { number }),
            None => Ok(number),
        }
    }

    /// An agent has started on this replica: a trial counts it. A generation that has not passed is tried
    /// now, because its trial may be lost with the record, or the check is new. Without a check there is no
    /// trial.
    pub fn started(&mut self) -> Result<(), RecordError> {
        if self.options.checks {
            self.slots.count_start()?;
            self.slots.begin_trial()?;
        } else {
            self.slots.end_trial()?;
        }
        self.publish();
        Ok(())
    }

    /// No web server can serve anything but the live tree. Without a check that is all a generation has to
    /// do to pass. Found out again if it is lost, so it need not be durable.
    pub(crate) fn live_without_check(&mut self) {
        let is_good = self.slots.live().is_none_or(|live| {
            let decisions = self.slots.decisions();
            decisions.good == Some(Named::of(live)) || decisions.refusal(live).is_some()
        });
        if self.options.checks || is_good || self.slots.is_unsettled() {
            return;
        }
        match self.slots.pass(false) {
            Ok(()) => self.publish(),
            Err(error) => {
                self.note_failure(&error);
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the last good generation was not recorded");
            }
        }
    }
}

/// Now, in milliseconds since 1970.
fn now_ms() -> i64 {
    (OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000) as i64
}
