//! One run of a hook: its command, its standard input, and its environment.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek};
use std::path::{Path, PathBuf};
use std::time::Duration;

use syncd_runtime::command::{Ended, ShellCommand};
use tokio_util::sync::CancellationToken;

use super::error::HookError;
use super::{HookName, Occasion, Paths};
use crate::hooks::paths::write_lines;

/// Temporary file with the paths for the hook before an activation.
const CHANGED: &str = "before-activate.paths";

/// One hook with its command.
#[derive(Debug, Clone)]
pub struct Hook {
    pub(super) name: HookName,
    pub(super) command: String,
    pub(super) timeout: Duration,
    /// `ROOT/state`.
    pub(super) state: PathBuf,
}

impl Hook {
    /// Creates a hook whose `command` is given to `sh -c`. `state` is `ROOT/state`.
    pub fn new(name: HookName, command: String, timeout: Duration, state: &Path) -> Self {
        Self { name, command, timeout, state: state.to_path_buf() }
    }

    /// Runs the hook and waits for it. Blocks until the time limit at most.
    pub fn run(&self, occasion: &Occasion, paths: &Paths<'_>) -> Result<(), HookError> {
        let path = self.state.join(CHANGED);
        let listed = || {
            let mut out = BufWriter::new(
                File::options().read(true).write(true).create(true).truncate(true).open(&path)?,
            );
            // The file stays until the last process closes it.
            fs::remove_file(&path)?;
            write_lines(&mut out, paths, None)?;
            let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.rewind()?;
            Ok(file)
        };
        let hook = self.name;
        let input = listed().map_err(|source| HookError::List { hook, path: path.clone(), source })?;
        self.run_with_input(occasion, input, None, &CancellationToken::new())
    }

    /// Runs the command as the node's check. Blocks until the time limit at most. `stop` kills it early.
    pub(crate) fn check(
        &self,
        occasion: &Occasion,
        phase: &str,
        stop: &CancellationToken,
    ) -> Result<(), HookError> {
        let hook = self.name;
        let input = File::open("/dev/null").map_err(|source| HookError::Start { hook, source })?;
        self.run_with_input(occasion, input, Some(("SYNCD_PHASE", phase.as_ref())), stop)
    }

    /// Reads `input` from its current position. `more`: another variable of its environment.
    pub(super) fn run_with_input(
        &self,
        occasion: &Occasion,
        input: File,
        more: Option<(&str, &Path)>,
        stop: &CancellationToken,
    ) -> Result<(), HookError> {
        let hook = self.name;
        let mut environment = Vec::from(occasion.environment());
        environment.extend(more.map(|(name, value)| (name, value.into())));
        let (limit, stop) = (self.timeout, stop.clone());
        let run = ShellCommand { command: &self.command, environment, input, limit, stop };
        match run.run().map_err(|source| HookError::Start { hook, source })? {
            Ended::Succeeded => Ok(()),
            Ended::Failed { status, output } => Err(HookError::Failed { hook, status, output }),
            Ended::Killed { output } => Err(HookError::TimedOut { hook, limit, output }),
        }
    }
}
