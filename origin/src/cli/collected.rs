//! `syncd-origin collected`, and the tables `[collect.NAME]`.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{ArgGroup, Subcommand};
use syncd_runtime::config_file;
use syncd_shared::time_span::parse_time;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::arguments::Json;
use super::printer::Print;
use crate::admin::protocol::Request;
use crate::admin::{CollectedAction, RestoreWhat};
use crate::collected::{self, CollectedOptions};

pub(super) const HELP: &str = "\
Examples:
  syncd-origin collected list
  syncd-origin collected history uploads 2026/11/photo.jpg
  syncd-origin collected restore uploads --before 2h --from web2
  syncd-origin collected adopt uploads

Collected directories are those that nodes write to. A table [collect.NAME] of the configuration file sets one up.";

const LIST: &str = "\
Examples:
  syncd-origin collected list";
const CONFLICTS: &str = "\
Examples:
  syncd-origin collected conflicts
  syncd-origin collected conflicts uploads --json";
const HISTORY: &str = "\
Examples:
  syncd-origin collected history uploads 2026/11/photo.jpg";
const RESTORE: &str = "\
Examples:
  syncd-origin collected restore uploads 2026/11/photo.jpg --version 17
  syncd-origin collected restore uploads --conflict 3
  syncd-origin collected restore uploads --before 2h --from web2

TIME is a moment, as in 2026-11-30T12:00:00Z, or a number with a unit for the time since then, as in 30m, 2h or 7d.";
const DISMISS: &str = "\
Examples:
  syncd-origin collected dismiss uploads 3
  syncd-origin collected dismiss uploads 3 4 7";
const ADOPT: &str = "\
Examples:
  syncd-origin collected adopt uploads
  syncd-origin collected adopt uploads /srv/old-site/uploads";
const RELEASE: &str = "\
Examples:
  syncd-origin collected release uploads /srv/uploads";

#[derive(Debug, Subcommand)]
pub(super) enum CollectedCommand {
    /// List the collected directories.
    #[command(after_help = LIST)]
    List {
        #[command(flatten)]
        json: Json,
    },
    /// List contents that lost a conflict: another node had changed the file first.
    #[command(after_help = CONFLICTS)]
    Conflicts {
        /// The directory [default: all].
        name: Option<String>,
        #[command(flatten)]
        json: Json,
    },
    /// List the versions of a file.
    #[command(after_help = HISTORY)]
    History {
        /// The directory.
        name: String,
        /// Path of the file in it.
        path: String,
        #[command(flatten)]
        json: Json,
    },
    /// Make older contents current again, on all nodes.
    #[command(after_help = RESTORE, group = ArgGroup::new("what").required(true).args(["version", "conflict", "before"]))]
    Restore {
        /// The directory.
        name: String,
        /// Path in it. With --before, everything below it is restored.
        #[arg(required_unless_present_any = ["conflict", "before"], conflicts_with = "conflict")]
        path: Option<String>,
        /// The version with this number, as `history` lists it.
        #[arg(long, value_name = "N")]
        version: Option<u64>,
        /// The content with this number, as `conflicts` lists it.
        #[arg(long, value_name = "N")]
        conflict: Option<u64>,
        /// The files of this time: 2026-11-30T12:00:00Z, or 2h ago.
        #[arg(long, value_name = "TIME", value_parser = moment)]
        before: Option<u64>,
        /// Only where this node made the current version.
        #[arg(long, value_name = "NODE", requires = "before")]
        from: Option<String>,
    },
    /// Settle conflicts as they stand: give up the contents that lost them.
    #[command(after_help = DISMISS)]
    Dismiss {
        /// The directory.
        name: String,
        /// Numbers, as `conflicts` lists them.
        #[arg(value_name = "N", required = true)]
        conflicts: Vec<u64>,
    },
    /// Take a tree of files into a directory. Nodes get them.
    #[command(after_help = ADOPT)]
    Adopt {
        /// The directory.
        name: String,
        /// The files [default: what the content tree has at the directory's path].
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Write all files of a directory to DIR, which must be empty or missing.
    #[command(after_help = RELEASE)]
    Release {
        /// The directory.
        name: String,
        /// Directory to write to.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

impl CollectedCommand {
    /// The request, and how its answer is printed.
    pub(super) fn request(self) -> anyhow::Result<(Request, Print)> {
        let plain = Print::default();
        let (action, print) = match self {
            Self::List { json } => (CollectedAction::List, Print::of(&json)),
            Self::Conflicts { name, json } => (CollectedAction::Conflicts { name }, Print::of(&json)),
            Self::History { name, path, json } => (CollectedAction::History { name, path }, Print::of(&json)),
            Self::Restore { name, path, version, conflict, before, from } => {
                let what = match (version, conflict, before) {
                    (Some(number), ..) => RestoreWhat::Version { path: path.unwrap_or_default(), number },
                    (_, Some(number), _) => RestoreWhat::Conflict { number },
                    (.., at_ms) => RestoreWhat::Before { path, at_ms: at_ms.unwrap_or(0), node: from },
                };
                (CollectedAction::Restore { name, what }, plain)
            }
            Self::Dismiss { name, conflicts } => (CollectedAction::Dismiss { name, conflicts }, plain),
            Self::Adopt { name, directory } => {
                let directory = directory.map(std::path::absolute).transpose();
                let directory = directory.context("the directory to adopt")?;
                (CollectedAction::Adopt { name, directory }, plain)
            }
            Self::Release { name, directory } => {
                let directory = std::path::absolute(directory).context("the directory to write to")?;
                (CollectedAction::Release { name, directory }, plain)
            }
        };
        Ok((Request::Collected { action }, print))
    }
}

/// Milliseconds since 1970 of a time, or of a span before now.
fn moment(text: &str) -> Result<u64, String> {
    if let Ok(span) = parse_time(text) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        return Ok(u64::try_from(now.saturating_sub(span).as_millis()).unwrap_or(u64::MAX));
    }
    let time = OffsetDateTime::parse(text, &Rfc3339).ok();
    let ms = time.and_then(|time| u64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok());
    ms.ok_or_else(|| "give a time as in 2026-11-30T12:00:00Z, or a span before now as in 2h".to_owned())
}

/// Rejects the option, which only stands for the tables.
pub(super) fn no_option(_: &str) -> Result<String, String> {
    Err("collected directories are tables [collect.NAME] of the configuration file".to_owned())
}

/// The collected directories of the configuration file.
pub(super) fn directories(config: Option<&Path>) -> anyhow::Result<Vec<CollectedOptions>> {
    let tables = config.map(|path| config_file::table(path, "collect")).transpose()?;
    Ok(collected::parse(&tables.unwrap_or_default())?)
}
