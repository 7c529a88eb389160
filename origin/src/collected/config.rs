//! Settings of collected directories: the tables `[collect.NAME]` of `--config`, checked before anything uses
//! them.

use std::path::{Path, PathBuf};

use syncd_runtime::accounts::{UnknownAccountError, group_id, user_id};
use syncd_runtime::rate::Rate;
use syncd_shared::TreePath;
use syncd_shared::byte_size::ByteSize;
use syncd_shared::collected::{CollectedName, CollectedNameError, CollectedRules};
use syncd_shared::ignore_rules::IgnoreError;
use toml::{Table, Value};

use crate::source::{Found, GitError, SourceLocation};

const KEYS: &[&str] = &[
    "path",
    "owner",
    "deny",
    "ignore",
    "max_bytes",
    "node_max_bytes",
    "past_max_bytes",
    "conflicts_max_bytes",
    "rate",
];
/// Code, and settings of a web server or of PHP.
const DENY: &[&str] = &[
    "*.[pP][hH][pP]",
    "*.[pP][hH][pP][0-9]",
    "*.[pP][hH][tT][mM][lL]",
    "*.[pP][hH][aA][rR]",
    "*.[cC][gG][iI]",
    ".htaccess",
    ".htpasswd",
    ".user.ini",
];
const IGNORE: &[&str] = &["*.part", "*.tmp", "*.log", "cache/"];
const MAX_BYTES: u64 = 20 << 30;
const PAST_MAX_BYTES: u64 = 20 << 30;
const CONFLICTS_MAX_BYTES: u64 = 1 << 30;

/// Settings of a collected directory.
#[derive(Debug, Clone)]
pub struct CollectedOptions {
    pub name: CollectedName,
    /// Path in the published tree.
    pub path: TreePath,
    /// User and group of its files on the nodes.
    pub owner: (u32, u32),
    /// Files that are refused, in the syntax of `.syncdignore`.
    pub deny: Vec<String>,
    /// Files that stay on their node, in the same syntax.
    pub ignore: Vec<String>,
    /// Most bytes of all current files.
    pub max_bytes: u64,
    /// Most bytes of current files that one node has written.
    pub node_max_bytes: Option<u64>,
    /// Most bytes of contents that were current once.
    pub past_max_bytes: u64,
    /// Most bytes of contents that lost a conflict.
    pub losers_max_bytes: u64,
    /// Limit of the bytes per second that one node sends.
    pub rate: Option<Rate>,
}

/// Reasons that a table is not usable.
#[derive(Debug, thiserror::Error)]
pub enum CollectConfigError {
    #[error("[collect.{name}]")]
    Name { name: String, source: CollectedNameError },
    #[error("[collect.{name}] has an unknown key {key:?}: its keys are {}", KEYS.join(", "))]
    UnknownKey { name: CollectedName, key: String },
    #[error("[collect.{name}] needs the key {key}, as in {example}")]
    Missing { name: CollectedName, key: &'static str, example: &'static str },
    #[error("[collect.{name}] {key} is {actual}: it must be {expected}")]
    Value { name: CollectedName, key: &'static str, actual: String, expected: &'static str },
    #[error("the owner in [collect.{name}]")]
    Owner { name: CollectedName, source: UnknownAccountError },
    #[error("the patterns in [collect.{name}]")]
    Pattern { name: CollectedName, source: IgnoreError },
    #[error("[collect.{one}] and [collect.{other}] overlap: neither path may lie in the other one")]
    Overlap { one: CollectedName, other: CollectedName },
    #[error("[collect.{name}]: {parent} is no directory in {tree}, so that nothing would be published there")]
    NoParent { name: CollectedName, parent: TreePath, tree: String },
    #[error("look for {parent}, which [collect.{name}] needs")]
    Look { name: CollectedName, parent: TreePath, source: GitError },
}

/// Reads the tables below `[collect]`.
pub fn parse(tables: &Table) -> Result<Vec<CollectedOptions>, CollectConfigError> {
    let mut all: Vec<CollectedOptions> = Vec::new();
    for (name, table) in tables {
        let invalid = |source| CollectConfigError::Name { name: name.clone(), source };
        let name: CollectedName = name.parse().map_err(invalid)?;
        let empty = Table::new();
        let options = Reader { name, table: table.as_table().unwrap_or(&empty) }.options()?;
        let overlaps = |one: &&CollectedOptions| {
            one.path.starts_with(&options.path) || options.path.starts_with(&one.path)
        };
        if let Some(one) = all.iter().find(overlaps) {
            return Err(CollectConfigError::Overlap { one: one.name.clone(), other: options.name });
        }
        all.push(options);
    }
    Ok(all)
}

struct Reader<'t> {
    name: CollectedName,
    table: &'t Table,
}

impl Reader<'_> {
    fn options(self) -> Result<CollectedOptions, CollectConfigError> {
        if let Some(key) = self.table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(CollectConfigError::UnknownKey { name: self.name, key: key.clone() });
        }
        let (deny, ignore) = (self.patterns("deny", DENY)?, self.patterns("ignore", IGNORE)?);
        CollectedRules::new(&ignore, &deny)
            .map_err(|source| CollectConfigError::Pattern { name: self.name.clone(), source })?;
        Ok(CollectedOptions {
            path: self.path()?,
            owner: self.owner()?,
            max_bytes: self.bytes("max_bytes")?.unwrap_or(MAX_BYTES),
            node_max_bytes: self.bytes("node_max_bytes")?,
            past_max_bytes: self.bytes("past_max_bytes")?.unwrap_or(PAST_MAX_BYTES),
            losers_max_bytes: self.bytes("conflicts_max_bytes")?.unwrap_or(CONFLICTS_MAX_BYTES),
            rate: self.rate()?,
            deny,
            ignore,
            name: self.name,
        })
    }

    fn wrong(&self, key: &'static str, value: &Value, expected: &'static str) -> CollectConfigError {
        CollectConfigError::Value { name: self.name.clone(), key, actual: shown(value), expected }
    }

    /// A text that must be there.
    fn needed(&self, key: &'static str, example: &'static str) -> Result<(&str, &Value), CollectConfigError> {
        let missing = || CollectConfigError::Missing { name: self.name.clone(), key, example };
        let value = self.table.get(key).ok_or_else(missing)?;
        Ok((value.as_str().ok_or_else(|| self.wrong(key, value, "a text"))?, value))
    }

    fn path(&self) -> Result<TreePath, CollectConfigError> {
        let (text, value) = self.needed("path", "path = \"wp-content/uploads\"")?;
        let path = TreePath::from_bytes(text.trim_end_matches('/').as_bytes()).ok();
        let path = path.filter(|path| !path.is_root());
        path.ok_or_else(|| self.wrong("path", value, "a path in the tree, without a slash at its begin"))
    }

    fn owner(&self) -> Result<(u32, u32), CollectConfigError> {
        let (text, value) = self.needed("owner", "owner = \"www-data:www-data\"")?;
        let Some((user, group)) = text.split_once(':') else {
            return Err(self.wrong("owner", value, "USER:GROUP"));
        };
        let unknown = |source| CollectConfigError::Owner { name: self.name.clone(), source };
        Ok((user_id(user).map_err(unknown)?, group_id(group).map_err(unknown)?))
    }

    fn patterns(&self, key: &'static str, usual: &[&str]) -> Result<Vec<String>, CollectConfigError> {
        let Some(value) = self.table.get(key) else {
            return Ok(usual.iter().map(|pattern| (*pattern).to_owned()).collect());
        };
        let wrong = || self.wrong(key, value, "an array of patterns, as in [\"*.part\"]");
        let one_line =
            |pattern: &Value| pattern.as_str().filter(|text| !text.contains('\n')).map(str::to_owned);
        value.as_array().ok_or_else(wrong)?.iter().map(|one| one_line(one).ok_or_else(wrong)).collect()
    }

    fn bytes(&self, key: &'static str) -> Result<Option<u64>, CollectConfigError> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        let parsed = text_of(value).and_then(|text| text.parse::<ByteSize>().ok());
        let parsed = parsed.ok_or_else(|| self.wrong(key, value, "a size, as in \"20G\""))?;
        Ok(Some(parsed.bytes()))
    }

    fn rate(&self) -> Result<Option<Rate>, CollectConfigError> {
        let Some(value) = self.table.get("rate") else { return Ok(None) };
        let parsed = text_of(value).and_then(|text| text.parse().ok());
        parsed.map(Some).ok_or_else(|| self.wrong("rate", value, "a rate of at least 1K, as in \"10M\""))
    }
}

/// A value in an error.
fn shown(value: &Value) -> String {
    match text_of(value) {
        Some(text) => format!("{text:?}"),
        None => format!("of type {}", value.type_str()),
    }
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

impl CollectedOptions {
    /// Fails if the tree has no directory for the entry.
    pub fn check_parent(&self, location: &SourceLocation) -> Result<(), CollectConfigError> {
        let Some((parent, _)) = self.path.split_last() else { return Ok(()) };
        let name = self.name.clone();
        match location.is_directory(&parent) {
            _ if parent.is_root() => Ok(()),
            Ok(true) => Ok(()),
            Ok(false) => Err(CollectConfigError::NoParent { name, parent, tree: location.to_string() }),
            Err(source) => Err(CollectConfigError::Look { name, parent, source }),
        }
    }

    /// Whether the tree has files of its own at the path, which nodes would lose. A symlink, such as one to
    /// the directory of an agent on this machine, is none.
    pub fn has_files(&self, location: &SourceLocation) -> Result<bool, GitError> {
        Ok(match location.look(&self.path)? {
            Found::Directory { is_empty } => !is_empty,
            Found::File => true,
            Found::Symlink | Found::Nothing => false,
        })
    }
}

/// A path below a directory.
pub(super) fn at(tree: &Path, path: &TreePath) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    tree.join(std::ffi::OsStr::from_bytes(path.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<CollectedOptions>, CollectConfigError> {
        parse(&text.parse().expect("TOML"))
    }

    #[test]
    fn a_table_is_read_with_defaults_that_refuse_code() {
        let all = read("[uploads]\npath = 'wp-content/uploads/'\nowner = 'root:0'").expect("a table");
        let [one] = &all[..] else { panic!("{all:?}") };
        assert_eq!((one.path.as_bytes(), one.owner), (&b"wp-content/uploads"[..], (0, 0)));
        let rules = CollectedRules::new(&one.ignore, &one.deny).expect("patterns");
        let ruling =
            |path: &str| rules.ruling(&TreePath::from_bytes(path.as_bytes()).expect("a path"), false);
        for denied in ["a/x.php", "X.PHP", "x.pHp7", "a/.htaccess", ".user.ini", "x.phtml", "x.phar"] {
            assert_eq!(ruling(denied), syncd_shared::collected::Ruling::Denied, "{denied}");
        }
        for ignored in ["a.part", "cache/x.jpg", "a/debug.log"] {
            assert_eq!(ruling(ignored), syncd_shared::collected::Ruling::Ignored, "{ignored}");
        }
        let all = read(
            "[u]\npath = 'a'\nowner = '1:2'\nmax_bytes = '1G'\nnode_max_bytes = 5\npast_max_bytes = '3M'\nconflicts_max_bytes = '1M'\n\
             rate = '10M'\ndeny = []\nignore = ['x']",
        );
        let all = all.expect("a table");
        let bytes = all
            .iter()
            .map(|one| (one.max_bytes, one.node_max_bytes, one.past_max_bytes, one.losers_max_bytes));
        assert_eq!(bytes.collect::<Vec<_>>(), [(1 << 30, Some(5), 3 << 20, 1 << 20)]);
        assert!(all.iter().all(|one| one.rate.is_some() && one.deny.is_empty()));
    }

    #[test]
    fn a_table_that_cannot_work_is_named() {
        let two = "[one]\npath = 'a'\nowner = '0:0'\n[two]\npath = 'a/b'\nowner = '0:0'";
        for (text, expected) in [
            ("[Up]\npath = 'a'\nowner = '0:0'", "[collect.Up]"),
            ("[up]\npth = 'a'\nowner = '0:0'", "unknown key \"pth\""),
            ("[up]\nowner = '0:0'", "needs the key path"),
            ("[up]\npath = 'a'", "needs the key owner"),
            ("[up]\npath = '../a'\nowner = '0:0'", "a path in the tree"),
            ("[up]\npath = '/'\nowner = '0:0'", "a path in the tree"),
            ("[up]\npath = 'a'\nowner = 'nobody-here:0'", "the owner in [collect.up]"),
            ("[up]\npath = 'a'\nowner = '0'", "USER:GROUP"),
            ("[up]\npath = 'a'\nowner = '0:0'\nmax_bytes = 'much'", "a size"),
            ("[up]\npath = 'a'\nowner = '0:0'\nrate = '1'", "a rate"),
            ("[up]\npath = 'a'\nowner = '0:0'\ndeny = ['[a']", "the patterns in [collect.up]"),
            (two, "overlap"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_tree_without_the_parent_or_with_files_is_noticed() {
        let tree = tempfile::tempdir().expect("a directory");
        let location = SourceLocation { tree: tree.path().to_owned(), git: None };
        let has_files = |one: &CollectedOptions| one.has_files(&location).expect("a look");
        let all = read("[up]\npath = 'a/uploads'\nowner = '0:0'").expect("a table");
        let [one] = &all[..] else { panic!("{all:?}") };
        assert!(one.check_parent(&location).is_err() && !has_files(one));
        std::fs::create_dir_all(tree.path().join("a/uploads")).expect("a directory");
        assert!(one.check_parent(&location).is_ok() && !has_files(one));
        std::fs::write(tree.path().join("a/uploads/x"), "1").expect("a file");
        assert!(has_files(one));
        std::fs::rename(tree.path().join("a/uploads"), tree.path().join("elsewhere")).expect("a rename");
        std::os::unix::fs::symlink("../elsewhere", tree.path().join("a/uploads")).expect("a link");
        assert!(!has_files(one), "a link is nothing that nodes serve");
    }
}
