//! Runs the operator's commands around an activation.
//!
//! The commands come from the agent's own command line or configuration, never from the wire. `sh -c` runs
//! each in a process group of its own. At the time limit, everything that the command started is killed
//! ([`processes`]). Both hooks get the changed paths on standard input, one for each line, relative to the
//! tree. In a name, a newline is written as `\n` and a backslash as `\\`; every other byte is unchanged. The
//! environment describes the activation ([`Occasion`]). Other `SYNCD_` variables of the agent are not passed
//! on.
//!
//! | hook | runs | if it fails |
//! | --- | --- | --- |
//! | before | while the old generation is live | the old generation stays |
//! | on | after the switch, until it succeeds | the node is switched, and not live |
//! | after | once the node is live, until it succeeds | it is reported; nothing else follows |
//!
//! *On* and *after* run at least once for every activation ([`DurableHook`]): what is due is written durably
//! to `ROOT/state/on-activate.pending` or `after-activate.pending` before the switch, and removed once the
//! hook has succeeded. A crash in between leaves the file, and the next start runs the hook. Activations
//! whose hook failed are merged: the next run gets the paths of all of them.
//!
//! A node is *live* once *on* has succeeded. Until then a web server may still serve the generation for
//! which the hook last succeeded, or a later one. The trees of these generations are neither recycled nor
//! deleted ([`DurableHook::protected`]), also after a restart, because the record has their lowest number.
//! [`HookState`] describes the hook to the rest of the agent.
//!
//! A web server that caches files by their full path has to forget, in the live slot, what that slot's path
//! showed before. Those paths are in a separate file, `on-activate.slot-paths.N` for generation N, each
//! followed by a NUL. The file is empty if the paths are unknown, which means all of them. *On* finds the
//! file's name in `SYNCD_SLOT_PATHS`.
//!
//! A `pending` file has one line of JSON (the [`Occasion`], and the generation for which the hook last
//! succeeded), then the changed paths in path order, in the format of standard input. A file with the ending
//! `earlier` is the former content of it while an activation is in progress. Standard input is a file, so the
//! paths are never all in memory. An agent that runs without the hook removes its files ([`forget`]).
//! `on-activate.succeeded` has the command with which *on* last succeeded ([`success`]).

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        reason = "the record of what a hook is still to be told, below ROOT/state"
    )
)]

mod durable;
mod error;
mod paths;
mod pending;
mod run;
mod success;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
#[cfg(doc)]
use syncd_runtime::command::processes;
use syncd_shared::{SignedGeneration, TreePath};

use crate::check;

#[cfg(any(test, feature = "testing"))]
pub use self::durable::HookRun;
pub use self::durable::{DurableHook, HookState, RunOutcome};
pub use self::error::HookError;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::paths::write_lines;
#[cfg(feature = "fuzzing")]
pub(crate) use self::pending::{Pending, decode_pending, encode_pending};
pub(crate) use self::pending::{forget, left_due, protected};
pub use self::run::Hook;
pub(crate) use self::success::doubt;

/// Calls a function with every changed path once, in path order.
pub type Paths<'a> = dyn Fn(&mut dyn FnMut(&TreePath)) -> io::Result<()> + 'a;

/// The hooks, named by their options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookName {
    /// `--before-activate`.
    BeforeActivate,
    /// `--on-activate`.
    OnActivate,
    /// `--after-activate`.
    AfterActivate,
    /// `--check`, which runs as hooks do.
    Check,
}

impl HookName {
    /// Default time limit of a hook.
    pub fn limit(self) -> Duration {
        match self {
            Self::BeforeActivate => Duration::from_secs(30),
            Self::OnActivate => Duration::from_secs(5),
            Self::AfterActivate => Duration::from_secs(60),
            Self::Check => check::TIMEOUT,
        }
    }
}

impl fmt::Display for HookName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforeActivate => "before-activate",
            Self::OnActivate => "on-activate",
            Self::AfterActivate => "after-activate",
            Self::Check => "check",
        })
    }
}

/// Changes made by an activation.
pub struct Changed<'a> {
    /// Paths that differ from the live tree.
    pub all: &'a Paths<'a>,
    /// Paths of files and symlinks that differ from what the slot served since the hook last succeeded for
    /// it; none if that is unknown.
    pub slot: &'a Paths<'a>,
    /// Path of the tree once it is live.
    pub tree: &'a Path,
}

/// The activation for which a hook runs. Passed in its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occasion {
    /// `SYNCD_GENERATION`.
    pub generation: u64,
    /// `SYNCD_ROOT_HASH`, hexadecimal. (`SYNCD_ROOT` is ROOT everywhere.)
    pub root: String,
    /// `SYNCD_LABEL`; may be empty.
    pub label: String,
    /// `SYNCD_PREVIOUS`: the generation that was live before; empty if none was.
    pub previous: Option<u64>,
    /// `SYNCD_TREE`: path of the tree, also before the switch.
    pub tree: PathBuf,
    /// `SYNCD_LIVE`: path that the web server reads.
    pub live: PathBuf,
}

impl Occasion {
    /// Describes the activation of `generation`, whose tree is at `tree`.
    pub fn of(generation: &SignedGeneration, previous: Option<u64>, tree: PathBuf, live: PathBuf) -> Self {
        Self {
            generation: generation.number().get(),
            root: generation.root_hash().to_string(),
            label: generation.generation().label.clone(),
            previous,
            tree,
            live,
        }
    }

    /// ROOT.
    fn directory(&self) -> &Path {
        self.live.parent().unwrap_or(Path::new("/"))
    }

    fn environment(&self) -> [(&'static str, OsString); 7] {
        let previous = self.previous.map(|number| number.to_string()).unwrap_or_default();
        [
            ("SYNCD_GENERATION", self.generation.to_string().into()),
            ("SYNCD_ROOT_HASH", self.root.clone().into()),
            ("SYNCD_ROOT", self.directory().into()),
            ("SYNCD_LABEL", self.label.clone().into()),
            ("SYNCD_PREVIOUS", previous.into()),
            ("SYNCD_TREE", self.tree.clone().into_os_string()),
            ("SYNCD_LIVE", self.live.clone().into_os_string()),
        ]
    }
}

#[cfg(test)]
mod tests;
