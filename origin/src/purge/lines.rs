//! The lines that a purge's command reads: changed paths, or the URLs that show them.

use std::collections::BTreeSet;

use syncd_shared::diff::{Comparison, DiffError, DirectorySource, PartLimits};
use syncd_shared::{RootEntry, TreePath};

/// Lines beyond this many are replaced by a purge of everything.
const LINES_MAX: usize = 10_000;
/// Lines for one run of the command.
const BATCH: usize = 500;

/// Input of the runs of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lines {
    Everything,
    /// The input of each run.
    Batches(Vec<Vec<u8>>),
}

/// Compares each of the trees with the newest one. `sites`: bases of URLs, without a slash at the end.
/// Without any, the lines are paths.
pub(super) fn lines<S: DirectorySource>(
    source: &S,
    trees: &[RootEntry],
    newest: &RootEntry,
    sites: &[String],
) -> Result<Lines, DiffError<S::Error>> {
    let mut found = BTreeSet::new();
    for tree in trees {
        let comparison = Comparison::of(source, tree, newest, PartLimits::default())?;
        comparison.each_leaf(|path| {
            if found.len() <= LINES_MAX {
                found.extend(lines_of(path, sites));
            }
        })?;
    }
    if found.len() > LINES_MAX {
        return Ok(Lines::Everything);
    }
    let found: Vec<Vec<u8>> = found.into_iter().collect();
    Ok(Lines::Batches(found.chunks(BATCH).map(<[Vec<u8>]>::concat).collect()))
}

fn lines_of(path: &TreePath, sites: &[String]) -> Vec<Vec<u8>> {
    if sites.is_empty() {
        let mut line = path.as_bytes().iter().fold(Vec::new(), |mut line, byte| {
            match byte {
                b'\n' => line.extend(b"\\n"),
                b'\\' => line.extend(b"\\\\"),
                byte => line.push(*byte),
            }
            line
        });
        line.push(b'\n');
        return vec![line];
    }
    let urls = urls(path.as_bytes());
    let with = |site: &String| {
        urls.iter().map(move |url| format!("{site}/{url}\n").into_bytes()).collect::<Vec<_>>()
    };
    sites.iter().flat_map(with).collect()
}

/// URLs that show a file, without the slash at their beginning: an index file is shown by its directory, too.
fn urls(path: &[u8]) -> Vec<String> {
    let name_at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash.saturating_add(1));
    let (directory, name) = path.split_at(name_at);
    let mut urls = vec![encoded(path)];
    if name.starts_with(b"index.") {
        urls.push(encoded(directory));
    }
    urls
}

/// Percent-encoded as browsers send paths.
fn encoded(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => out.push(char::from(*byte)),
            byte if b"-._~!$&'()*+,;=:@/".contains(byte) => out.push(char::from(*byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(path: &[u8], sites: &[&str]) -> Vec<String> {
        let sites: Vec<String> = sites.iter().map(|&site| site.to_owned()).collect();
        let path = TreePath::from_bytes(path).unwrap();
        lines_of(&path, &sites).into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
    }

    #[test]
    fn paths_are_written_as_for_hooks() {
        assert_eq!(texts(b"a\nb\\c.html", &[]), ["a\\nb\\\\c.html\n"]);
    }

    #[test]
    fn urls_are_encoded_for_each_site_and_an_index_is_its_directory_too() {
        let sites = ["https://a.example", "https://b.example/sub"];
        assert_eq!(
            texts(b"x/index.html", &sites),
            [
                "https://a.example/x/index.html\n",
                "https://a.example/x/\n",
                "https://b.example/sub/x/index.html\n",
                "https://b.example/sub/x/\n",
            ]
        );
        assert_eq!(texts(b"index.html", &["https://a.example"])[1], "https://a.example/\n");
        assert_eq!(
            texts(b"a b?\xff(1).js", &["https://a.example"]),
            ["https://a.example/a%20b%3F%FF(1).js\n"]
        );
    }
}
