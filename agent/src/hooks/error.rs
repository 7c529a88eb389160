//! Reasons why a hook failed.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use syncd_shared::text::error_chain;

use super::HookName;

/// Reason why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The shell could not be started.
    #[error("can't start the {hook} hook")]
    Start {
        /// Name of the hook.
        hook: HookName,
        /// The cause.
        source: io::Error,
    },
    /// The changed paths could not be written.
    #[error("can't list the changed paths for the {hook} hook in {path}")]
    List {
        /// Name of the hook.
        hook: HookName,
        /// Path of the list.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The command ended with another exit code than 0.
    #[error("{hook} hook failed: {}", self.brief())]
    Failed {
        /// Name of the hook.
        hook: HookName,
        /// Exit code or signal.
        status: ExitStatus,
        /// End of the error output.
        output: String,
    },
    /// The command was killed at its time limit.
    #[error("{hook} hook failed: {}", self.brief())]
    TimedOut {
        /// Name of the hook.
        hook: HookName,
        /// The time limit.
        limit: Duration,
        /// End of the error output.
        output: String,
    },
    /// The record of what is due could not be written.
    #[error("can't record in {path} that the {hook} hook is due")]
    Record {
        /// Name of the hook.
        hook: HookName,
        /// Path of the record.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The record of what is due could not be read.
    #[error(
        "can't read {path}, which says what the {hook} hook is due for: remove the file and run the hook's \
         command by hand; the next activation runs it again"
    )]
    Unreadable {
        /// Name of the hook.
        hook: HookName,
        /// Path of the record.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

fn separator(output: &str) -> &'static str {
    if output.is_empty() { "" } else { ": " }
}

impl HookError {
    /// Describes the failure on one line without the hook's name: exit code or signal, and the end of the
    /// error output.
    pub(crate) fn brief(&self) -> String {
        match self {
            Self::Failed { status, output, .. } => format!("{status}{}{output}", separator(output)),
            Self::TimedOut { limit, output, .. } => {
                format!("killed after {} s{}{output}", limit.as_secs(), separator(output))
            }
            other => error_chain(other),
        }
    }
}
