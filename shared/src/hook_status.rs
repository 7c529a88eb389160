//! State of a node's on-activate hook: the `hook` object in the status of both sides, and its wording.
//!
//! A node is *switched* when its tree is linked and durable. It is *live* once its hook, if one is set, has
//! succeeded.

use serde::{Deserialize, Serialize};
use syncd_proto::v1;

use crate::limits::REASON_MAX_BYTES;
use crate::text::one_line;
use crate::wire::WireError;

/// Longest hook duration accepted from a peer: ten years, which every JSON reader can hold.
const DURATION_MAX_MS: u64 = 10 * 366 * 24 * 60 * 60 * 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HookOutcome {
    /// Not started for this generation.
    Due,
    Running,
    /// Succeeded: the generation is live.
    Ok,
    /// Failed; the hook is retried.
    Failed,
}

/// Hook of a node's newest activation. Scripts depend on the field names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookStatus {
    /// Generation that the hook runs for.
    pub generation: u64,
    pub outcome: HookOutcome,
    /// Duration of the last completed run, in milliseconds.
    pub duration_ms: u64,
    /// Failure and end of the error output of the last run: one line, empty after a success.
    pub output: String,
    /// Runs for this generation since the agent started, including the current one.
    pub attempt: u32,
    /// Last generation that the hook succeeded for: a web server may still serve it.
    pub succeeded: Option<u64>,
    /// Announced generation that waits for the hook to succeed before its activation.
    pub waits: Option<u64>,
}

impl HookStatus {
    /// Reads a message. Text is reduced to one line, durations are capped.
    ///
    /// # Errors
    /// The message has no generation, no outcome, or output of more than [`REASON_MAX_BYTES`].
    pub fn from_report(report: &v1::HookReport) -> Result<Self, WireError> {
        let number = |number: u64| (number > 0).then_some(number);
        let outcome = match v1::HookOutcome::try_from(report.outcome) {
            Ok(v1::HookOutcome::Ok) => HookOutcome::Ok,
            Ok(v1::HookOutcome::Failed) => HookOutcome::Failed,
            Ok(v1::HookOutcome::Running) => HookOutcome::Running,
            Ok(v1::HookOutcome::Due) => HookOutcome::Due,
            Ok(v1::HookOutcome::Unspecified) | Err(_) => return Err(WireError::Missing { field: "outcome" }),
        };
        if report.output.len() > REASON_MAX_BYTES {
            let (actual, limit) = (report.output.len() as u64, REASON_MAX_BYTES as u64);
            return Err(WireError::Limit { what: "output of a hook", actual, limit });
        }
        Ok(Self {
            generation: number(report.generation).ok_or(WireError::Missing { field: "generation" })?,
            outcome,
            duration_ms: report.duration_ms.min(DURATION_MAX_MS),
            output: one_line(&report.output, REASON_MAX_BYTES),
            attempt: report.attempt,
            succeeded: number(report.succeeded),
            waits: number(report.waits),
        })
    }

    /// Status right after a switch. `succeeded` is the last generation that the hook is known to have
    /// succeeded for.
    pub fn due(generation: u64, succeeded: Option<u64>) -> Self {
        let (outcome, output) = (HookOutcome::Due, String::new());
        Self { generation, outcome, duration_ms: 0, output, attempt: 0, succeeded, waits: None }
    }

    /// Whether the hook has succeeded for the linked tree.
    pub fn is_live(&self) -> bool {
        self.outcome == HookOutcome::Ok
    }

    /// Whether the last completed run failed. The next one may be running.
    pub fn has_failed(&self) -> bool {
        self.outcome == HookOutcome::Failed || (!self.is_live() && !self.output.is_empty())
    }

    /// Failure text for a reader who knows that it is about the hook; `None` if no failure is known.
    pub fn failure(&self) -> Option<String> {
        let Self { generation, output, .. } = self;
        let text = match self.waits {
            Some(waits) => format!(
                "generation {waits} waits: the on-activate hook of generation {generation} keeps failing: {output}"
            ),
            None => output.clone(),
        };
        self.has_failed().then_some(text)
    }

    /// Description of the problem, naming the hook; `None` if no problem is known.
    pub fn trouble(&self) -> Option<String> {
        let slow = || {
            let generation = self.generation;
            let waits = self.waits?;
            Some(format!(
                "generation {waits} waits: the on-activate hook of generation {generation} has not succeeded yet"
            ))
        };
        self.failure().map(|failure| format!("hook failed: {failure}")).or_else(slow)
    }

    /// One line for a status: outcome, attempt, and the generation that the web server may still serve.
    /// `None` if live.
    pub fn line(&self) -> Option<String> {
        let now = match (self.outcome, self.trouble()) {
            (HookOutcome::Ok, _) => return None,
            (_, Some(trouble)) => trouble,
            (HookOutcome::Running, None) => "hook running".to_owned(),
            (_, None) => "hook due".to_owned(),
        };
        let attempt = if self.attempt > 1 { format!(" (attempt {})", self.attempt) } else { String::new() };
        let still = self.succeeded.filter(|succeeded| *succeeded < self.generation);
        let still = still.map(|n| format!("; the web server may still serve generation {n}"));
        Some(format!("{now}{attempt}{}", still.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcome: v1::HookOutcome) -> v1::HookReport {
        v1::HookReport {
            generation: 42,
            outcome: outcome.into(),
            duration_ms: 12,
            output: String::new(),
            attempt: 1,
            succeeded: 41,
            waits: 0,
        }
    }

    fn failed() -> v1::HookReport {
        v1::HookReport { output: "exit status: 1: AH00526".into(), ..report(v1::HookOutcome::Failed) }
    }

    #[test]
    fn a_failure_stands_until_a_run_succeeds() {
        let of = |report| HookStatus::from_report(&report).unwrap();
        assert_eq!(of(report(v1::HookOutcome::Ok)).line(), None);
        assert_eq!(of(report(v1::HookOutcome::Due)).trouble(), None);
        let line = "hook failed: exit status: 1: AH00526; the web server may still serve generation 41";
        assert_eq!(of(failed()).line().as_deref(), Some(line));
        let again = of(v1::HookReport { outcome: v1::HookOutcome::Running.into(), attempt: 2, ..failed() });
        assert_eq!(again.trouble().as_deref(), Some("hook failed: exit status: 1: AH00526"));
        let waits = of(v1::HookReport { waits: 44, ..failed() });
        assert_eq!(
            waits.trouble().as_deref(),
            Some(
                "hook failed: generation 44 waits: the on-activate hook of generation 42 keeps failing: exit status: 1: \
                 AH00526"
            )
        );
    }

    #[test]
    fn what_a_peer_says_is_bounded_and_on_one_line() {
        let hostile = v1::HookReport { output: "a\nb\x1b[2J".into(), duration_ms: u64::MAX, ..failed() };
        let status = HookStatus::from_report(&hostile).unwrap();
        assert_eq!(status.output, "a\\nb\\u{1b}[2J");
        assert_eq!(status.duration_ms, DURATION_MAX_MS);
        let long = v1::HookReport { output: "x".repeat(REASON_MAX_BYTES + 1), ..failed() };
        assert!(matches!(HookStatus::from_report(&long), Err(WireError::Limit { .. })));
        assert!(HookStatus::from_report(&v1::HookReport { outcome: 9, ..failed() }).is_err());
        assert!(HookStatus::from_report(&v1::HookReport { generation: 0, ..failed() }).is_err());
    }

    #[test]
    fn json_has_the_names_that_scripts_depend_on() {
        let json = serde_json::to_string(&HookStatus::from_report(&failed()).unwrap()).unwrap();
        let expected = r#"{"generation":42,"outcome":"failed","duration_ms":12,"output":"exit status: 1: AH00526","attempt":1,"succeeded":41,"waits":null}"#;
        assert_eq!(json, expected);
    }
}
