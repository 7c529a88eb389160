//! Records the node's decisions, after checking that they can be kept.

use syncd_shared::{Pin, SignedGeneration};
use time::OffsetDateTime;

use crate::replica::Replica;
use crate::session::worker::Decision;
use crate::state::SlotError;
use crate::state::decisions::{Decisions, Named, Refusal};
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

/// State of a node that decisions depend on.
pub struct Standing<'a> {
    pub live: Option<&'a SignedGeneration>,
    /// Generations of complete trees, the live one included.
    pub held: Vec<&'a SignedGeneration>,
    pub has_check: bool,
    pub now_ms: i64,
}

/// The decisions once `decision` is taken. Does no IO.
pub fn decided(
    before: &Decisions,
    decision: Decision,
    standing: &Standing<'_>,
) -> Result<Decisions, DecideError> {
    let Standing { live, now_ms, .. } = *standing;
    let is_live = |named: &Named| live.is_some_and(|live| live.root_hash() == named.root);
    let mut decisions = before.clone();
    match decision {
        Decision::Pass(passed) if is_live(&passed) => return Ok(before.passed(live)),
        Decision::Stay(tried) if is_live(&tried) => return Ok(before.untried()),
        // Recovery has finished another switch.
        Decision::Pass(_) | Decision::Stay(_) => {}
        Decision::Refuse(generation, reason) => {
            let back = before.good;
            decisions.refuse(Refusal { generation, reason, since_ms: now_ms, back, announced: None });
        }
        Decision::Announced(refused, number) => {
            let named = decisions.refused.iter_mut().find(|refusal| refusal.generation == refused);
            named.into_iter().for_each(|refusal| refusal.announced = Some(number));
        }
        Decision::Accept(number) => {
            decisions.refused.retain(|refusal| !refusal.is_named(number));
            if decisions == *before {
                return Err(DecideError::NotRefused { number });
            }
        }
        Decision::Drain(drained) => decisions.node.drained = drained,
        Decision::Pin(generation) => {
            let generation = pinnable(before, generation, standing)?;
            decisions = before.untried();
            decisions.node.pinned = Some(Pin { generation, since_ms: now_ms });
        }
        Decision::Unpin => {
            decisions.node.pinned = None;
            return Ok(if standing.has_check { decisions.tried(live) } else { decisions });
        }
        Decision::Ordered(ordered) => decisions.ordered = ordered,
    }
    Ok(decisions)
}

/// The generation to pin: held, and not refused.
fn pinnable(decisions: &Decisions, wanted: Option<u64>, standing: &Standing<'_>) -> Result<u64, DecideError> {
    let live = standing.live.ok_or(DecideError::Empty)?;
    let number = wanted.unwrap_or(live.number().get());
    let Some(generation) = standing.held.iter().find(|held| held.number().get() == number) else {
        let mut held: Vec<_> = standing.held.iter().map(|held| held.number().get()).collect();
        held.sort_unstable();
        let held: Vec<_> = held.iter().map(u64::to_string).collect();
        return Err(DecideError::NotHeld { number, held: held.join(", ") });
    };
    match decisions.refusal(generation) {
        Some(_) => Err(DecideError::Refused { number }),
        None => Ok(number),
    }
}

impl Replica {
    /// Records a decision, durably.
    pub fn decide(&mut self, decision: Decision) -> Result<(), DecideError> {
        let standing = Standing {
            live: self.slots.live(),
            held: self.slots.held().map(|(_, held)| held).collect(),
            has_check: self.options.checks,
            now_ms: now_ms(),
        };
        let decisions = decided(self.slots.decisions(), decision, &standing)?;
        self.slots.decide(decisions)?;
        self.publish();
        Ok(())
    }

    /// An agent has started on this replica.
    pub fn started(&mut self) -> Result<(), RecordError> {
        let decisions = self.slots.decisions().started(self.slots.live(), self.options.checks);
        self.slots.keep_decisions(decisions, true)?;
        self.publish();
        Ok(())
    }

    /// No web server can serve anything but the live tree. Without a check that is all a generation has to
    /// do to pass. Found out again if it is lost, so it need not be durable.
    pub(crate) fn live_without_check(&mut self) {
        let (decisions, live) = (self.slots.decisions(), self.slots.live());
        if self.options.checks || self.slots.is_unsettled() || !decisions.passes_unchecked(live) {
            return;
        }
        let decisions = decisions.passed(live);
        match self.slots.keep_decisions(decisions, false) {
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
