//! One generation and its changes, and the difference of one file.

use maud::{Markup, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use syncd_shared::{RootEntry, SignedGeneration, TreePath};

use super::Sources;
use super::command::{Commands, command};
use super::difference::difference;
use super::history::change_counts;
use super::text::{bytes, count, time};
use crate::admin::browse::{ChangedPath, Changes, VersionsError};
use crate::admin::offline::{AnswerError, DataDirectory};
use crate::admin::protocol::GenerationLine;

/// Maximum number of changed paths on a page.
const PATHS_MAX: usize = 500;
/// Everything in a path that an address has in another form.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A generation, and the one that it is compared with.
struct Pair {
    to: SignedGeneration,
    /// `None`: the empty tree, or one that is not retained.
    from: Option<SignedGeneration>,
    /// Number of `from`, retained or not.
    parent: Option<u64>,
}

impl Pair {
    /// `None` if the generation is not retained.
    fn read(directory: &DataDirectory, number: u64) -> Result<Option<Self>, AnswerError> {
        let retained = |number| match directory.generation(number) {
            Ok(generation) => Ok(Some(generation)),
            Err(AnswerError::UnknownGeneration { .. } | AnswerError::Future { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let Some(to) = retained(number)? else { return Ok(None) };
        let parent = to.generation().parent.map(|parent| parent.get());
        let from = parent.map(retained).transpose()?.flatten();
        Ok(Some(Self { to, from, parent }))
    }

    /// The tree to compare with; `None` if it is not retained.
    fn root_before(&self) -> Option<RootEntry> {
        match (&self.from, self.parent) {
            (Some(from), _) => Some(from.generation().root),
            (None, None) => Some(RootEntry::empty()),
            (None, Some(_)) => None,
        }
    }
}

/// The page of a generation; `None` if it is not retained. Blocks.
pub fn page(sources: &Sources, number: u64) -> Result<Option<Markup>, AnswerError> {
    let Some(pair) = Pair::read(&sources.directory, number)? else { return Ok(None) };
    let to = pair.to.generation().root;
    let changes = pair.root_before().map(|from| sources.directory.changes_between(&from, &to, PATHS_MAX));
    let commands = Commands::new(&sources.data);
    let current = sources.state.snapshot().origin.current.map(|current| current.number());
    let is_current = current == Some(pair.to.number());
    Ok(Some(html! {
        (about(&pair, is_current, &commands))
        (changed(&pair, changes.transpose()?.as_ref(), &commands))
    }))
}

fn about(pair: &Pair, is_current: bool, commands: &Commands) -> Markup {
    let line = GenerationLine::new(&pair.to, false);
    let number = line.generation.to_string();
    html! {
        section.card aria-labelledby="generation-title" {
            div.headline {
                h1 #generation-title { "Generation " (number) }
                @if !line.label.is_empty() { p.label { (line.label) } }
                @if is_current { span.pill data-state="ready" { "current" } }
            }
            dl.facts {
                div { dt { "Sealed" } dd { (time(&line.created)) } }
                div { dt { "Files" } dd { (count(line.files)) } }
                div { dt { "Content" } dd { (bytes(line.bytes)) } }
                div { dt { "Root" } dd { code title=(line.root) { (line.root.get(..12).unwrap_or(&line.root)) } } }
                @if let Some(parent) = pair.parent {
                    div { dt { "After" } dd { a href={ "/generation/" (parent) } { "generation " (parent) } } }
                }
            }
            @if !is_current {
                dl.orders {
                    dt { "On the origin: publish this tree again" }
                    dd { (command(&commands.origin(&["rollback", &number]))) }
                }
            }
        }
    }
}

fn changed(pair: &Pair, changes: Option<&Changes>, commands: &Commands) -> Markup {
    let number = pair.to.number().get();
    html! {
        section aria-labelledby="changes-title" {
            h2 #changes-title { "Changes" }
            @match (changes, pair.parent) {
                (None, Some(parent)) => p { "Generation " (parent) ", which this one followed, is no longer retained." },
                (None, None) => {},
                (Some(changes), parent) => {
                    p.after {
                        (change_counts(&changes.counts))
                        @if changes.is_cut { " and more, which were not counted" }
                        " "
                        @if let Some(parent) = parent {
                            (command(&commands.origin(&["diff", &parent.to_string(), &number.to_string()])))
                        }
                    }
                    (paths(number, changes))
                },
            }
        }
    }
}

fn paths(number: u64, changes: &Changes) -> Markup {
    let counts = &changes.counts;
    let all = counts.added + counts.changed + counts.removed;
    html! {
        @if !changes.first.is_empty() {
            table.changes {
                thead { tr { th scope="col" { "Path" } th scope="col" { "Change" } th scope="col" { "Size" } } }
                tbody { @for change in &changes.first { (path(number, change)) } }
            }
        }
        @if all > changes.first.len() as u64 {
            p.after { "The first " (count(changes.first.len() as u64)) " of " (count(all)) ". The command lists all." }
        }
    }
}

fn path(number: u64, change: &ChangedPath) -> Markup {
    let ChangedPath { line, path } = change;
    let is_directory = line.kind == "directory";
    let shown = html! { (line.path) @if is_directory { "/" } };
    // A file of other metadata alone has no difference to show.
    let address = path.as_ref().filter(|_| !is_directory && line.change != "metadata");
    html! {
        tr {
            th scope="row" {
                @match address {
                    Some(path) => a href={ "/generation/" (number) "/file/" (utf8_percent_encode(path, ENCODED)) } { (shown) },
                    None => (shown),
                }
                @if let Some(from) = &line.from { p { "was " (from) } }
            }
            td { span.change data-c=(line.change) { (line.change) } @if line.indistinct { " " small { "same second" } } }
            td.number { @if let Some(size) = line.size { (bytes(size)) } }
        }
    }
}

/// The page of a file in a generation, compared with the one before; `None` if neither has it. Blocks.
pub fn file(sources: &Sources, number: u64, path: &str) -> Result<Option<Markup>, VersionsError> {
    let directory = &sources.directory;
    let Ok(path) = TreePath::from_bytes(path.as_bytes()) else { return Ok(None) };
    let Some(pair) = Pair::read(directory, number)? else { return Ok(None) };
    let old = pair.root_before().map(|from| directory.version(&from, &path)).transpose()?.flatten();
    let new = directory.version(&pair.to.generation().root, &path)?;
    let before = match (&pair.from, pair.parent) {
        (None, Some(parent)) => format!("unknown: generation {parent} is no longer retained"),
        _ => "not there".to_owned(),
    };
    if old.is_none() && new.is_none() {
        return Ok(None);
    }
    Ok(Some(html! {
        section aria-labelledby="file-title" {
            p.trail { a href={ "/generation/" (number) } { "Generation " (number) } }
            h1.path #file-title { (path) }
            (difference(old.as_ref(), new.as_ref(), &before))
        }
    }))
}
