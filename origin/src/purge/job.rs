//! One purge: the runs of the operator's command, with what it gets.

use std::time::Duration;

use syncd_runtime::command::{Ended, ShellCommand, input_of};
use syncd_shared::RootEntry;
use syncd_shared::text::{counted, error_chain};
use tokio_util::sync::CancellationToken;

use super::PurgeError;
use super::lines::{Lines, lines};
use super::machine::{From, Target, Work};
use crate::store::Store;
use crate::tree_objects::TreeObjects;

/// Time limit of one run of the command.
const LIMIT: Duration = Duration::from_secs(60);

/// A purge with what its command gets.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) work: Work,
    lines: Lines,
    /// Batches that the command has taken already.
    taken: usize,
}

impl Job {
    /// Compares the trees. Blocks.
    pub(super) fn new(work: Work, store: &Store, sites: &[String]) -> Self {
        Self { lines: lines_for(store, &work, sites), work, taken: 0 }
    }

    /// Runs the command for every batch that it has not taken. Blocks.
    pub(super) fn run(&mut self, command: &str, stop: &CancellationToken) -> Result<(), PurgeError> {
        let Lines::Batches(batches) = &self.lines else {
            return run_once(command, &self.work.target, "all", b"", stop);
        };
        for batch in batches.iter().skip(self.taken) {
            run_once(command, &self.work.target, "changed", batch, stop)?;
            self.taken = self.taken.saturating_add(1);
        }
        Ok(())
    }

    /// For the log.
    pub(super) fn summary(&self) -> String {
        match &self.lines {
            Lines::Everything => "everything".to_owned(),
            Lines::Batches(batches) => {
                let lines = batches.iter().flatten().filter(|byte| **byte == b'\n').count();
                counted(lines as u64, "line", "lines")
            }
        }
    }
}

fn run_once(
    command: &str,
    target: &Target,
    kind: &str,
    lines: &[u8],
    stop: &CancellationToken,
) -> Result<(), PurgeError> {
    let environment = vec![
        ("SYNCD_PURGE", kind.into()),
        ("SYNCD_GENERATION", target.number.to_string().into()),
        ("SYNCD_ROOT_HASH", target.root.to_string().into()),
    ];
    let input = input_of(lines).map_err(PurgeError::Start)?;
    let run = ShellCommand { command, environment, input, limit: LIMIT, stop: stop.clone() };
    match run.run().map_err(PurgeError::Start)? {
        Ended::Succeeded => Ok(()),
        Ended::Failed { status, output } if output.is_empty() => Err(PurgeError::Command(status.to_string())),
        Ended::Failed { status, output } => Err(PurgeError::Command(format!("{status}: {output}"))),
        Ended::Killed { .. } if stop.is_cancelled() => Err(PurgeError::Interrupted),
        Ended::Killed { output } => {
            Err(PurgeError::Command(format!("killed after {} s: {output}", LIMIT.as_secs())))
        }
    }
}

/// If a tree can't be compared any more, everything is purged.
fn lines_for(store: &Store, work: &Work, sites: &[String]) -> Lines {
    let From::Trees(trees) = &work.from else { return Lines::Everything };
    let compared = || -> Result<Option<Lines>, Box<dyn std::error::Error + Send + Sync>> {
        let trees =
            trees.iter().map(|root| store.root(root)).collect::<Result<Option<Vec<RootEntry>>, _>>()?;
        let (Some(trees), Some(newest)) = (trees, store.root(&work.target.root)?) else { return Ok(None) };
        Ok(Some(lines(&TreeObjects::Store(store), &trees, &newest, sites)?))
    };
    match compared() {
        Ok(lines) => lines.unwrap_or(Lines::Everything),
        Err(error) => {
            tracing::warn!(error = error_chain(&*error), "the changes to purge can't be read: all is purged");
            Lines::Everything
        }
    }
}
