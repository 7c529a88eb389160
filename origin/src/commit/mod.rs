//! Turns the current content tree into generations.
//!
//! One owner task ([`Committer::start`]) receives everything that may cause a commit: changes of the source,
//! requests of operators, timers, and generations that agents hold but this origin does not know. It makes
//! the decisions. [`sealer::Sealer`] does the blocking work, one job at a time, on a thread of the blocking
//! pool.
//!
//! ```text
//!   changes ┐  quiet for --settle            ┌─ sealed ──> view, fleet
//!   requests├──> schedule ──> job ──> Sealer ┤
//!   timers ─┤                                ├─ unchanged
//!   observed┘                                └─ held | waiting | failed: the last generation stands
//! ```
//!
//! A crash at any point leaves the previous generation or the new one. The stat walk at the next start finds
//! pending changes again.

mod brought_back;
mod changed_times;
mod closed_tree;
mod collection_gate;
mod distinct;
mod file_changes;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod job;
mod observed;
mod outcome;
mod promotion;
mod rollbacks;
mod scan_base;
mod schedule;
mod sealer;
mod taken_seconds;
mod task;
#[cfg(test)]
mod tests;
mod unrest;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use syncd_shared::identity::SignedTrust;
use syncd_shared::{GenerationNumber, SignedGeneration};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use changed_times::{ChangedTimes, SomeFiles};
pub(crate) use changed_times::{is_indistinct, status_warning};
pub use collection_gate::CollectionGate;
pub use outcome::{CommitError, CommitOptions, Outcome, Preview, RollbackShown};
pub use promotion::Promotion;
pub(crate) use rollbacks::Rollbacks;
pub use rollbacks::{Hold, Return};
pub(crate) use scan_base::forget_damaged;
pub use sealer::{Parts, Sealer};

use crate::store::CheckReport;
use schedule::Schedule;
use task::{Changing, CommitterTask, all_heard};

/// After a start nothing is published automatically until all agents have reported what they hold, or for
/// this long: slightly more than their longest retry pause. An origin that was restored from a backup thus
/// learns of it in time.
const HEARING: Duration = Duration::from_secs(16);

type Reply = oneshot::Sender<Answer>;

/// Reply to an operator's request.
#[derive(Debug)]
pub struct Answer {
    pub result: Result<Outcome, CommitError>,
    /// For a person, one line each.
    pub remarks: Vec<String>,
    /// Report on the times of the sealed generation.
    pub times: ChangedTimes,
}

/// Condition for publishing the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// After it was quiet for `quiet`. A file that keeps changing does not delay the others forever.
    Settle {
        /// `--settle`.
        quiet: Duration,
        /// `--settle-max`: after this much unrest the status names the changing paths. A file that was
        /// written and not closed delays publishing for as long after its last write.
        max: Duration,
        /// `--settle-max-publish`: a file that changes for this long no longer delays the others.
        busy_after: Duration,
    },
    /// Only on request of an operator.
    Manual,
}

/// State of the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The tree equals the current generation, as far as events show.
    Ready,
    /// The tree is being read.
    Scanning,
    /// The tree does not look like a deployment, or a rollback replaced it. The last generation stays in
    /// effect.
    Held,
    /// Waiting for the tree to become quiet, or for an operator.
    Waiting,
    /// No origin serves this data directory.
    Stopped,
    /// Follows what another origin publishes, until it is promoted.
    Standby,
}

/// State of the origin, for `status`.
#[derive(Debug, Clone)]
pub struct OriginView {
    pub state: State,
    /// Reason for being held or waiting, with the next step.
    pub reason: Option<String>,
    pub current: Option<SignedGeneration>,
    /// Hold left by a rollback.
    pub hold: Option<Hold>,
    /// Rollbacks and withdrawals, oldest first.
    pub returns: Arc<[Return]>,
}

/// A request of an operator.
#[derive(Debug)]
pub enum Request {
    /// `syncd-origin commit`.
    Commit {
        options: CommitOptions,
        /// Answered after sealing.
        reply: Reply,
    },
    /// `syncd-origin key take`, and the end of `key sign`.
    TakeTrust {
        document: Box<SignedTrust>,
        /// Answered once its keys are in force.
        reply: Reply,
    },
    /// `syncd-origin rollback`.
    Rollback {
        /// The generation whose tree is published again. Without it, the one before the generation in effect.
        number: Option<GenerationNumber>,
        /// Content of the question before it; `None`: there was no question.
        shown: Option<RollbackShown>,
        /// Answered after sealing.
        reply: Reply,
    },
    /// `syncd-origin diff --pending`.
    Preview {
        /// Answered after scanning.
        reply: Reply,
    },
    /// `syncd-origin check` found damage.
    Mend {
        report: CheckReport,
        /// Answered after the whole tree was read again.
        reply: Reply,
    },
}

/// Handle to the owner task. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Committer {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<OriginView>,
}

impl Committer {
    /// Starts the owner task. It ends after `shutdown` is cancelled and the running job has finished. The
    /// caller must then await the returned task handle.
    pub fn start(
        sealer: Sealer,
        trigger: Trigger,
        observed: mpsc::Receiver<SignedGeneration>,
        shutdown: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (requests, receiver) = mpsc::channel(16);
        let current = sealer.current().cloned();
        let (fleet, rollout) = (sealer.fleet().view(), sealer.fleet().rollout());
        let mut schedule = Schedule::new(trigger, Instant::now());
        if !all_heard(&fleet.borrow()) {
            schedule.hold_back(Instant::now() + HEARING);
        }
        let (hold, returns) = (sealer.hold(), sealer.returns());
        let (view_sender, view) = watch::channel(OriginView {
            state: State::Scanning,
            reason: None,
            current,
            hold,
            returns: returns.clone(),
        });
        let committer = CommitterTask {
            requests: requests.downgrade(),
            sealer: Some(sealer),
            schedule,
            view: view_sender,
            scanning: true,
            trouble: None,
            waits: None,
            hold,
            returns,
            unrest: None,
            changing: Changing::of(trigger),
            rollout,
            withdraw_at: Instant::now(),
            shutdown,
        };
        let task = tokio::spawn(committer.run(receiver, observed, fleet));
        (Self { requests, view }, task)
    }

    /// State of the origin.
    pub fn view(&self) -> watch::Receiver<OriginView> {
        self.view.clone()
    }

    /// Publishes the current tree. Cancel safe: once accepted, the request is carried out.
    pub async fn commit(&self, options: CommitOptions) -> Answer {
        self.ask(|reply| Request::Commit { options, reply }).await
    }

    /// Publishes the tree of an earlier generation as a new one; without a number, of the one before. Does
    /// nothing if it would not do what was `shown`. Cancel safe: once accepted, the request is carried out.
    pub async fn rollback(&self, number: Option<GenerationNumber>, shown: Option<RollbackShown>) -> Answer {
        self.ask(|reply| Request::Rollback { number, shown, reply }).await
    }

    /// Takes a signed trust document. Cancel safe: once accepted, the request is carried out.
    pub async fn take_trust(&self, document: SignedTrust) -> Answer {
        self.ask(|reply| Request::TakeTrust { document: Box::new(document), reply }).await
    }

    /// Scans the current tree and publishes nothing: [`Outcome::Found`]. Cancel safe: once accepted, the
    /// request is carried out.
    pub async fn preview(&self) -> Answer {
        self.ask(|reply| Request::Preview { reply }).await
    }

    /// Stores content again that a check found damaged and the tree still has, reading the whole tree. Cancel
    /// safe: once accepted, the request is carried out.
    pub async fn mend(&self, report: CheckReport) -> Answer {
        self.ask(|reply| Request::Mend { report, reply }).await
    }

    async fn ask(&self, request: impl FnOnce(Reply) -> Request) -> Answer {
        let (reply, answer) = oneshot::channel();
        // If the owner has ended, the reply is dropped with the request.
        let _ = self.requests.send(request(reply)).await;
        answer.await.unwrap_or(Answer {
            result: Err(CommitError::Stopping),
            remarks: Vec::new(),
            times: ChangedTimes::default(),
        })
    }
}
