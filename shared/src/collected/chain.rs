//! The origin's side: the versions of one path.

use super::{Change, State, Version, VersionNumber};
use crate::hash::ContentHash;
use crate::limits::{COLLECTED_PAST_MAX, COLLECTED_PAST_MS};

/// The versions of one path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Chain {
    current: Version,
    /// When the current version was taken, in milliseconds since 1970.
    since_ms: u64,
    /// Contents that were current before, oldest first.
    past: Vec<Past>,
}

/// A content that was current once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Past {
    pub version: Version,
    /// When it was taken, in milliseconds since 1970.
    pub since_ms: u64,
    /// When another version took its place, in milliseconds since 1970.
    pub until_ms: u64,
    /// The version that took its place.
    pub until: VersionNumber,
    /// Whether the origin still has the content.
    pub is_kept: bool,
}

/// Whether other paths leave room for an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Around {
    Clear,
    /// A directory above the path is a file.
    FileAbove,
    /// Entries stand below the path.
    EntriesBelow,
}

/// The origin's decision on a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Becomes the current version.
    Take,
    /// Is the current version already: a change that was sent again.
    Same,
    /// Adds nothing that the origin does not have: an old content, or the removal of an old version.
    Old,
    /// Another change came first. The content is kept as a loser.
    Conflict,
}

impl Chain {
    /// As stored: see [`Self::current`], [`Self::since_ms`] and [`Self::past`].
    pub fn from_parts(current: Version, since_ms: u64, past: Vec<Past>) -> Self {
        Self { current, since_ms, past }
    }

    /// Number 0 and absent before the first change.
    pub fn current(&self) -> Version {
        self.current
    }

    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// Oldest first.
    pub fn past(&self) -> &[Past] {
        &self.past
    }

    /// The state at a moment, as far as it is remembered: past directories are not.
    pub fn state_at(&self, at_ms: u64) -> State {
        if self.since_ms <= at_ms {
            return self.current.state;
        }
        let was_there = |past: &&Past| (past.since_ms..past.until_ms).contains(&at_ms);
        self.past.iter().find(was_there).map_or(State::Absent, |past| past.version.state)
    }

    /// Whether the content is, or was, current here.
    pub fn has_seen(&self, content: ContentHash) -> bool {
        self.current.state.content() == Some(content) || self.was_current(content)
    }

    fn was_current(&self, content: ContentHash) -> bool {
        self.past.iter().any(|past| past.version.state.content() == Some(content))
    }

    pub fn judge(&self, change: &Change, around: Around) -> Verdict {
        let is_seen = change.base == self.current.number;
        let is_current = match is_seen {
            true => change.state == self.current.state,
            // A late change of metadata alone is dropped: the first to arrive stays.
            false => change.state.has_content_of(&self.current.state),
        };
        match change.state {
            _ if is_current => Verdict::Same,
            State::Absent | State::Directory { .. } if !is_seen => Verdict::Old,
            State::Absent => Verdict::Take,
            State::Directory { .. } if around == Around::FileAbove => Verdict::Old,
            State::Directory { .. } => Verdict::Take,
            State::File(file) => self.judge_file(change.base, file.content, around),
        }
    }

    fn judge_file(&self, base: VersionNumber, content: ContentHash, around: Around) -> Verdict {
        let is_seen = base == self.current.number;
        if !is_seen && self.was_current(content) {
            return Verdict::Old;
        }
        // A node without a journal offers what it has. Nothing stands in the way of an unknown content.
        let is_new = base == VersionNumber::NONE && self.current.state == State::Absent;
        match around == Around::Clear && (is_seen || is_new) {
            true => Verdict::Take,
            false => Verdict::Conflict,
        }
    }

    /// Makes `version` the current one. Its number must be the highest so far.
    pub fn take(&mut self, version: Version, now_ms: u64) {
        let before = std::mem::replace(&mut self.current, version);
        let since_ms = std::mem::replace(&mut self.since_ms, now_ms);
        if before.state.content().is_some() && !before.state.has_content_of(&version.state) {
            let until = version.number;
            self.past.push(Past { version: before, since_ms, until_ms: now_ms, until, is_kept: true });
        }
        let excess = self.past.len().saturating_sub(COLLECTED_PAST_MAX);
        self.past.drain(..excess);
    }

    /// The content that was current until this version is not kept any longer. It still counts as old.
    pub fn give_up(&mut self, until: VersionNumber) {
        self.past.iter_mut().filter(|past| past.until == until).for_each(|past| past.is_kept = false);
    }

    /// Forgets what ended more than a year ago. True: nothing is left to remember of the path.
    pub fn expire(&mut self, now_ms: u64) -> bool {
        let oldest_ms = now_ms.saturating_sub(COLLECTED_PAST_MS);
        self.past.retain(|past| past.until_ms >= oldest_ms);
        self.current.state == State::Absent && self.past.is_empty() && self.since_ms < oldest_ms
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::file;
    use super::*;

    fn chain(states: &[State]) -> Chain {
        let mut chain = Chain::default();
        for (state, number) in states.iter().zip(1..) {
            chain.take(Version { number: VersionNumber::new(number), state: *state }, number);
        }
        chain
    }

    fn judge(chain: &Chain, base: u64, state: State) -> Verdict {
        chain.judge(&Change { base: VersionNumber::new(base), state }, Around::Clear)
    }

    #[test]
    fn a_change_of_the_current_version_is_taken() {
        let edited = chain(&[file(1), file(2)]);
        for state in [file(3), file(1), State::Absent] {
            assert_eq!(judge(&edited, 2, state), Verdict::Take, "{state:?}");
        }
        assert_eq!(judge(&Chain::default(), 0, file(1)), Verdict::Take);
    }

    #[test]
    fn a_change_of_an_older_version_loses() {
        let edited = chain(&[file(1), file(2)]);
        assert_eq!(judge(&edited, 1, file(3)), Verdict::Conflict);
        assert_eq!(judge(&edited, 1, State::Absent), Verdict::Old, "a removal of an old version");
        assert_eq!(judge(&edited, 1, file(2)), Verdict::Same, "sent again");
        let removed = chain(&[file(1), State::Absent]);
        assert_eq!(judge(&removed, 1, file(3)), Verdict::Conflict, "edited here, removed there");
        assert_eq!(judge(&removed, 1, State::Absent), Verdict::Same);
    }

    #[test]
    fn a_node_without_a_journal_brings_back_nothing_old() {
        let removed = chain(&[file(1), file(2), State::Absent]);
        assert_eq!(judge(&removed, 0, file(1)), Verdict::Old);
        assert_eq!(judge(&removed, 0, file(2)), Verdict::Old);
        assert_eq!(judge(&removed, 0, file(3)), Verdict::Take, "an unknown content is new");
        assert_eq!(judge(&removed, 0, State::Directory { mode: 0o755 }), Verdict::Old);
        let present = chain(&[file(1), file(2)]);
        assert_eq!(judge(&present, 0, file(1)), Verdict::Old);
        assert_eq!(judge(&present, 0, file(3)), Verdict::Conflict);
    }

    #[test]
    fn a_removed_file_uploaded_again_is_new() {
        assert_eq!(judge(&chain(&[file(1), State::Absent]), 2, file(1)), Verdict::Take);
    }

    #[test]
    fn an_obstructed_file_is_kept_as_a_loser() {
        for around in [Around::FileAbove, Around::EntriesBelow] {
            let change = Change { base: VersionNumber::NONE, state: file(1) };
            assert_eq!(Chain::default().judge(&change, around), Verdict::Conflict);
        }
        let directory = Change { base: VersionNumber::NONE, state: State::Directory { mode: 0o755 } };
        assert_eq!(Chain::default().judge(&directory, Around::FileAbove), Verdict::Old);
        assert_eq!(Chain::default().judge(&directory, Around::EntriesBelow), Verdict::Take);
    }

    #[test]
    fn the_state_at_a_moment_is_what_was_current_then() {
        let edited = chain(&[file(1), State::Absent, file(2), file(3)]);
        let expected = [State::Absent, file(1), State::Absent, file(2), file(3), file(3)];
        assert_eq!([0, 1, 2, 3, 4, 5].map(|at| edited.state_at(at)), expected);
    }

    #[test]
    fn the_past_is_forgotten_after_a_year() {
        let mut removed = chain(&[file(1), State::Absent]);
        assert!(!removed.expire(COLLECTED_PAST_MS));
        assert_eq!(removed.past().len(), 1);
        assert!(removed.expire(COLLECTED_PAST_MS + 3));
        assert!(!chain(&[file(1)]).expire(u64::MAX), "a current version stays");
    }

    #[test]
    fn a_content_that_was_given_up_stays_old() {
        let mut edited = chain(&[file(1), file(2), file(3)]);
        edited.give_up(VersionNumber::new(2));
        assert_eq!(edited.past().iter().map(|past| past.is_kept).collect::<Vec<_>>(), [false, true]);
        assert_eq!(judge(&edited, 0, file(1)), Verdict::Old);
    }

    #[test]
    fn the_past_of_one_path_is_bounded() {
        let states: Vec<State> = (0..COLLECTED_PAST_MAX as u32 + 10).map(file).collect();
        let edited = chain(&states);
        assert_eq!(edited.past().len(), COLLECTED_PAST_MAX);
        assert_eq!(edited.past().last().map(|past| past.version.state), states.iter().rev().nth(1).copied());
    }
}
