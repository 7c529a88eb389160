//! The history: generations newest first, in parts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use maud::{Markup, html};
use syncd_shared::SignedGeneration;

use super::Sources;
use super::command::{Commands, command};
use super::text::{bytes, count, time};
use crate::admin::offline::{AnswerError, DataDirectory};
use crate::admin::protocol::{ChangeCounts, GenerationLine};

/// Generations on one page.
const ROWS: usize = 50;
/// Counts of changes are not taken for more than this time for one page. The next request goes on.
const COUNTING_MAX: Duration = Duration::from_millis(300);
/// Maximum number of kept counts.
const COUNTS_MAX: usize = 4096;

/// Numbers of changes by generation. They never change, and taking them costs reads.
#[derive(Default)]
pub struct Counts {
    kept: Mutex<HashMap<u64, Option<ChangeCounts>>>,
}

impl Counts {
    /// `Some(None)`: the generation before is not retained. `None`: there was no time.
    fn of(
        &self,
        directory: &DataDirectory,
        generation: &SignedGeneration,
        until: Instant,
    ) -> Result<Option<Option<ChangeCounts>>, AnswerError> {
        let number = generation.number().get();
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = kept().get(&number) {
            return Ok(Some(*counts));
        }
        if Instant::now() > until {
            return Ok(None);
        }
        let counts = directory.changes(generation)?;
        let mut kept = kept();
        if kept.len() >= COUNTS_MAX {
            kept.clear();
        }
        // A generation before that is retired later makes no difference to what was counted.
        if counts.is_some() {
            kept.insert(number, counts);
        }
        Ok(Some(counts))
    }
}

/// The part of the history before a generation; `None` if it is empty. Blocks.
pub fn part(sources: &Sources, counts: &Counts, before: Option<u64>) -> Result<Option<Markup>, AnswerError> {
    let found = sources.directory.history_before(before.unwrap_or(u64::MAX), ROWS + 1)?;
    let (rows, is_more) = (found.get(..ROWS).unwrap_or(&found), found.len() > ROWS);
    if rows.is_empty() && before.is_some() {
        return Ok(None);
    }
    let current = sources.state.snapshot().origin.current.map(|current| current.number());
    let until = Instant::now() + COUNTING_MAX;
    let mut lines = Vec::with_capacity(rows.len());
    for generation in rows {
        let counts = counts.of(&sources.directory, generation, until)?;
        lines.push(row(generation, counts, current == Some(generation.number())));
    }
    let oldest = rows.last().filter(|_| is_more).map(|oldest| oldest.number().get());
    Ok(Some(table(&lines, before, oldest, &Commands::new(&sources.data))))
}

fn table(lines: &[Markup], before: Option<u64>, oldest: Option<u64>, commands: &Commands) -> Markup {
    html! {
        section aria-labelledby="history-title" {
            h1 #history-title { "History" }
            p.after { (command(&commands.origin(&["history"]))) }
            @if lines.is_empty() { p { "No generation yet." } } @else {
                table.history {
                    thead { tr {
                        th scope="col" { "Generation" } th scope="col" { "Sealed" } th scope="col" { "Files" }
                        th scope="col" { "Content" } th scope="col" { "Changes" }
                    } }
                    tbody { @for line in lines { (line) } }
                }
            }
        }
        nav.pages aria-label="Parts of the history" {
            @if before.is_some() { a href="/history" { "Newest" } }
            @if let Some(oldest) = oldest { a href={ "/history/before/" (oldest) } rel="next" { "Older" } }
        }
    }
}

fn row(generation: &SignedGeneration, counts: Option<Option<ChangeCounts>>, is_current: bool) -> Markup {
    let line = GenerationLine::new(generation, false);
    html! {
        tr {
            th scope="row" {
                a href={ "/generation/" (line.generation) } { (line.generation) }
                @if is_current { " " span.here { "current" } }
                @if !line.label.is_empty() { " " span.label { (line.label) } }
            }
            td { (time(&line.created)) }
            td.number { (count(line.files)) }
            td.number { (bytes(line.bytes)) }
            td {
                @match counts {
                    Some(Some(counts)) => (change_counts(&counts)),
                    Some(None) => small { "the one before is gone" },
                    None => small { "not counted yet" },
                }
            }
        }
    }
}

/// Counts as `+3 ~1 −2`, in words for a screen reader.
pub fn change_counts(counts: &ChangeCounts) -> Markup {
    let ChangeCounts { added, changed, removed, .. } = *counts;
    let words = format!("{} added, {} changed, {} removed", count(added), count(changed), count(removed));
    html! {
        span.counts aria-hidden="true" title=(words) {
            @if added + changed + removed == 0 { "none" }
            @if added > 0 { ins { "+" (count(added)) } " " }
            @if changed > 0 { b { "~" (count(changed)) } " " }
            @if removed > 0 { del { "−" (count(removed)) } }
        }
        span.quiet { (words) }
    }
}
