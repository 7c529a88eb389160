//! Decisions of this node about generations, and orders of people: rows of the record.
//!
//! | row | decision | changed by |
//! | --- | --- | --- |
//! | good | the last generation that passed here; its tree is kept as it is | a passed check, if one is set |
//! | trial | the live generation, which has not passed yet | the switch; every start counts |
//! | refused | generations whose check failed here | a failed check; `syncd-agent accept` |
//! | node | drained, pinned | `syncd-agent drain`, `undrain`, `pin`, `unpin` |
//! | ordered | drained, pinned | the origin; kept while it is away |
//!
//! A refused generation is also in the file `ROOT/state/refused`, which is durable first. It survives the
//! loss of the record, with the generation to return to.

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};
use syncd_shared::limits::{REASON_MAX_BYTES, REFUSED_GENERATIONS_MAX};
use syncd_shared::text::one_line;
use syncd_shared::{NodeStanding, OrderedStanding, RootHash, SignedGeneration};

use crate::state::disk::{Dir, DiskError};

/// Starts of the agent that a trial survives without a passed check, the last one excluded.
pub(crate) const STARTS: u8 = 2;
/// Name of the file with refused generations, in `ROOT/state`.
const REFUSED: &[u8] = b"refused";
const REFUSED_NEXT: &[u8] = b"refused.next";
/// Limit of that file: more than the longest list takes.
const REFUSED_MAX_BYTES: u64 = (REFUSED_GENERATIONS_MAX * (2 * REASON_MAX_BYTES + 512)) as u64;

/// Names a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub epoch: u32,
    pub number: u64,
    pub root: RootHash,
}

impl Named {
    pub fn of(generation: &SignedGeneration) -> Self {
        let (epoch, number) = (generation.epoch(), generation.number().get());
        Self { epoch, number, root: generation.root_hash() }
    }
}

/// A generation that was switched to and has not passed its check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    pub target: Named,
    /// At 0 the node returns without asking the check.
    pub starts_left: u8,
}

/// A generation that this node does not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    #[serde(flatten)]
    pub generation: Named,
    /// Failure of the check, one line.
    pub reason: String,
    /// Milliseconds since 1970.
    pub since_ms: i64,
    /// The last generation that had passed then: the node returns to it.
    pub back: Option<Named>,
    /// Another number under which the tree was announced last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<u64>,
}

impl Refusal {
    /// Whether a person means this refusal by `number`.
    pub fn is_named(&self, number: u64) -> bool {
        self.generation.number == number || self.announced == Some(number)
    }
}

/// All decisions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decisions {
    pub good: Option<Named>,
    pub trial: Option<Trial>,
    /// The oldest first, at most [`REFUSED_GENERATIONS_MAX`].
    pub refused: Vec<Refusal>,
    pub node: NodeStanding,
    pub ordered: OrderedStanding,
}

impl Decisions {
    /// The refusal of a generation: of its number, or of its root under any number.
    pub fn refusal(&self, generation: &SignedGeneration) -> Option<&Refusal> {
        let Named { epoch, number, root } = Named::of(generation);
        let is_meant = |named: &Named| named.root == root || (named.epoch, named.number) == (epoch, number);
        self.refused.iter().find(|refusal| is_meant(&refusal.generation))
    }

    /// Whether the content of this generation is the last that passed here.
    pub fn is_good(&self, generation: &SignedGeneration) -> bool {
        self.good.is_some_and(|good| good.root == generation.root_hash())
    }

    pub fn is_drained(&self) -> bool {
        self.node.drained || self.ordered.drained
    }

    pub fn is_pinned(&self) -> bool {
        self.node.pinned.is_some() || self.ordered.pinned
    }

    /// Decisions once `target` is live by a switch.
    pub fn switched(&self, target: &SignedGeneration, on_trial: bool) -> Self {
        let name = Named::of(target);
        let mut decisions = Self { trial: None, ..self.clone() };
        if decisions.is_good(target) {
            decisions.good = Some(name);
        } else if on_trial {
            decisions.trial = Some(Trial { target: name, starts_left: STARTS });
        }
        decisions
    }

    /// Decisions once the live tree has the number of `target`.
    pub fn renamed(&self, target: &SignedGeneration) -> Self {
        let (mut decisions, name) = (self.clone(), Named::of(target));
        if decisions.is_good(target) {
            decisions.good = Some(name);
        }
        if let Some(trial) = &mut decisions.trial {
            trial.target = name;
        }
        decisions
    }

    /// The live generation has passed.
    pub fn passed(&self, live: Option<&SignedGeneration>) -> Self {
        Self { good: live.map(Named::of).or(self.good), trial: None, ..self.clone() }
    }

    /// The trial is over without a result: a person has decided, or no check is set.
    pub fn untried(&self) -> Self {
        Self { trial: None, ..self.clone() }
    }

    /// Puts the live generation on trial, unless it has passed, is refused, or a person has pinned it.
    pub fn tried(&self, live: Option<&SignedGeneration>) -> Self {
        let mut decisions = self.clone();
        let Some(live) = live else { return decisions };
        let target = Named::of(live);
        let is_decided = decisions.is_good(live)
            || decisions.refusal(live).is_some()
            || decisions.node.pinned.is_some()
            || decisions.trial.is_some_and(|trial| trial.target == target);
        if !is_decided {
            decisions.trial = Some(Trial { target, starts_left: STARTS });
        }
        decisions
    }

    /// Decisions once an agent has started: a trial counts it. A generation that has not passed is tried, as
    /// its trial may be lost with the record, or the check is new. Without a check there is no trial.
    pub fn started(&self, live: Option<&SignedGeneration>, has_check: bool) -> Self {
        if !has_check {
            return self.untried();
        }
        let mut decisions = self.clone();
        if let Some(trial) = &mut decisions.trial {
            trial.starts_left = trial.starts_left.saturating_sub(1);
        }
        decisions.tried(live)
    }

    /// Whether the live generation passes without a check: no web server serves anything else.
    pub fn passes_unchecked(&self, live: Option<&SignedGeneration>) -> bool {
        live.is_some_and(|live| self.good != Some(Named::of(live)) && self.refusal(live).is_none())
    }

    /// Adds a refusal. The oldest leaves where there are too many.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.refused.retain(|known| known.generation != refusal.generation);
        let reason = one_line(&refusal.reason, REASON_MAX_BYTES);
        self.refused.push(Refusal { reason, ..refusal });
        let excess = self.refused.len().saturating_sub(REFUSED_GENERATIONS_MAX);
        self.refused.drain(..excess);
    }
}

/// Reads the file with refused generations. An unreadable file is reported, and counts as empty.
pub(crate) fn read_refused(state: &Dir) -> Result<Vec<Refusal>, DiskError> {
    let file = match state.open_file(REFUSED) {
        Ok(file) => file,
        Err(e) if e.is_no_directory() => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    let failed = |source| state.failed_at("read", REFUSED, source);
    file.take(REFUSED_MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        let path = state.path().join("refused");
        tracing::warn!(path = %path.display(), %error, "the list of refused generations can't be read");
        Vec::new()
    }))
}

/// Replaces the file with refused generations, durably.
pub(crate) fn write_refused(state: &Dir, refused: &[Refusal]) -> Result<(), DiskError> {
    if state.stat(REFUSED_NEXT)?.is_some() {
        state.unlink(REFUSED_NEXT)?;
    }
    let failed = |source| state.failed_at("write", REFUSED_NEXT, source);
    let mut file = state.create_file(REFUSED_NEXT)?;
    let bytes = serde_json::to_vec(refused).map_err(|error| failed(error.into()))?;
    file.write_all(&bytes).map_err(failed)?;
    drop(file);
    state.sync_content(REFUSED_NEXT)?;
    state.rename(REFUSED_NEXT, state, REFUSED)?;
    state.sync_names()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(number: u64) -> Refusal {
        let root = RootHash::from_bytes([number as u8; 32]);
        let generation = Named { epoch: 1, number, root };
        Refusal {
            generation,
            reason: "exit status: 1\nbroken".into(),
            since_ms: 5,
            back: None,
            announced: None,
        }
    }

    #[test]
    fn refusals_are_bounded_and_the_oldest_leaves() {
        let mut decisions = Decisions::default();
        (1..=70).for_each(|number| decisions.refuse(refusal(number)));
        decisions.refuse(refusal(70));
        assert_eq!(decisions.refused.len(), REFUSED_GENERATIONS_MAX);
        assert_eq!(decisions.refused[0].generation.number, 7);
        assert_eq!(decisions.refused[0].reason, "exit status: 1\\nbroken");
    }

    #[test]
    fn the_file_is_replaced_as_a_whole_and_a_damaged_one_is_no_obstacle() {
        let temp = tempfile::tempdir().unwrap();
        let state = Dir::open_path(temp.path()).unwrap();
        assert_eq!(read_refused(&state).unwrap(), []);
        for list in [vec![refusal(1)], vec![refusal(1), refusal(2)], Vec::new()] {
            std::fs::write(temp.path().join("refused.next"), "left by a crash").unwrap();
            write_refused(&state, &list).unwrap();
            assert_eq!(read_refused(&state).unwrap(), list);
        }
        std::fs::write(temp.path().join("refused"), "{").unwrap();
        assert_eq!(read_refused(&state).unwrap(), []);
    }
}
