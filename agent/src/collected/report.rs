//! The state of collected directories, for `syncd-agent status`.

use std::fmt;

use serde::{Deserialize, Serialize};
use syncd_shared::text::counted;

/// State of all collected directories of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedReport {
    /// Their names.
    pub directories: Vec<String>,
    /// Whether the stream to the origin is up.
    pub connected: bool,
    /// Paths that may have to be sent or placed.
    pub waiting: u64,
    /// Files that the rules or the quota of a directory refuse. They stay on this node.
    pub refused: u64,
    /// One of them, with the reason.
    pub first_refused: Option<String>,
    /// Files of visitors in ROOT/collected/.incoming, which another file replaced at the same moment.
    pub kept_aside: u64,
    /// The last error, until it works again.
    pub error: Option<String>,
}

impl fmt::Display for CollectedReport {
    /// Writes one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.directories.join(", "))?;
        if !self.connected {
            write!(f, ", waiting for the origin")?;
        }
        if self.waiting > 0 {
            write!(f, ", {} to look at", counted(self.waiting, "path", "paths"))?;
        }
        if let Some(first) = &self.first_refused {
            write!(f, ", {} (such as {first})", counted(self.refused, "refused file", "refused files"))?;
        }
        if self.kept_aside > 0 {
            write!(f, ", {} kept in collected/.incoming", counted(self.kept_aside, "file", "files"))?;
        }
        match &self.error {
            Some(error) => write!(f, "   {error}"),
            None => Ok(()),
        }
    }
}
