//! The registry of `/metrics`: counters and histograms of the process, and gauges read from a snapshot and
//! from DATA. docs/guide/monitoring.md lists the names.
//!
//! The number of series is bounded. Agents have four series each, for at most [`AGENTS_MAX`] agents.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prometheus_client::registry::{Registry, Unit};
use syncd_runtime::metrics::{Value, Values, seconds};
use syncd_shared::{AgentState, CheckOutcome, GenerationNumber};

use crate::collected::{Collection, DirectoryFigures};
use crate::commit::State;
use crate::fleet::rollout::Phase;
use crate::fleet::rollout::view::NodePhase;
use crate::fleet::{AgentView, FleetView};
use crate::keys::Keys;
use crate::metrics::metrics;
use crate::state::{OriginState, Snapshot};
use crate::store::Store;

/// Maximum number of agents with series of their own. Agents that do not have the current generation live
/// come first; otherwise the order is by name.
const AGENTS_MAX: usize = 1000;

/// The state that gauges are read from.
#[derive(Clone)]
pub struct Sources {
    pub state: OriginState,
    pub store: Arc<Store>,
    pub keys: Arc<Keys>,
    pub data: PathBuf,
    /// `None`: there are none.
    pub collected: Option<Collection>,
}

/// The registry of one answer. Blocks for reads of the index.
pub fn registry(sources: &Sources) -> Registry {
    let mut registry = Registry::with_prefix("syncd_origin");
    let now = sources.state.snapshot();
    let version = Values::by(&["version"], [(env!("CARGO_PKG_VERSION"), 1u64)]);
    registry.register("build_info", "1, with the version of the program", version);
    tree(&mut registry, &now);
    fleet(&mut registry, &now);
    rollout(&mut registry, &now);
    agents(&mut registry, &now);
    data(&mut registry, sources);
    if let Some(collection) = &sources.collected {
        collected(&mut registry, collection);
    }
    certificates(&mut registry, &sources.keys);
    // A source that is no directory has no watches.
    let watch = sources.state.watch.as_ref().map_or((0, 0), |watch| (watch.watched() as u64, watch.limit()));
    registry.register("watches", "Inotify watches in use", Value::new(watch.0));
    registry.register("watches_limit", "fs.inotify.max_user_watches, 0 if unknown", Value::new(watch.1));
    registry.register(
        "polled",
        "Subtrees that send no events and are walked instead",
        Value::new(now.polled.len() as u64),
    );
    metrics().register(&mut registry);
    registry
}

fn tree(registry: &mut Registry, now: &Snapshot) {
    let origin = &now.origin;
    let states = [
        ("ready", State::Ready),
        ("scanning", State::Scanning),
        ("held", State::Held),
        ("waiting", State::Waiting),
        ("stopped", State::Stopped),
    ];
    let states = states.map(|(name, state)| (name, u64::from(state == origin.state)));
    registry.register("state", "1 for the state that the origin is in", Values::by(&["state"], states));
    let help = "1 while nothing is published automatically, after a rollback";
    registry.register("hold", help, Value::new(u64::from(origin.hold.is_some())));
    let help = "1 while there is a reason not to publish, or a part of DATA is gone";
    registry.register("trouble", help, Value::new(u64::from(origin.reason.is_some())));
    let Some(current) = &origin.current else { return };
    let (generation, totals) = (current.generation(), current.generation().root.totals);
    registry.register("generation", "Number of the current generation", Value::new(generation.number.get()));
    let created = Value::new(seconds(generation.created_ms));
    registry.register_with_unit(
        "generation_created",
        "Time of its sealing, since 1970",
        Unit::Seconds,
        created,
    );
    registry.register("generation_files", "Files in it", Value::new(totals.files));
    registry.register_with_unit("generation_content", "Content in it", Unit::Bytes, Value::new(totals.bytes));
}

fn fleet(registry: &mut Registry, now: &Snapshot) {
    let FleetView { agents, .. } = &*now.fleet;
    let count =
        |of: fn(&AgentView) -> bool| Value::new(agents.iter().filter(|agent| of(agent)).count() as u64);
    let states = STATES.map(|state| {
        let count = agents.iter().filter(|agent| agent.connected && agent.state == state).count();
        (state.to_string(), count as u64)
    });
    registry.register("agents", "Connected agents by state", Values::by(&["state"], states));
    registry.register("agents_enrolled", "Agents that have joined", Value::new(agents.len() as u64));
    registry.register(
        "agents_connected",
        "Agents whose control stream is open",
        count(|agent| agent.connected),
    );
    registry.register(
        "agents_hook_failed",
        "Connected agents whose on-activate hook has failed and not succeeded since",
        Value::new(now.fleet.failing_hooks().count() as u64),
    );
    registry.register(
        "agents_changed_locally",
        "Agents whose files were changed on the node",
        count(|agent| agent.drift.is_some()),
    );
    registry.register("agents_failed", "Agents with an error", count(|agent| agent.error.is_some()));
    let misses = agents.iter().map(|agent| agent.spare_misses).sum::<u64>();
    registry.register(
        "spare_misses",
        "Activations without a ready tree, since the agents started",
        Value::new(misses),
    );
}

fn rollout(registry: &mut Registry, now: &Snapshot) {
    let rollout = now.rollout.rollout.as_ref();
    let phases = Phase::ALL.map(|phase| {
        let is_now = rollout.is_some_and(|rollout| rollout.phase == phase);
        (phase.name(), u64::from(is_now))
    });
    let help = "1 for the phase of the newest rollout, until the origin starts again";
    registry.register("rollout_phase", help, Values::by(&["phase"], phases));
    let running = now.rollout.running();
    let step = running.map_or(0, |rollout| rollout.step as u64);
    registry.register("rollout_step", "Step of the running rollout, from 1; 0 without one", Value::new(step));
    let steps = running.map_or(0, |rollout| rollout.steps as u64);
    registry.register("rollout_steps", "Steps of the running rollout", Value::new(steps));
    let paused = running.is_some_and(|rollout| rollout.paused);
    registry.register(
        "rollout_paused",
        "1 while the running rollout is paused",
        Value::new(u64::from(paused)),
    );
    let nodes = NodePhase::ALL.map(|state| {
        let nodes = running.map(|rollout| rollout.nodes.as_slice()).unwrap_or_default();
        let count = nodes.iter().filter(|node| node.counted && node.state == state).count();
        (state.name(), count as u64)
    });
    let help = "Nodes that the running rollout counts, by state";
    registry.register("rollout_nodes", help, Values::by(&["state"], nodes));
    let count = |of: fn(&AgentView) -> bool| {
        Value::new(now.fleet.agents.iter().filter(|agent| of(agent)).count() as u64)
    };
    registry.register(
        "agents_drained",
        "Agents that balancers are told not to use",
        count(AgentView::is_drained),
    );
    registry.register("agents_pinned", "Agents that stay where they are", count(AgentView::is_pinned));
    let has_failed = |agent: &AgentView| {
        let passing = [CheckOutcome::Running, CheckOutcome::Passed];
        agent.check.as_ref().is_some_and(|check| !passing.contains(&check.outcome))
    };
    registry.register("agents_check_failed", "Agents whose own check failed", count(has_failed));
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

fn agents(registry: &mut Registry, now: &Snapshot) {
    let current = now.origin.current.as_ref().map_or(0, |current| current.number().get());
    let lag = |agent: &AgentView| current.saturating_sub(agent.generation.map_or(0, GenerationNumber::get));
    let shown = shown(&now.fleet.agents, |agent| {
        agent.connected && lag(agent) == 0 && agent.state == AgentState::Live
    });
    let omitted = now.fleet.agents.len() - shown.len();
    registry.register("agents_omitted", "Agents without series of their own", Value::new(omitted as u64));
    let states = shown.iter().map(|agent| {
        let state = if agent.connected { agent.state.to_string() } else { "unreachable".to_owned() };
        (vec![agent.name.clone(), state], 1u64)
    });
    registry.register(
        "agent_state",
        "1, with the state as a label",
        Values::by_all(&["agent", "state"], states),
    );
    let lags = shown.iter().map(|agent| (agent.name.clone(), lag(agent)));
    registry.register(
        "agent_lag_generations",
        "Generations behind the current one",
        Values::by(&["agent"], lags),
    );
    let seen = shown.iter().map(|agent| (agent.name.clone(), seconds(agent.last_seen_ms)));
    let help = "Time of the last sign of life, since 1970; 0 if there was none";
    registry.register_with_unit("agent_last_seen", help, Unit::Seconds, Values::by(&["agent"], seen));
    let ends = shown.iter().map(|agent| (agent.name.clone(), seconds(agent.not_after_ms)));
    let help = "End of the life of its certificate, since 1970";
    registry.register_with_unit("agent_certificate_end", help, Unit::Seconds, Values::by(&["agent"], ends));
}

/// The agents with series of their own.
fn shown<T>(agents: &[T], is_well: impl Fn(&T) -> bool) -> Vec<&T> {
    let mut shown: Vec<&T> = agents.iter().collect();
    if shown.len() > AGENTS_MAX {
        // Stable, so that the names stay in order.
        shown.sort_by_key(|agent| is_well(agent));
        shown.truncate(AGENTS_MAX);
    }
    shown
}

fn data(registry: &mut Registry, sources: &Sources) {
    let store = &sources.store;
    // A part that can't be read has no series, and `trouble` is 1.
    if let Ok(count) = store.generation_count() {
        registry.register("generations", "Retained generations", Value::new(count));
    }
    if let Ok(bytes) = store.pack_bytes() {
        registry.register_with_unit("store", "Packs in DATA", Unit::Bytes, Value::new(bytes));
    }
    if let Ok(Some(bytes)) = store.history_bytes() {
        let help = "The part of the packs that the current generation does not need";
        registry.register_with_unit("store_history", help, Unit::Bytes, Value::new(bytes));
    }
    let spool = Value::new(directory_bytes(&sources.data.join(crate::plan::SPOOL_DIRECTORY)));
    registry.register_with_unit("spool", "Encoded updates on disk", Unit::Bytes, spool);
    if let Ok(disk) = rustix::fs::statvfs(&sources.data) {
        let free = Value::new(disk.f_bavail.saturating_mul(disk.f_frsize));
        registry.register_with_unit("data_free", "Free space for DATA", Unit::Bytes, free);
    }
}

/// Figures of the collected directories. They have no series if the index can't be read.
fn collected(registry: &mut Registry, collection: &Collection) {
    let names = collection.names().unwrap_or_default();
    let figures: Vec<_> = names.iter().filter_map(|name| collection.figures(name).ok()).collect();
    let by = |value: fn(&DirectoryFigures) -> u64| {
        Values::by(&["directory"], figures.iter().map(|figures| (figures.name.to_string(), value(figures))))
    };
    let bytes = by(|figures| figures.bytes);
    registry.register_with_unit("collected", "Current files of a collected directory", Unit::Bytes, bytes);
    let help = "Contents that lost a conflict, which `collected conflicts` lists";
    registry.register("collected_conflicts", help, by(|figures| figures.conflicts));
    let help = "Changes that rules or quota refused since the start";
    registry.register("collected_refused", help, by(|figures| figures.refusals));
}

/// Bytes of the files in a directory; 0 if it can't be read.
fn directory_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn certificates(registry: &mut Registry, keys: &Keys) {
    let Ok((authority, origin)) = keys.ends() else { return };
    let ends = [("authority", authority), ("origin", origin)].map(|(name, end)| (name, end.unix_timestamp()));
    let help = "End of the life of the origin's certificates, since 1970";
    registry.register_with_unit("certificate_end", help, Unit::Seconds, Values::by(&["certificate"], ends));
    let warnings = Value::new(keys.warnings(time::OffsetDateTime::now_utc()).len() as u64);
    registry.register("key_warnings", "Warnings about the keys, as `status` shows them", warnings);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_agents_those_in_trouble_have_series() {
        let trouble = AGENTS_MAX + 400;
        let agents: Vec<usize> = (0..AGENTS_MAX + 500).collect();
        let many = shown(&agents, |agent| *agent != trouble);
        assert_eq!(many.len(), AGENTS_MAX);
        assert_eq!(many[..2], [&trouble, &0]);
        assert_eq!(shown(&agents[..3], |agent| *agent != 2), [&0, &1, &2]);
    }
}
