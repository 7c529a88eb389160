//! Result of a node's own check: the `check` object in the status of both sides, and its wording.
//!
//! A generation is on *trial* from its switch until the check passes. If it fails, the node returns to the
//! last generation that passed there, and refuses the one that failed from then on.

use serde::{Deserialize, Serialize};
use syncd_proto::v1;

use crate::RootHash;
use crate::limits::REASON_MAX_BYTES;
use crate::text::one_line;
use crate::wire::{WireError, root_hash};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckOutcome {
    /// The generation is on trial.
    Running,
    Passed,
    /// The generation failed, and the node refuses it from now on.
    Failed,
    /// The check failed before the switch, on the generation that is live. The new one is not to blame, and
    /// stays staged.
    FailedBefore,
    /// The generation failed, and so did what the node returned to. Without a return: what was live before.
    FailedOnBoth,
}

/// Newest result of a node's check. Scripts depend on the field names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// Generation that was checked.
    pub generation: u64,
    /// Its root.
    pub root: RootHash,
    pub outcome: CheckOutcome,
    /// Generation that the node returned to; `None`: it did not return.
    pub returned_to: Option<u64>,
    /// Failure and last lines of the check: one line, empty after a success.
    pub output: String,
}

impl CheckStatus {
    /// Reads a message. Text is reduced to one line.
    ///
    /// # Errors
    /// The message has no generation, no root, no outcome, or output of more than [`REASON_MAX_BYTES`].
    pub fn from_report(report: &v1::CheckReport) -> Result<Self, WireError> {
        let number = |number: u64| (number > 0).then_some(number);
        let outcome = match v1::CheckOutcome::try_from(report.outcome) {
            Ok(v1::CheckOutcome::Running) => CheckOutcome::Running,
            Ok(v1::CheckOutcome::Passed) => CheckOutcome::Passed,
            Ok(v1::CheckOutcome::Failed) => CheckOutcome::Failed,
            Ok(v1::CheckOutcome::FailedBefore) => CheckOutcome::FailedBefore,
            Ok(v1::CheckOutcome::FailedOnBoth) => CheckOutcome::FailedOnBoth,
            Ok(v1::CheckOutcome::Unspecified) | Err(_) => {
                return Err(WireError::Missing { field: "outcome" });
            }
        };
        if report.output.len() > REASON_MAX_BYTES {
            let (actual, limit) = (report.output.len() as u64, REASON_MAX_BYTES as u64);
            return Err(WireError::Limit { what: "output of a check", actual, limit });
        }
        Ok(Self {
            generation: number(report.generation).ok_or(WireError::Missing { field: "generation" })?,
            root: root_hash(&report.root, "root")?,
            outcome,
            returned_to: number(report.returned_to),
            output: one_line(&report.output, REASON_MAX_BYTES),
        })
    }

    /// The message for the origin.
    pub fn to_report(&self) -> v1::CheckReport {
        let outcome = match self.outcome {
            CheckOutcome::Running => v1::CheckOutcome::Running,
            CheckOutcome::Passed => v1::CheckOutcome::Passed,
            CheckOutcome::Failed => v1::CheckOutcome::Failed,
            CheckOutcome::FailedBefore => v1::CheckOutcome::FailedBefore,
            CheckOutcome::FailedOnBoth => v1::CheckOutcome::FailedOnBoth,
        };
        v1::CheckReport {
            generation: self.generation,
            root: bytes::Bytes::copy_from_slice(self.root.as_bytes()),
            outcome: outcome.into(),
            returned_to: self.returned_to.unwrap_or(0),
            output: self.output.clone(),
        }
    }

    /// One line for a status; `None` if the check passed.
    pub fn line(&self) -> Option<String> {
        let Self { generation, output, .. } = self;
        let returned =
            self.returned_to.map(|to| format!("; returned to generation {to}")).unwrap_or_default();
        match self.outcome {
            CheckOutcome::Passed => None,
            CheckOutcome::Running => Some(format!("generation {generation} is on trial: the check runs")),
            CheckOutcome::Failed => {
                Some(format!("the check failed on generation {generation}{returned}: {output}"))
            }
            CheckOutcome::FailedBefore => Some(format!(
                "not switched: the check fails on generation {generation}, which is live: {output}"
            )),
            CheckOutcome::FailedOnBoth if self.returned_to.is_none() => Some(format!(
                "the check fails on both: on what was live, and on generation {generation}: {output}"
            )),
            CheckOutcome::FailedOnBoth => Some(format!(
                "the check fails on both: on generation {generation}, and after the return{returned}: {output}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> CheckStatus {
        CheckStatus {
            generation: 42,
            root: RootHash::from_bytes([7; 32]),
            outcome: CheckOutcome::Failed,
            returned_to: Some(41),
            output: "exit status: 1: 502 Bad Gateway".into(),
        }
    }

    #[test]
    fn a_report_is_read_as_it_was_sent() {
        for outcome in [
            CheckOutcome::Running,
            CheckOutcome::Passed,
            CheckOutcome::Failed,
            CheckOutcome::FailedBefore,
            CheckOutcome::FailedOnBoth,
        ] {
            let status = CheckStatus { outcome, ..failed() };
            assert_eq!(CheckStatus::from_report(&status.to_report()).unwrap(), status);
        }
        let line =
            "the check failed on generation 42; returned to generation 41: exit status: 1: 502 Bad Gateway";
        assert_eq!(failed().line().as_deref(), Some(line));
    }

    #[test]
    fn what_a_peer_says_is_bounded_and_on_one_line() {
        let report = || failed().to_report();
        let hostile = v1::CheckReport { output: "a\nb\x1b[2J".into(), ..report() };
        assert_eq!(CheckStatus::from_report(&hostile).unwrap().output, "a\\nb\\u{1b}[2J");
        let long = v1::CheckReport { output: "x".repeat(REASON_MAX_BYTES + 1), ..report() };
        assert!(matches!(CheckStatus::from_report(&long), Err(WireError::Limit { .. })));
        assert!(CheckStatus::from_report(&v1::CheckReport { outcome: 9, ..report() }).is_err());
        assert!(CheckStatus::from_report(&v1::CheckReport { generation: 0, ..report() }).is_err());
        assert!(CheckStatus::from_report(&v1::CheckReport { root: vec![1].into(), ..report() }).is_err());
    }
}
