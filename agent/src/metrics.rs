//! Metrics of a node: gauges are read from the status when somebody asks; counters and histograms come from
//! changes of the status, followed by [`Observed`]. docs/guide/monitoring.md lists the names.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use syncd_runtime::metrics::{Value, Values, durations, seconds};
use syncd_shared::{AgentState, CheckOutcome, CheckStatus, HookOutcome, SignedGeneration};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::collected::CollectedReport;
use crate::http::readiness;
use crate::status::AgentStatus;

/// One label and its value.
type Label = [(&'static str, &'static str); 1];

/// The state that gauges are read from.
#[derive(Clone)]
pub struct Sources {
    /// Collected directories; `None`: there are none.
    pub collected: watch::Receiver<Option<CollectedReport>>,
    pub status: watch::Receiver<AgentStatus>,
    pub live: watch::Receiver<Option<SignedGeneration>>,
    pub observed: Arc<Observed>,
    /// ROOT.
    pub root: PathBuf,
    pub certificate_end: Arc<dyn Fn() -> OffsetDateTime + Send + Sync>,
}

/// Counters and histograms of one agent.
#[derive(Debug)]
pub struct Observed {
    sync: Histogram,
    hook: Histogram,
    failures: Counter,
    forks: Counter,
    checks: Family<Label, Counter>,
    changed_locally: Counter,
}

impl Default for Observed {
    fn default() -> Self {
        let (failures, forks, changed_locally) = Default::default();
        let checks = Family::default();
        // A series that begins at 0 shows its first event as an increase.
        for result in RESULTS.iter().filter_map(|outcome| result(*outcome)) {
            drop(Family::<Label, Counter>::get_or_create(&checks, &[("result", result)]));
        }
        Self { sync: durations(), hook: durations(), failures, forks, checks, changed_locally }
    }
}

impl Observed {
    /// Follows the status until `stop`.
    pub async fn follow(self: Arc<Self>, mut status: watch::Receiver<AgentStatus>, stop: CancellationToken) {
        let mut before = status.borrow_and_update().clone();
        let mut began = None;
        while let Some(Ok(())) = stop.run_until_cancelled(status.changed()).await {
            let now = status.borrow_and_update().clone();
            self.note(&before, &now, &mut began, Instant::now());
            before = now;
        }
    }

    /// Counts what has changed. `began`: when the update under way began.
    fn note(&self, before: &AgentStatus, now: &AgentStatus, began: &mut Option<Instant>, at: Instant) {
        if matches!(now.state, AgentState::Fetching | AgentState::Staging) {
            began.get_or_insert(at);
        }
        if now.generation != before.generation
            && let Some(began) = began.take()
        {
            self.sync.observe(at.saturating_duration_since(began).as_secs_f64());
        }
        if now.error.is_some() && now.error != before.error {
            self.failures.inc();
        }
        if now.fork.is_some() && now.fork != before.fork {
            self.forks.inc();
        }
        if let Some(check) = now.check.as_ref().filter(|check| before.check.as_ref() != Some(check))
            && let Some(result) = result(check.outcome)
        {
            self.checks.get_or_create(&[("result", result)]).inc();
        }
        let drift = |status: &AgentStatus| status.drift.as_ref().map(|drift| (drift.generation, drift.paths));
        if let Some((_, paths)) = drift(now).filter(|_| drift(now) != drift(before)) {
            self.changed_locally.inc_by(paths);
        }
        if let Some(hook) = now.hook.as_ref().filter(|hook| before.hook.as_ref() != Some(hook))
            && matches!(hook.outcome, HookOutcome::Ok | HookOutcome::Failed)
        {
            self.hook.observe(hook.duration_ms as f64 / 1000.0);
        }
    }

    fn register(&self, registry: &mut Registry) {
        let help = "Time from the first work on a generation until it is linked";
        registry.register_with_unit("sync", help, Unit::Seconds, self.sync.clone());
        registry.register_with_unit("hook", "Runs of the on-activate hook", Unit::Seconds, self.hook.clone());
        registry.register("failures", "Updates that failed", self.failures.clone());
        let help = "Generations that were known, and came again with another root";
        registry.register("forks", help, self.forks.clone());
        let help = "Results of the node's own check: one for each switch, and for each failure before one";
        registry.register("checks", help, self.checks.clone());
        let help = "Files found that were changed on this node";
        registry.register("changed_locally", help, self.changed_locally.clone());
    }
}

/// The registry of one answer. Blocks for a system call.
pub fn registry(sources: &Sources) -> Registry {
    let mut registry = Registry::with_prefix("syncd_agent");
    let status = sources.status.borrow().clone();
    let version = Values::by(&["version"], [(env!("CARGO_PKG_VERSION"), 1u64)]);
    registry.register("build_info", "1, with the version of the program", version);
    state(&mut registry, &status);
    orders(&mut registry, &status);
    if let Some(live) = sources.live.borrow().as_ref() {
        let totals = live.generation().root.totals;
        registry.register("files", "Files in the linked generation", Value::new(totals.files));
        registry.register_with_unit("content", "Content in it", Unit::Bytes, Value::new(totals.bytes));
    }
    if let Ok(disk) = rustix::fs::statvfs(&sources.root) {
        let free = Value::new(disk.f_bavail.saturating_mul(disk.f_frsize));
        registry.register_with_unit("root_free", "Free space for ROOT", Unit::Bytes, free);
        registry.register("root_free_inodes", "Free inodes for ROOT", Value::new(disk.f_favail));
    }
    let end = Value::new((sources.certificate_end)().unix_timestamp());
    registry.register_with_unit(
        "certificate_end",
        "End of the certificate's life, since 1970",
        Unit::Seconds,
        end,
    );
    sources.observed.register(&mut registry);
    if let Some(report) = sources.collected.borrow().as_ref() {
        collected(&mut registry, report);
    }
    registry
}

/// Figures of collected directories.
fn collected(registry: &mut Registry, report: &CollectedReport) {
    let mut register = |name: &str, help: &str, value: u64| registry.register(name, help, Value::new(value));
    register(
        "collected_connected",
        "1 while all collected directories are in step with the origin",
        u64::from(report.connected),
    );
    register("collected_waiting", "Paths that may have to be sent or placed", report.waiting);
    register("collected_refused", "Files that rules or quota refuse", report.refused);
    register("collected_kept_aside", "Files of visitors in ROOT/collected/.incoming", report.kept_aside);
    register("collected_trouble", "1 while an error lasts", u64::from(report.error.is_some()));
}

fn state(registry: &mut Registry, status: &AgentStatus) {
    let states = STATES.map(|state| (state.to_string(), u64::from(state == status.state)));
    registry.register("state", "1 for the state that the agent is in", Values::by(&["state"], states));
    let flag = |is_so: bool| Value::new(u64::from(is_so));
    registry.register("connected", "1 while the control stream is open", flag(status.connected));
    registry.register("revoked", "1 if the node has to join again", flag(status.revoked));
    registry.register("trouble", "1 while an error lasts", flag(status.error.is_some()));
    let is_live = status.generation.is_some() && status.reached() == AgentState::Live;
    registry.register(
        "live",
        "1 if the linked generation is live: its hook, if any, has succeeded",
        flag(is_live),
    );
    registry.register(
        "generation",
        "The linked generation, 0 if none",
        Value::new(status.generation.unwrap_or(0)),
    );
    registry.register(
        "accepted",
        "The highest generation ever accepted",
        Value::new(status.accepted.unwrap_or(0)),
    );
    registry.register(
        "trees",
        "Generations with a complete tree",
        Value::new(status.generations.len() as u64),
    );
    registry.register("spares", "Trees that are ready for the next generation", Value::new(status.spares));
    let contact = status.last_contact.as_ref().and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    let contact = contact.map_or(0.0, |at| seconds((at.unix_timestamp_nanos() / 1_000_000) as i64));
    let help = "Time of the last message of the origin, since 1970; 0 if there was none since the start";
    registry.register_with_unit("last_contact", help, Unit::Seconds, Value::new(contact));
    let head = status.head.as_ref().and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    if let Some(head) = head {
        let at = seconds((head.unix_timestamp_nanos() / 1_000_000) as i64);
        let help = "With --follow: time of the release that was seen last, since 1970";
        registry.register_with_unit("head", help, Unit::Seconds, Value::new(at));
    }
    let drift = status.drift.as_ref().map_or(0, |drift| drift.paths);
    registry.register("drift", "Files changed on this node, until a tree is free of them", Value::new(drift));
    let help = "Changed paths of live trees that were healed";
    registry.register("healed", help, ConstCounter::new(status.healed));
}

/// The node's own check, and what the node was told to do or not to do.
fn orders(registry: &mut Registry, status: &AgentStatus) {
    let flag = |is_so: bool| Value::new(u64::from(is_so));
    registry.register("ready", "1 while `/readyz` answers 200", flag(readiness(status).is_well));
    let help = "1 while other nodes serve a newer generation already";
    registry.register("behind", help, flag(status.behind));
    let by = |of: &str, node: bool, origin: bool| {
        let by = [("node", u64::from(node)), ("origin", u64::from(origin))];
        (format!("1 while the node is {of}, by who said so"), Values::by(&["by"], by))
    };
    let (help, drained) = by("drained", status.node.drained, status.ordered.drained);
    registry.register("drained", help, drained);
    let (help, pinned) = by("pinned", status.node.pinned.is_some(), status.ordered.pinned);
    registry.register("pinned", help, pinned);
    let refused = Value::new(status.refused.len() as u64);
    registry.register("refused", "Generations that this node refuses, because their check failed", refused);
    let check = |is_it: fn(CheckOutcome) -> bool| {
        flag(status.check.as_ref().is_some_and(|check: &CheckStatus| is_it(check.outcome)))
    };
    let on_trial = check(|outcome| outcome == CheckOutcome::Running);
    registry.register("on_trial", "1 while the check of the linked generation runs", on_trial);
    let has_failed = check(|outcome| result(outcome).is_some_and(|result| result != PASSED));
    registry.register("check_failed", "1 if the newest check has failed", has_failed);
}

const PASSED: &str = "passed";
const RESULTS: [CheckOutcome; 4] =
    [CheckOutcome::Passed, CheckOutcome::Failed, CheckOutcome::FailedBefore, CheckOutcome::FailedOnBoth];

/// Value of the label `result`; `None` while the check runs.
fn result(outcome: CheckOutcome) -> Option<&'static str> {
    match outcome {
        CheckOutcome::Running => None,
        CheckOutcome::Passed => Some(PASSED),
        CheckOutcome::Failed => Some("failed"),
        CheckOutcome::FailedBefore => Some("failed_before"),
        CheckOutcome::FailedOnBoth => Some("failed_on_both"),
    }
}

const STATES: [AgentState; 7] = [
    AgentState::Empty,
    AgentState::Fetching,
    AgentState::Staging,
    AgentState::Staged,
    AgentState::Switched,
    AgentState::Live,
    AgentState::Failed,
];

#[cfg(test)]
mod tests {
    use syncd_shared::RootHash;

    use super::*;
    use crate::status::tests::{failing, sample};

    #[test]
    fn an_update_counts_from_its_first_work_to_the_switch_and_a_failure_once() {
        let (observed, at) = (Observed::default(), Instant::now());
        let mut began = None;
        let busy = AgentStatus { state: AgentState::Fetching, ..sample() };
        observed.note(&sample(), &busy, &mut began, at);
        let next = AgentStatus { generation: Some(43), ..sample() };
        observed.note(&busy, &next, &mut began, at + std::time::Duration::from_secs(2));
        assert!(began.is_none());
        observed.note(&next, &failing(), &mut began, at);
        observed.note(&failing(), &failing(), &mut began, at);
        assert_eq!(observed.failures.get(), 1);
        let mut registry = Registry::default();
        observed.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("sync_seconds_sum 2.0\n") && text.contains("sync_seconds_count 1\n"), "{text}");
        assert!(text.contains("hook_seconds_count 1\n"), "{text}");
    }

    #[test]
    fn a_fork_counts_once() {
        let observed = Observed::default();
        let [known, other] = [1, 2].map(|byte| RootHash::from_bytes([byte; 32]));
        let with = |generation| AgentStatus {
            fork: Some(syncd_shared::Fork { generation, known, other }),
            ..sample()
        };
        let steps = [sample(), with(5), with(5), sample(), with(6)];
        for pair in steps.windows(2) {
            observed.note(&pair[0], &pair[1], &mut None, Instant::now());
        }
        assert_eq!(observed.forks.get(), 2);
    }

    #[test]
    fn a_check_counts_once_when_it_ends() {
        let observed = Observed::default();
        let with = |outcome| {
            let (root, output) = (RootHash::from_bytes([7; 32]), String::new());
            let check = CheckStatus { generation: 43, root, outcome, returned_to: None, output };
            AgentStatus { check: Some(check), ..sample() }
        };
        let (running, failed) = (with(CheckOutcome::Running), with(CheckOutcome::Failed));
        let steps = [&sample(), &running, &failed, &failed, &with(CheckOutcome::Passed)];
        for pair in steps.windows(2) {
            observed.note(pair[0], pair[1], &mut None, Instant::now());
        }
        let counted = RESULTS
            .map(|outcome| observed.checks.get_or_create(&[("result", result(outcome).unwrap())]).get());
        assert_eq!(counted, [1, 1, 0, 0]);
    }
}
