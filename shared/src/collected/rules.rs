//! Names that a collected directory does not take.

use crate::ignore_rules::{IgnoreError, IgnoreRules};
use crate::tree_path::TreePath;

/// The patterns `ignore` and `deny` of a collected directory, in the syntax of `.syncdignore`.
#[derive(Debug, Clone, Default)]
pub struct CollectedRules {
    ignored: IgnoreRules,
    denied: IgnoreRules,
}

/// The rules' decision on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    Taken,
    /// Stays on its node.
    Ignored,
    /// Refused, with an alarm.
    Denied,
}

impl CollectedRules {
    pub fn new(ignore: &[String], deny: &[String]) -> Result<Self, IgnoreError> {
        let rules = |patterns: &[String]| {
            IgnoreRules::default().with_file(&TreePath::root(), patterns.join("\n").as_bytes())
        };
        Ok(Self { ignored: rules(ignore)?, denied: rules(deny)? })
    }

    /// Decides on an entry. A pattern that matches a directory holds for everything below it. `ignore` wins.
    pub fn ruling(&self, path: &TreePath, is_directory: bool) -> Ruling {
        match () {
            () if self.ignored.excludes_within(path, is_directory) => Ruling::Ignored,
            () if self.denied.excludes_within(path, is_directory) => Ruling::Denied,
            () => Ruling::Taken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_holds_for_everything_below_a_directory_and_ignore_wins() {
        let patterns = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        let rules = CollectedRules::new(&patterns(&["cache/", "*.part", "kept.php"]), &patterns(&["*.php"]));
        let rules = rules.expect("patterns");
        let ruling = |path: &[u8]| rules.ruling(&TreePath::from_bytes(path).expect("a path"), false);
        for (path, expected) in [
            (&b"2026/a.jpg"[..], Ruling::Taken),
            (b"cache", Ruling::Taken),
            (b"2026/cache/a.jpg", Ruling::Ignored),
            (b"a.part", Ruling::Ignored),
            (b"a.php", Ruling::Denied),
            (b"2026/a.php/b.jpg", Ruling::Denied),
            (b"kept.php", Ruling::Ignored),
        ] {
            assert_eq!(ruling(path), expected, "{}", path.escape_ascii());
        }
        assert!(CollectedRules::new(&patterns(&["[a"]), &[]).is_err());
    }
}
