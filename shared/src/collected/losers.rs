//! The contents of changes that came second. The origin keeps them for people, within a bound of bytes.

use std::collections::VecDeque;

use super::FileState;
use crate::tree_path::TreePath;

/// One content that lost a conflict.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Loser {
    pub path: TreePath,
    pub file: FileState,
    /// Name of the node that sent it.
    pub node: String,
    /// When it arrived, in milliseconds since 1970.
    pub at_ms: u64,
}

/// The losers of one collected directory, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Losers {
    kept: VecDeque<Loser>,
    bytes: u64,
}

impl Losers {
    pub fn kept(&self) -> impl Iterator<Item = &Loser> {
        self.kept.iter()
    }

    /// Bytes of their contents.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a loser, and returns the oldest ones that are given up for it. A content that is kept for its
    /// path already is not added: the node sent it again.
    pub fn keep(&mut self, loser: Loser, bytes_max: u64) -> Vec<Loser> {
        let is_kept = |one: &Loser| one.path == loser.path && one.file.content == loser.file.content;
        if self.kept.iter().any(is_kept) {
            return Vec::new();
        }
        self.bytes = self.bytes.saturating_add(loser.file.size);
        self.kept.push_back(loser);
        let mut given_up = Vec::new();
        // The newest stays, however large.
        while self.bytes > bytes_max && self.kept.len() > 1 {
            given_up.extend(self.take_oldest());
        }
        given_up
    }

    fn take_oldest(&mut self) -> Option<Loser> {
        let oldest = self.kept.pop_front()?;
        self.bytes = self.bytes.saturating_sub(oldest.file.size);
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::super::model::file;
    use super::*;

    fn loser(content: u32, size: u64) -> Loser {
        let State::File(file) = file(content) else { panic!("a file") };
        let path = TreePath::from_bytes(b"a/b").expect("a path");
        Loser { path, file: super::FileState { size, ..file }, node: "web-1".into(), at_ms: content.into() }
    }

    #[test]
    fn the_oldest_losers_are_given_up_first() {
        let mut losers = Losers::default();
        assert_eq!(losers.keep(loser(1, 40), 100), []);
        assert_eq!(losers.keep(loser(2, 50), 100), []);
        assert_eq!(losers.keep(loser(3, 60), 100), [loser(1, 40), loser(2, 50)].as_slice());
        assert_eq!((losers.bytes(), losers.kept().count()), (60, 1));
    }

    #[test]
    fn the_newest_loser_stays_however_large() {
        let mut losers = Losers::default();
        losers.keep(loser(1, 40), 100);
        assert_eq!(losers.keep(loser(2, 500), 100), [loser(1, 40)].as_slice());
        assert_eq!(losers.bytes(), 500);
    }

    #[test]
    fn a_loser_sent_again_is_kept_once() {
        let mut losers = Losers::default();
        losers.keep(loser(1, 40), 100);
        losers.keep(loser(1, 40), 100);
        assert_eq!((losers.bytes(), losers.kept().count()), (40, 1));
    }
}
