//! Collects the agents' reports for the phases of the test.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::sync::mpsc;

use crate::agent::{Event, Report};

/// Receives the reports of all agents.
pub struct Board {
    reports: mpsc::UnboundedReceiver<Report>,
    agents: usize,
}

/// Result of one phase: when each agent reached its goal, and what went wrong.
#[derive(Debug, Default)]
pub struct Phase {
    /// Milliseconds from the start of the phase to the goal, one for each agent, sorted.
    pub arrived_ms: Vec<f64>,
    /// Milliseconds to the announcement, likewise.
    pub announced_ms: Vec<f64>,
    /// Number of announcements with an inline update.
    pub inline: usize,
    /// Bytes that all agents fetched or received inline.
    pub bytes: u64,
    /// Lost connections and failed updates, by reason.
    pub mishaps: HashMap<String, usize>,
}

/// Goal of a phase.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// Every agent was welcomed.
    Welcomed,
    /// A generation of at least this number is live on every agent.
    Live(u64),
}

impl Board {
    /// For `agents` agents that report through `reports`.
    pub fn new(reports: mpsc::UnboundedReceiver<Report>, agents: usize) -> Self {
        Self { reports, agents }
    }

    /// Discards the reports so far.
    pub fn clear(&mut self) {
        while self.reports.try_recv().is_ok() {}
    }

    /// Collects reports until all agents reach the goal `until`. Times count from `started`.
    pub async fn phase(&mut self, started: Instant, until: Until, limit: Duration) -> anyhow::Result<Phase> {
        let mut phase = Phase::default();
        let mut arrived = vec![None; self.agents];
        let mut missing = self.agents;
        let deadline = tokio::time::Instant::from_std(started + limit);
        while missing > 0 {
            let Ok(report) = tokio::time::timeout_at(deadline, self.reports.recv()).await else {
                bail!(
                    "{missing} of {} agents not {until:?} after {limit:?}: {:?}",
                    self.agents,
                    phase.mishaps
                );
            };
            let Some((at, agent, event)) = report else { bail!("all agents ended") };
            let ms = at.saturating_duration_since(started).as_secs_f64() * 1000.0;
            let is_there = match (&event, until) {
                (Event::Welcomed, Until::Welcomed) => true,
                (Event::Activated { number, .. }, Until::Live(wanted)) => *number >= wanted,
                _ => false,
            };
            match event {
                Event::Welcomed => {}
                Event::Lost(reason) | Event::Failed(reason) => *phase.mishaps.entry(reason).or_default() += 1,
                Event::Announced { inline } => {
                    phase.announced_ms.push(ms);
                    phase.inline += usize::from(inline);
                }
                Event::Activated { bytes, .. } => phase.bytes += bytes,
            }
            if is_there && arrived[agent].replace(ms).is_none() {
                missing -= 1;
            }
        }
        phase.arrived_ms = arrived.into_iter().flatten().collect();
        phase.arrived_ms.sort_by(f64::total_cmp);
        phase.announced_ms.sort_by(f64::total_cmp);
        Ok(phase)
    }
}

impl Phase {
    /// Time by which this fraction of all agents (0 to 1) had arrived, in milliseconds.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        quantile(&self.arrived_ms, share)
    }
}

/// Quantile of sorted samples; NaN without samples.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_phase_ends_when_every_agent_has_arrived_once() {
        let (sender, receiver) = mpsc::unbounded_channel();
        let started = Instant::now();
        let mut board = Board::new(receiver, 2);
        for (agent, number) in [(0, 6), (0, 7), (0, 7), (1, 8)] {
            sender.send((started, agent, Event::Activated { number, bytes: 1 })).unwrap();
        }
        let phase = board.phase(started, Until::Live(7), Duration::from_secs(5)).await.unwrap();
        assert_eq!((phase.arrived_ms.len(), phase.bytes), (2, 4));
        sender.send((started, 0, Event::Welcomed)).unwrap();
        assert!(board.phase(started, Until::Welcomed, Duration::from_millis(20)).await.is_err());
    }
}
