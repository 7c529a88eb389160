//! The jobs that the owner task gives to the sealer, one at a time.

use std::time::Instant;

use syncd_shared::{SignedGeneration, TreePath};
use tokio::sync::mpsc;

use super::outcome::{CommitError, Outcome};
use super::sealer::Sealer;
use super::{Reply, Request};
use crate::fleet::rollout::view::Withdrawal;
use crate::scan::ScanError;

/// A job for the sealer.
pub(super) enum Job {
    /// Scan the tree except for busy files; publish nothing.
    Scan(Vec<TreePath>),
    /// Scan the tree except for busy files, and publish it if it differs.
    Publish(Vec<TreePath>),
    /// An operator's request.
    Request(Request),
    /// Handle a generation of this origin that an agent holds and the store does not have.
    Observed(Box<SignedGeneration>),
    /// Publish the base of a failed rollout again.
    Withdraw(Box<Withdrawal>),
    /// Apply retention and collect garbage, until a request waits.
    Collect(mpsc::WeakSender<Request>),
}

impl Job {
    /// Whether the job scans changes, so that its success clears errors about the tree.
    pub(super) fn scans(&self) -> bool {
        let request = matches!(self, Self::Request(Request::Rollback { .. } | Request::TakeTrust { .. }));
        !request && !matches!(self, Self::Collect(_) | Self::Withdraw(_))
    }

    /// Runs the job. Blocks.
    pub(super) fn run(self, sealer: &mut Sealer) -> (Result<Outcome, CommitError>, Option<Reply>) {
        let (result, reply) = match self {
            Self::Scan(busy) => (sealer.withhold(&busy).and_then(|()| sealer.scan()), None),
            Self::Publish(busy) => (sealer.withhold(&busy).and_then(|()| sealer.publish()), None),
            Self::Observed(generation) => (sealer.observe(*generation), None),
            Self::Withdraw(withdrawal) => (sealer.withdraw(&withdrawal), None),
            Self::Collect(requests) => (sealer.collect_garbage(&|| is_used(&requests)), None),
            Self::Request(Request::Commit { options, reply }) => (sealer.commit(options), Some(reply)),
            Self::Request(Request::Rollback { number, shown, reply }) => {
                let confirmed = shown.map_or(Ok(()), |shown| sealer.confirm(&shown));
                (confirmed.and_then(|()| sealer.rollback(number)), Some(reply))
            }
            Self::Request(Request::TakeTrust { document, reply }) => {
                (sealer.take_trust(&document), Some(reply))
            }
            Self::Request(Request::Preview { reply }) => (sealer.preview(), Some(reply)),
            Self::Request(Request::Mend { report, reply }) => (sealer.mend(&report), Some(reply)),
        };
        let result = result.map_err(|error| match error {
            CommitError::Scan(ScanError::Cancelled) => CommitError::Stopping,
            other => other,
        });
        (result, reply)
    }
}

/// Result of a job.
pub(super) struct Done {
    pub(super) sealer: Sealer,
    pub(super) result: Result<Outcome, CommitError>,
    pub(super) reply: Option<Reply>,
    pub(super) scans: bool,
    pub(super) started: Instant,
}

/// Whether something waits in a queue.
fn is_used<T>(queue: &mpsc::WeakSender<T>) -> bool {
    queue.upgrade().is_some_and(|queue| queue.capacity() < queue.max_capacity())
}
