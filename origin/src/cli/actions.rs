//! Arguments of single commands, and the requests that they become.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use syncd_shared::time_span::parse_time;

use super::arguments::{Data, Json, generation_number, label};
use super::help;
use super::printer::Print;
use crate::admin::RolloutAction;
use crate::admin::protocol::{Request, Wait};
use crate::publish::PublishAction;

#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// Wait until the generation is live on every connected agent, hook included, for at most TIME [default
    /// TIME: 60s]. Exits with 3 if some agent is not live by then.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "60s", value_parser = parse_time)]
    pub(super) wait: Option<Duration>,
    /// Exit with 3 also if an enrolled agent is unreachable.
    #[arg(long, requires = "wait")]
    pub(super) require_all: bool,
}

impl WaitArgs {
    pub(super) fn request(&self) -> Option<Wait> {
        let wait = self.wait?;
        Some(Wait {
            timeout_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            require_all: self.require_all,
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct CommitArgs {
    #[command(flatten)]
    pub(super) data: Data,
    /// Label of the generation: one line of text.
    #[arg(short = 'm', long = "label", default_value = "", hide_default_value = true, value_name = "LABEL", value_parser = label)]
    pub(super) label: String,
    #[command(flatten)]
    pub(super) wait: WaitArgs,
    /// Publish even if the tree became empty, lost more than half of its entries (if it had at least 20)
    /// or of its bytes (if it had at least 20 files), or lost a mount.
    #[arg(long)]
    pub(super) allow_mass_deletion: bool,
    /// Read every file, even if its times are unchanged. Finds changes that cause no event, such as
    /// writes through a memory map. Takes as long as reading the whole tree.
    #[arg(long)]
    pub(super) rescan: bool,
    /// Policy by which the generation goes to the nodes: `each`, `together`, or a table `[rollout.NAME]`
    /// of the origin's configuration file [default: that of `serve`]. Ends a rollout that is running.
    #[arg(long, value_name = "POLICY")]
    pub(super) rollout: Option<String>,
    /// Give the generation to all nodes at once, without steps and checks. Ends a rollout that is
    /// running.
    #[arg(long, conflicts_with = "rollout")]
    pub(super) now: bool,
    /// Publish nothing: list what a commit would change, with the sum, and say whether it would be
    /// refused.
    #[arg(long, conflicts_with_all = ["wait", "rollout", "now", "rescan", "label", "events", "summary"])]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) report: Report,
    #[command(flatten)]
    pub(super) json: Json,
}

#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    #[command(flatten)]
    pub(super) data: Data,
    /// Generation whose tree is published again [default: the one before the generation in effect that
    /// was released and not rolled back].
    #[arg(value_parser = generation_number)]
    pub(super) generation: Option<u64>,
    /// Do not ask on a terminal.
    #[arg(long)]
    pub(super) yes: bool,
    #[command(flatten)]
    pub(super) wait: WaitArgs,
    #[command(flatten)]
    pub(super) json: Json,
}

/// Reports of a commit for the steps of a pipeline.
#[derive(Debug, Args)]
pub(super) struct Report {
    /// Print each event as a line of JSON when it happens: the generation, each node, and the end.
    #[arg(long, conflicts_with = "json")]
    pub(super) events: bool,
    /// File to which a report in Markdown is appended.
    #[arg(long, value_name = "FILE")]
    pub(super) summary: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    #[command(flatten)]
    pub(super) data: Data,
    /// Name of the node.
    pub(super) node: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum RolloutCommand {
    /// Show the newest rollout, with its nodes.
    #[command(after_help = help::ROLLOUT_STATUS)]
    Status {
        #[command(flatten)]
        json: Json,
    },
    /// Flip no further nodes until `resume`. Times do not run meanwhile.
    #[command(after_help = help::ROLLOUT_PAUSE)]
    Pause,
    /// Continue a paused rollout.
    #[command(after_help = help::ROLLOUT_RESUME)]
    Resume,
    /// End the hold, and begin the next step.
    #[command(after_help = help::ROLLOUT_ADVANCE)]
    Advance,
    /// End the rollout: the tree of before is published again, and nothing automatically until `commit`.
    #[command(after_help = help::ROLLOUT_ABORT)]
    Abort,
}

impl TokenAction {
    /// The request, and how its answer is printed.
    pub(super) fn request(self) -> (Request, Print) {
        match self {
            Self::List { json } => (Request::Tokens, Print::of(&json)),
            Self::Revoke { id } => (Request::RevokeToken { id }, Print::default()),
        }
    }
}

impl RolloutCommand {
    /// The request, and how its answer is printed.
    pub(super) fn request(&self) -> (Request, Print) {
        let (action, print) = match self {
            Self::Status { json } => (RolloutAction::Status, Print::of(json)),
            Self::Pause => (RolloutAction::Pause, Print::default()),
            Self::Resume => (RolloutAction::Resume, Print::default()),
            Self::Advance => (RolloutAction::Advance, Print::default()),
            Self::Abort => (RolloutAction::Abort, Print::default()),
        };
        (Request::Rollout { action }, print)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum PublishCommand {
    /// Show the generation that followers get, and what keeps a later one from them.
    #[command(after_help = help::PUBLISH_STATUS)]
    Status {
        #[command(flatten)]
        json: Json,
    },
    /// Read and verify everything that followers may read, and put damaged objects again.
    #[command(after_help = help::PUBLISH_CHECK)]
    Check,
    /// Delete what followers no longer need. The first run lists it, and a run after the grace deletes it.
    #[command(after_help = help::PUBLISH_GC)]
    Gc {
        /// Time between the two runs, which must be longer than the slowest transfer of a follower.
        #[arg(long, default_value = "1h", value_name = "TIME", value_parser = parse_time)]
        grace: Duration,
        /// Number of newest generations to keep.
        #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep: u32,
    },
}

impl PublishCommand {
    /// The request, and how its answer is printed.
    pub(super) fn request(&self) -> (Request, Print) {
        let (action, print) = match self {
            Self::Status { json } => (PublishAction::Status, Print::of(json)),
            Self::Check => (PublishAction::Check, Print::default()),
            Self::Gc { grace, keep } => {
                let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                let keep = usize::try_from(*keep).unwrap_or(usize::MAX);
                (PublishAction::Gc { grace_ms, keep }, Print::default())
            }
        };
        (Request::Publish { action }, print)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenAction {
    /// List the valid tokens, without their secrets.
    #[command(after_help = help::TOKEN_LIST)]
    List {
        #[command(flatten)]
        json: Json,
    },
    /// Make a token invalid.
    #[command(after_help = help::TOKEN_REVOKE)]
    Revoke {
        /// ID of the token, as shown by `token list`, or the start of the ID.
        id: String,
    },
}
