//! The files that nodes offer and a directory does not take.

use std::collections::BTreeMap;

use syncd_shared::TreePath;

/// Files that are remembered.
const REMEMBERED_MAX: usize = 10_000;
/// A node offers a refused file every hour. Later than this it is gone, or its node is.
const OFFERED_AGAIN_MS: u64 = 150 * 60 * 1000;

/// Refusals of one directory since the start.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    count: u64,
    /// Node and path, and when the file was last offered, in milliseconds since 1970.
    offered: BTreeMap<(String, TreePath), u64>,
}

impl Refusals {
    /// Counts a refusal. True: the file was not refused before.
    pub fn add(&mut self, node: &str, path: &TreePath, now_ms: u64) -> bool {
        self.count = self.count.saturating_add(1);
        if self.offered.len() >= REMEMBERED_MAX {
            self.forget(now_ms);
        }
        let key = (node.to_owned(), path.clone());
        let is_known = self.offered.contains_key(&key);
        if is_known || self.offered.len() < REMEMBERED_MAX {
            self.offered.insert(key, now_ms);
            return !is_known;
        }
        false
    }

    /// A node's change at a path was taken, or adds nothing.
    pub fn end(&mut self, node: &str, path: &TreePath) {
        if !self.offered.is_empty() {
            self.offered.remove(&(node.to_owned(), path.clone()));
        }
    }

    /// Refusals since the start.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Files that are refused now.
    pub fn now(&mut self, now_ms: u64) -> u64 {
        self.forget(now_ms);
        self.offered.len() as u64
    }

    fn forget(&mut self, now_ms: u64) {
        self.offered.retain(|_, at_ms| at_ms.saturating_add(OFFERED_AGAIN_MS) > now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_as_refused_until_it_is_taken_or_not_offered_any_more() {
        let path = |name: &str| TreePath::from_bytes(name.as_bytes()).expect("a path");
        let mut refusals = Refusals::default();
        assert!(refusals.add("web1", &path("a.php"), 0) && refusals.add("web2", &path("a.php"), 0));
        assert!(!refusals.add("web1", &path("a.php"), 60), "offered again");
        assert_eq!((refusals.now(60), refusals.count()), (2, 3));
        refusals.end("web2", &path("a.php"));
        assert_eq!(refusals.now(OFFERED_AGAIN_MS), 1);
        assert_eq!(refusals.now(OFFERED_AGAIN_MS + 60), 0);
    }
}
