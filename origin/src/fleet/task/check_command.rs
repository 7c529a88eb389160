//! Runs the check of a policy: a command for `sh -c`, with the rollout in its environment. Its standard input
//! has the names of the switched nodes, one a line. Some thousands would be too long for a variable.

use std::time::Duration;

use syncd_runtime::command::{Ended, ShellCommand, input_of};
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::one_line;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::fleet::rollout::machine::{Phase, Rollout};
use crate::fleet::rollout::participants::Node;

const LIMIT: Duration = Duration::from_secs(30);

/// Result of a run.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) passed: bool,
    /// Failure and last lines: one line.
    pub(super) output: String,
}

impl Verdict {
    fn interrupted() -> Self {
        Self { passed: false, output: "the check was interrupted".to_owned() }
    }
}

/// A check that is to run.
pub(super) struct CheckCommand {
    command: String,
    environment: Vec<(&'static str, String)>,
    /// Standard input.
    switched: String,
    limit: Duration,
}

/// Run of a check, for a generation in a phase. Dropping it kills everything that the check has started.
pub(super) struct CheckRun {
    pub(super) number: u64,
    pub(super) phase: Phase,
    run: JoinHandle<Verdict>,
    _stop: DropGuard,
}

impl CheckRun {
    /// Starts the check. It is also killed when `shutdown` is cancelled.
    pub(super) fn start(command: CheckCommand, of: (u64, Phase), shutdown: &CancellationToken) -> Self {
        let stop = shutdown.child_token();
        let killed = stop.clone();
        let run = tokio::task::spawn_blocking(move || command.run(killed));
        Self { number: of.0, phase: of.1, run, _stop: stop.drop_guard() }
    }

    /// Waits for the end. Cancel safe.
    pub(super) async fn ended(&mut self) -> Verdict {
        (&mut self.run).await.unwrap_or_else(|_| Verdict::interrupted())
    }
}

impl CheckCommand {
    pub(super) fn new(command: String, rollout: &Rollout, nodes: &[Node<'_>]) -> Self {
        let switched = nodes.iter().filter(|node| node.linked == Some(rollout.target)).map(|node| node.name);
        let switched: String = switched.flat_map(|name| [name, "\n"]).collect();
        let phase = if rollout.phase == Phase::Holding { "hold" } else { "before" };
        let environment = vec![
            ("SYNCD_GENERATION", rollout.target.number.to_string()),
            ("SYNCD_ROOT_HASH", rollout.target.root.to_string()),
            ("SYNCD_FROM", rollout.base.number.to_string()),
            ("SYNCD_ROLLOUT", rollout.policy.name.clone()),
            ("SYNCD_PHASE", phase.to_owned()),
            ("SYNCD_STEP", rollout.step.saturating_add(1).to_string()),
            ("SYNCD_STEPS", rollout.policy.steps.len().to_string()),
        ];
        Self { command, environment, switched, limit: LIMIT }
    }

    /// Blocks until the command has ended, or was killed.
    fn run(self, stop: CancellationToken) -> Verdict {
        let limit = self.limit;
        let environment = self.environment.iter().map(|(name, value)| (*name, value.into())).collect();
        let run = |input| ShellCommand { command: &self.command, environment, input, limit, stop }.run();
        let failure = match input_of(self.switched.as_bytes()).and_then(run) {
            Ok(Ended::Succeeded) => return Verdict { passed: true, output: String::new() },
            Ok(Ended::Failed { status, output }) => (status.to_string(), output),
            Ok(Ended::Killed { output }) => (format!("killed after {} s", limit.as_secs()), output),
            Err(error) => ("can't start the check".to_owned(), error.to_string()),
        };
        let output = match failure {
            (failure, output) if output.is_empty() => failure,
            (failure, output) => format!("{failure}: {output}"),
        };
        Verdict { passed: false, output: one_line(&output, REASON_MAX_BYTES) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn check(command: String, switched: &str) -> CheckCommand {
        CheckCommand { command, environment: Vec::new(), switched: switched.to_owned(), limit: LIMIT * 10 }
    }

    #[test]
    fn all_names_of_a_large_fleet_are_on_standard_input() {
        let names: String = (0..10_000).map(|node| format!("{node:063}\n")).collect();
        let command = "[ $(sort -u | wc -l) = 10000 ]".to_owned();
        let verdict = check(command, &names).run(CancellationToken::new());
        assert!(verdict.passed, "{}", verdict.output);
    }

    #[tokio::test]
    async fn a_check_that_is_given_up_is_killed_with_what_it_started() {
        let scratch = tempfile::tempdir().unwrap();
        let pid = scratch.path().join("pid");
        let command = format!("setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; sleep 1000'", pid.display());
        let check = CheckCommand { limit: Duration::from_secs(1000), ..check(command, "") };
        let run = CheckRun::start(check, (1, Phase::Staging), &CancellationToken::new());
        let begun = until(|| fs::read_to_string(&pid).ok()).await;
        drop(run);
        let stat = format!("/proc/{}/stat", begun.trim());
        until(|| fs::read_to_string(&stat).map_or(Some(()), |stat| stat.contains(") Z ").then_some(())))
            .await;
    }

    async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
        for _ in 0..60_000 {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("waited for two minutes");
    }
}
