//! A node's side: what its journal says of one path, and what is to be done there.

use super::{Change, State, Verdict, Version, VersionNumber};

/// The journal's row of one path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Row {
    /// The baseline: the version that the local file was made from, and the local state that holds nothing
    /// new for the origin. The state is not the version's if the local change lost a conflict.
    base: Option<Version>,
    /// The newest version that the node knows of. Never older than the baseline.
    newest: Option<Version>,
    /// A change that was sent and whose answer is not known.
    sent: Option<State>,
}

/// The next step of a node at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Nothing,
    /// [`Row::sends`], durably, then send.
    Send(Change),
    /// Make the local file this version, or remove it; then [`Row::stands_at`].
    Place(Version),
    /// The local file is this version already: [`Row::stands_at`].
    Record(Version),
}

/// The origin's answer to a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Answer {
    pub verdict: Verdict,
    /// The current version, after the verdict.
    pub current: Version,
}

impl Row {
    /// As stored: see [`Self::base`], [`Self::newest`] and [`Self::sent`].
    pub fn from_parts(base: Option<Version>, newest: Option<Version>, sent: Option<State>) -> Self {
        Self { base, newest, sent }
    }

    pub fn base(&self) -> Option<Version> {
        self.base
    }

    pub fn newest(&self) -> Option<Version> {
        self.newest
    }

    pub fn sent(&self) -> Option<State> {
        self.sent
    }

    /// `local`: what stands at the path now. Not to be asked while a change is unanswered in this session.
    pub fn next(&self, local: &State) -> Action {
        let Some(newest) = self.newest else { return self.next_unknown(local) };
        if *local == newest.state {
            return if self.base == Some(newest) { Action::Nothing } else { Action::Record(newest) };
        }
        match self.base {
            // Nothing local counts as a removal without a baseline, or if the version removed was not the
            // newest.
            None if *local == State::Absent => Action::Place(newest),
            Some(base) if *local == base.state => Action::Place(newest),
            Some(base) if *local == State::Absent && base.number < newest.number => Action::Place(newest),
            _ => self.send(local),
        }
    }

    /// Like [`Self::next`], for a path of which the origin has said nothing.
    fn next_unknown(&self, local: &State) -> Action {
        let is_known = match self.base {
            None => *local == State::Absent,
            Some(base) => *local == base.state,
        };
        if is_known { Action::Nothing } else { self.send(local) }
    }

    fn send(&self, local: &State) -> Action {
        Action::Send(Change { base: self.base_number(), state: *local })
    }

    fn base_number(&self) -> VersionNumber {
        self.base.map_or(VersionNumber::NONE, |base| base.number)
    }

    /// A change to this state is about to be sent.
    pub fn sends(&mut self, state: State) {
        self.sent = Some(state);
    }

    /// The origin announced a version.
    pub fn learn(&mut self, version: Version) {
        if self.newest.is_some_and(|newest| newest.number >= version.number) {
            return;
        }
        self.newest = Some(version);
        // The answer was lost: later local changes were made from this version, not from the baseline.
        if let Some(sent) = self.sent.filter(|sent| sent.has_content_of(&version.state)) {
            self.base = Some(Version { number: version.number, state: sent });
            self.sent = None;
        }
    }

    /// A session began and all versions are learned: what was sent before and is not among them was not
    /// taken, and will not be.
    pub fn caught_up(&mut self) {
        self.sent = None;
    }

    /// The origin answered the change.
    pub fn answered(&mut self, answer: &Answer) {
        let Some(sent) = self.sent.take() else { return };
        let number = match answer.verdict {
            Verdict::Take | Verdict::Same => answer.current.number,
            // The origin has the content: it is no news any more, but stands for no version.
            Verdict::Old | Verdict::Conflict => self.base_number(),
        };
        self.base = Some(Version { number, state: sent });
        self.learn(answer.current);
    }

    /// The local file was found to be this version, or was made it.
    pub fn stands_at(&mut self, version: Version) {
        self.base = Some(version);
        self.sent = None;
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::file;
    use super::*;

    fn version(number: u64, state: State) -> Version {
        Version { number: VersionNumber::new(number), state }
    }

    fn send(base: u64, state: State) -> Action {
        Action::Send(Change { base: VersionNumber::new(base), state })
    }

    #[test]
    fn a_node_without_a_journal_removes_nothing_and_offers_what_it_has() {
        let mut row = Row::default();
        assert_eq!(row.next(&State::Absent), Action::Nothing);
        row.learn(version(3, file(1)));
        assert_eq!(row.next(&State::Absent), Action::Place(version(3, file(1))));
        assert_eq!(row.next(&file(1)), Action::Record(version(3, file(1))));
        assert_eq!(row.next(&file(2)), send(0, file(2)));
    }

    #[test]
    fn a_local_change_is_made_from_the_baseline() {
        let mut row = Row::default();
        row.learn(version(3, file(1)));
        row.stands_at(version(3, file(1)));
        assert_eq!(row.next(&file(1)), Action::Nothing);
        assert_eq!(row.next(&State::Absent), send(3, State::Absent));
        row.learn(version(4, file(2)));
        assert_eq!(row.next(&file(1)), Action::Place(version(4, file(2))));
        assert_eq!(
            row.next(&State::Absent),
            Action::Place(version(4, file(2))),
            "a removal of an old version"
        );
        assert_eq!(row.next(&file(3)), send(3, file(3)));
    }

    #[test]
    fn a_loser_gives_way_after_the_answer() {
        let mut row = Row::default();
        row.sends(file(2));
        row.answered(&Answer { verdict: Verdict::Conflict, current: version(1, file(1)) });
        assert_eq!(row.next(&file(2)), Action::Place(version(1, file(1))));
        assert_eq!(row.next(&file(3)), send(0, file(3)), "edited again meanwhile");
    }

    #[test]
    fn an_obstructed_loser_gives_way_although_nothing_is_newer() {
        let mut row = Row::default();
        row.learn(version(5, State::Absent));
        row.stands_at(version(5, State::Absent));
        row.sends(file(2));
        row.answered(&Answer { verdict: Verdict::Conflict, current: version(5, State::Absent) });
        assert_eq!(row.next(&file(2)), Action::Place(version(5, State::Absent)));
    }

    #[test]
    fn a_change_whose_answer_was_lost_is_recognized() {
        let mut row = Row::default();
        row.learn(version(3, file(1)));
        row.stands_at(version(3, file(1)));
        row.sends(file(2));
        row.learn(version(4, file(2)));
        assert_eq!(row.next(&file(3)), send(4, file(3)));
    }
}
