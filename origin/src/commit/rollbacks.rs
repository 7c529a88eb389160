//! The hold left by a rollback or a withdrawal, and the generations that are no place to return to: rolled
//! back, withdrawn, or superseded before they were released.
//!
//! One record, `commit`/`rollbacks`, written by the sealer only. The transaction that seals a rollback sets
//! the hold, and the one that seals an operator's commit ends it, so that a crash leaves both or neither.
//! Integers little endian:
//!
//! ```text
//! u8 version = 3
//! u8 hold: 0 none, 1 keeps back the last replaced generation, 2 keeps back none
//! with a hold: u64 target, u64 generation in effect, i64 since (Unix, ms), u64 withdrawn generation or 0
//! u8 number of returns; per return, oldest first:
//!     u64 target, u64 generation, u8 1 if it withdrew, otherwise 0
//! per replaced generation, oldest first: u64 number, 32 root hash, u8 1 if it was superseded, otherwise 0
//! ```

use syncd_shared::{Generation, GenerationNumber, RootHash, SignedGeneration};

use crate::store::{Records, Store, StoreError};

const NAMESPACE: &str = "commit";
const NAME: &[u8] = b"rollbacks";
const VERSION: u8 = 3;
/// Maximum number of replaced generations remembered; the oldest is forgotten first.
const PUT_ASIDE_MAX: usize = 64;
/// Maximum number of returns remembered; the oldest is forgotten first.
const RETURNS_MAX: usize = 64;

/// Nothing is published automatically until an operator commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Generation that the rollback returned to.
    pub target: GenerationNumber,
    /// Generation in effect: the one sealed by the rollback, or `target` if it was current already.
    pub generation: GenerationNumber,
    /// Start of the hold, in milliseconds since 1970.
    pub since_ms: i64,
    /// The generation whose rollout failed, if the origin returned by itself.
    pub withdrawn: Option<GenerationNumber>,
}

impl Hold {
    /// One line with the next step.
    pub fn reason(&self) -> String {
        match self.withdrawn {
            None => format!("held after rollback to {}: fix the tree, then commit", self.target),
            Some(withdrawn) => format!(
                "generation {withdrawn} was withdrawn, and the tree of {} published again: fix the tree, then commit",
                self.target
            ),
        }
    }
}

/// A generation with the tree of an earlier one, sealed by a rollback or a withdrawal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Return {
    /// The earlier generation.
    pub target: GenerationNumber,
    pub generation: GenerationNumber,
    /// Whether the origin withdrew the generation before, by itself.
    pub withdrew: bool,
}

impl Return {
    /// The return that replaced a generation, among all returns, oldest first.
    pub fn replacing(returns: &[Self], number: GenerationNumber) -> Option<Self> {
        let newest = returns.iter().rfind(|back| back.generation > number)?;
        let mut target = newest.target;
        // The target may be a return itself.
        while target > number {
            target = returns.iter().rfind(|back| back.generation == target)?.target;
        }
        (target < number).then_some(*newest)
    }

    /// One line.
    pub fn describe(&self) -> String {
        let by = if self.withdrew { "by the origin" } else { "by a rollback" };
        format!("generation {} replaced it {by}, with the tree of {}", self.generation, self.target)
    }
}

/// A generation that a rollback replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PutAside {
    pub number: GenerationNumber,
    pub root: RootHash,
    /// A commit replaced it before it was released.
    pub superseded: bool,
}

/// Hold and replaced generations. See the module documentation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rollbacks {
    hold: Option<Hold>,
    /// The hold keeps back the last entry of `put_aside`. False after a rollback to the current generation.
    holds_back: bool,
    /// Oldest first, each root once.
    put_aside: Vec<PutAside>,
    /// Oldest first.
    returns: Vec<Return>,
}

impl Rollbacks {
    /// Loads the record. Empty before the first rollback.
    pub(crate) fn load(store: &Store) -> Result<Self, StoreError> {
        let Some(bytes) = store.record(NAMESPACE, NAME)? else { return Ok(Self::default()) };
        match bytes.first() {
            Some(&actual) if actual != VERSION => {
                Err(StoreError::RecordVersion { record: "rollbacks", actual, expected: VERSION })
            }
            _ => Self::decode(&bytes).ok_or(StoreError::Entry { table: "records" }),
        }
    }

    /// Writes the record in the caller's transaction.
    pub(super) fn put(&self, records: &mut Records<'_>) -> Result<(), StoreError> {
        records.put(NAMESPACE, NAME, &self.encode())
    }

    pub(crate) fn hold(&self) -> Option<Hold> {
        self.hold
    }

    pub(crate) fn returns(&self) -> &[Return] {
        &self.returns
    }

    /// The number of the generation with this root, if a rollback replaced it and it was not published since.
    pub(super) fn put_aside(&self, root: &RootHash) -> Option<GenerationNumber> {
        let rolled_back = |aside: &&PutAside| aside.root == *root && !aside.superseded;
        self.put_aside.iter().find(rolled_back).map(|aside| aside.number)
    }

    /// Whether a generation was withdrawn or rolled back, and its tree was not published since.
    pub(crate) fn is_put_aside(&self, number: u64) -> bool {
        self.put_aside.iter().any(|aside| aside.number.get() == number && !aside.superseded)
    }

    /// Bound of the search of `rollback` without a number: the generation whose tree is in effect.
    fn search_below(&self, current: GenerationNumber) -> GenerationNumber {
        self.hold.filter(|hold| hold.generation == current).map_or(current, |hold| hold.target)
    }

    /// The generation before the one in effect. One that failed, was rolled back or superseded is never
    /// chosen, and none that a node refuses.
    pub(crate) fn previous(
        &self,
        current: &Generation,
        generations: impl Iterator<Item = Generation>,
        is_refused: impl Fn(&RootHash) -> bool,
    ) -> Option<GenerationNumber> {
        let below = self.search_below(current.number);
        let is_aside =
            |root: &RootHash| is_refused(root) || self.put_aside.iter().any(|aside| aside.root == *root);
        let earlier = generations.filter(|generation| generation.number < below);
        let eligible = earlier.filter(|g| g.root_hash() != current.root_hash() && !is_aside(&g.root_hash()));
        eligible.map(|generation| generation.number).max()
    }

    /// The record after a generation was replaced that is no place to return to: `superseded` before it was
    /// released, or failed on a node.
    pub(super) fn replaced(&self, replaced: &SignedGeneration, superseded: bool) -> Self {
        let mut after = self.clone();
        let (number, root) = (replaced.number(), replaced.root_hash());
        // A return has the tree of an earlier generation, which had been released.
        if superseded && self.returns.iter().any(|back| back.generation == number) {
            return after;
        }
        if !after.put_aside.iter().any(|aside| aside.root == root) {
            // Never last, which is what a hold keeps back.
            let excess = (after.put_aside.len() + 1).saturating_sub(PUT_ASIDE_MAX);
            after.put_aside.drain(..excess);
            after.put_aside.insert(0, PutAside { number, root, superseded });
        }
        after
    }

    /// The record after a failed generation was replaced by `generation`, which has the tree of `target`
    /// again.
    pub(super) fn withdrawn(
        &self,
        target: GenerationNumber,
        generation: &SignedGeneration,
        failed: &SignedGeneration,
    ) -> Self {
        let since_ms = generation.generation().created_ms;
        let mut after = self.rolled_back(target, generation, Some(failed), since_ms);
        after.returns.iter_mut().rev().take(1).for_each(|back| back.withdrew = true);
        Self { hold: after.hold.map(|hold| Hold { withdrawn: Some(failed.number()), ..hold }), ..after }
    }

    /// The generation replaced by the rollback that caused the hold.
    pub(super) fn held_back(&self) -> Option<PutAside> {
        self.put_aside.last().copied().filter(|_| self.holds_back)
    }

    /// The record after a rollback to `target`, with `generation` in effect in place of `before`. Without
    /// `before` it was in effect already, and an earlier hold stays in effect.
    pub(super) fn rolled_back(
        &self,
        target: GenerationNumber,
        generation: &SignedGeneration,
        before: Option<&SignedGeneration>,
        since_ms: i64,
    ) -> Self {
        let hold = Some(Hold { target, generation: generation.number(), since_ms, withdrawn: None });
        let mut put_aside = self.put_aside.clone();
        let before = before.map(|before| PutAside {
            number: before.number(),
            root: before.root_hash(),
            superseded: false,
        });
        let held_back = before.or(self.held_back());
        let mut returns = self.returns.clone();
        if let Some(before) = before {
            let excess = (returns.len() + 1).saturating_sub(RETURNS_MAX);
            returns.drain(..excess);
            returns.push(Return { target, generation: generation.number(), withdrew: false });
            put_aside.retain(|aside| aside.root != before.root);
            put_aside.push(before);
        }
        put_aside.retain(|aside| aside.root != generation.root_hash());
        let holds_back = held_back.is_some() && put_aside.last().copied() == held_back;
        let excess = put_aside.len().saturating_sub(PUT_ASIDE_MAX);
        put_aside.drain(..excess);
        Self { hold, holds_back, put_aside, returns }
    }

    /// The record after the generation in effect was signed again, under this number.
    pub(super) fn signed_again(&self, generation: GenerationNumber) -> Self {
        Self { hold: self.hold.map(|hold| Hold { generation, ..hold }), ..self.clone() }
    }

    /// The record after an operator's commit of this root.
    pub(super) fn committed(&self, root: &RootHash) -> Self {
        let mut put_aside = self.put_aside.clone();
        put_aside.retain(|aside| aside.root != *root);
        Self { hold: None, holds_back: false, put_aside, returns: self.returns.clone() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let tag = match (self.hold, self.holds_back) {
            (None, _) => 0,
            (Some(_), true) => 1,
            (Some(_), false) => 2,
        };
        let mut out = vec![VERSION, tag];
        if let Some(hold) = &self.hold {
            out.extend_from_slice(&hold.target.get().to_le_bytes());
            out.extend_from_slice(&hold.generation.get().to_le_bytes());
            out.extend_from_slice(&hold.since_ms.to_le_bytes());
            out.extend_from_slice(&hold.withdrawn.map_or(0, GenerationNumber::get).to_le_bytes());
        }
        out.push(u8::try_from(self.returns.len()).expect("at most RETURNS_MAX returns are kept"));
        for back in &self.returns {
            out.extend_from_slice(&back.target.get().to_le_bytes());
            out.extend_from_slice(&back.generation.get().to_le_bytes());
            out.push(u8::from(back.withdrew));
        }
        for aside in &self.put_aside {
            out.extend_from_slice(&aside.number.get().to_le_bytes());
            out.extend_from_slice(aside.root.as_bytes());
            out.push(u8::from(aside.superseded));
        }
        out
    }

    /// `None` for invalid bytes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, mut rest) = bytes.split_first_chunk::<2>()?;
        let hold = match head {
            [VERSION, 0] => None,
            [VERSION, 1 | 2] => {
                let (target, generation) = (take_number(&mut rest)?, take_number(&mut rest)?);
                let since_ms = i64::from_le_bytes(take(&mut rest)?);
                let withdrawn = GenerationNumber::new(u64::from_le_bytes(take(&mut rest)?));
                Some(Hold { target, generation, since_ms, withdrawn })
            }
            _ => return None,
        };
        let [count] = take(&mut rest)?;
        let mut returns = Vec::new();
        for _ in 0..count {
            let (target, generation) = (take_number(&mut rest)?, take_number(&mut rest)?);
            let [withdrew] = take(&mut rest)?;
            returns.push(Return { target, generation, withdrew: withdrew == 1 });
        }
        let mut put_aside = Vec::new();
        while !rest.is_empty() {
            let number = take_number(&mut rest)?;
            let root = RootHash::from_bytes(take(&mut rest)?);
            let [superseded] = take(&mut rest)?;
            put_aside.push(PutAside { number, root, superseded: superseded == 1 });
        }
        let holds_back = head == &[VERSION, 1];
        Some(Self { hold, holds_back, put_aside, returns })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

fn take_number(rest: &mut &[u8]) -> Option<GenerationNumber> {
    GenerationNumber::new(u64::from_le_bytes(take(rest)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use syncd_shared::ed25519::SigningKey;
    use syncd_shared::{RootEntry, TreeId};

    fn number(number: u64) -> GenerationNumber {
        GenerationNumber::new(number).unwrap()
    }

    fn generation(of: u64, mode: u16) -> SignedGeneration {
        let mut root = RootEntry::empty();
        root.metadata.mode = mode;
        let tree_id = TreeId::from_bytes([1; 16]);
        let label = String::new();
        let generation = Generation {
            tree_id,
            epoch: 1,
            number: number(of),
            trust: 1,
            root,
            parent: None,
            created_ms: 0,
            label,
        };
        generation.sign(&SigningKey::from_bytes(&[1; 32]))
    }

    #[test]
    fn a_commit_ends_the_hold_and_what_it_publishes_is_no_longer_put_aside() {
        let (bad, worse) = (generation(5, 1), generation(4, 2));
        let rolled = Rollbacks::default().rolled_back(number(3), &generation(6, 3), Some(&bad), 7);
        let rolled = rolled.rolled_back(number(2), &generation(7, 4), Some(&worse), 8);
        assert_eq!(rolled.hold().map(|hold| (hold.target.get(), hold.generation.get())), Some((2, 7)));
        assert_eq!(rolled.held_back().map(|aside| aside.number), Some(number(4)));
        let committed = rolled.committed(&bad.root_hash());
        assert_eq!((committed.hold(), committed.put_aside(&bad.root_hash())), (None, None));
        assert_eq!(committed.put_aside(&worse.root_hash()), Some(number(4)));
        // A rollback to it takes it back as well.
        let back = rolled.rolled_back(number(5), &generation(8, 1), Some(&generation(7, 4)), 9);
        assert_eq!(back.put_aside(&bad.root_hash()), None);
    }

    #[test]
    fn a_generation_is_replaced_by_a_return_behind_it_until_another_one_brings_it_back() {
        let back = |target, generation| Return {
            target: number(target),
            generation: number(generation),
            withdrew: false,
        };
        let by =
            |returns: &[Return], of| Return::replacing(returns, number(of)).map(|back| back.generation.get());
        let returns = [back(5, 8)];
        assert_eq!([4, 5, 6, 7, 8, 9].map(|of| by(&returns, of)), [None, None, Some(8), Some(8), None, None]);
        // 9 has the tree of 7 again, and 10 that of 8, which is the tree of 5.
        assert_eq!([6, 7].map(|of| by(&[back(5, 8), back(7, 9)], of)), [None, None]);
        let returns = [back(5, 8), back(7, 9), back(8, 10)];
        assert_eq!([6, 7, 8, 9].map(|of| by(&returns, of)), [Some(10), Some(10), None, Some(10)]);
    }

    #[test]
    fn the_tree_of_a_return_that_is_superseded_is_still_a_place_to_return_to() {
        let (good, bad, back) = (generation(1, 1), generation(2, 2), generation(3, 1));
        let rolled = Rollbacks::default().rolled_back(number(1), &back, Some(&bad), 7);
        let next = generation(4, 4);
        let after = rolled.committed(&next.root_hash()).replaced(&back, true);
        let all = [&good, &bad, &back].map(|generation| generation.generation().clone());
        assert_eq!(after.previous(next.generation(), all.into_iter(), |_| false), Some(number(3)));
        let failed = rolled.committed(&next.root_hash()).replaced(&back, false);
        assert_eq!(failed.put_aside(&back.root_hash()), Some(number(3)));
    }

    #[test]
    fn returns_outlive_the_hold_and_a_restart() {
        let rolled =
            Rollbacks::default().rolled_back(number(3), &generation(6, 3), Some(&generation(5, 1)), 7);
        let failed = generation(7, 9);
        let rolled = rolled.committed(&failed.root_hash()).withdrawn(number(6), &generation(8, 3), &failed);
        let loaded = Rollbacks::decode(&rolled.encode()).unwrap();
        assert_eq!(loaded, rolled);
        let of = |back: &Return| (back.target.get(), back.generation.get(), back.withdrew);
        assert_eq!(loaded.returns().iter().map(of).collect::<Vec<_>>(), [(3, 6, false), (6, 8, true)]);
    }

    #[test]
    fn a_rollback_to_what_is_current_keeps_back_only_what_is_held_back_already() {
        let bad = generation(5, 1);
        let rolled = Rollbacks::default().rolled_back(number(3), &generation(6, 3), Some(&bad), 7);
        let again = rolled.rolled_back(number(6), &generation(6, 3), None, 8);
        assert_eq!(again.held_back().map(|aside| aside.number), Some(number(5)), "the tree still has it");
        let committed = again.committed(&generation(7, 4).root_hash());
        let stays = committed.rolled_back(number(7), &generation(7, 4), None, 9);
        assert_eq!((stays.held_back(), stays.hold().is_some()), (None, true));
        assert_eq!(stays.put_aside(&bad.root_hash()), Some(number(5)));
        assert_eq!(Rollbacks::decode(&stays.encode()), Some(stays));
    }

    #[test]
    fn the_number_of_generations_put_aside_is_bounded() {
        let mut rollbacks = Rollbacks::default();
        for n in 1..=100u16 {
            let before = generation(u64::from(n), n);
            rollbacks = rollbacks.rolled_back(number(1), &generation(200, 0o777), Some(&before), 0);
        }
        assert_eq!(rollbacks.put_aside.len(), PUT_ASIDE_MAX);
        assert_eq!(rollbacks.put_aside(&generation(100, 100).root_hash()), Some(number(100)));
    }

    #[test]
    fn a_record_of_another_build_is_named_and_not_misread() {
        let data = tempfile::tempdir().unwrap();
        let store = Store::create(data.path()).unwrap();
        let written = |bytes: &[u8]| {
            store.update_records(|records| records.put(NAMESPACE, NAME, bytes)).unwrap();
            Rollbacks::load(&store).map_err(|error| error.to_string())
        };
        let full = Rollbacks::default().rolled_back(number(3), &generation(6, 3), Some(&generation(5, 1)), 7);
        assert_eq!(written(&full.encode()), Ok(full.clone()));
        let other = [&[VERSION - 1][..], &full.encode()[1..]].concat();
        let error = written(&other).unwrap_err();
        assert!(
            error.starts_with("the record of rollbacks has version 2, expected 3: another build"),
            "{error}"
        );
        assert!(written(&full.encode()[..9]).unwrap_err().contains("syncd-origin check"));
    }

    #[test]
    fn decoding_returns_what_was_encoded_and_refuses_what_is_cut() {
        let empty = Rollbacks::default();
        assert_eq!(Rollbacks::decode(&empty.encode()), Some(empty.clone()));
        let full = empty.rolled_back(number(3), &generation(6, 3), Some(&generation(5, 1)), -7);
        let bytes = full.encode();
        assert_eq!(Rollbacks::decode(&bytes), Some(full));
        let whole_returns = 2 + 32 + 1 + 17;
        for end in (0..bytes.len()).filter(|end| *end != whole_returns) {
            assert_eq!(Rollbacks::decode(&bytes[..end]), None, "{end}");
        }
    }
}
