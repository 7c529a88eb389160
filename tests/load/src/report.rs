//! Figures of one run, for people and as JSON.

use std::fmt;

use serde::Serialize;

use crate::board::Phase;

/// Figures in the order of measurement.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Number of agents.
    pub agents: usize,
    machine: String,
    figures: Vec<Figure>,
    targets: Vec<Target>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
}

#[derive(Debug, Serialize)]
struct Target {
    name: String,
    at_most: f64,
    actual: f64,
    unit: &'static str,
    reached: bool,
}

impl Report {
    /// An empty report about this machine.
    pub fn new(agents: usize) -> Self {
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self { agents, machine: format!("{cpus} CPUs, Linux {}", kernel.trim()), ..Self::default() }
    }

    /// Adds a figure.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, value: f64) {
        self.figures.push(Figure { name: name.into(), value, unit });
    }

    /// Adds the arrival times and mishaps of a phase.
    pub fn add_phase(&mut self, name: &str, phase: &Phase) {
        for (share, what) in [(0.5, "median"), (0.99, "p99"), (1.0, "last")] {
            self.add(format!("{name}: {what} agent"), "ms", phase.quantile_ms(share));
        }
        for (reason, times) in &phase.mishaps {
            self.note(format!("{name}: {times} times: {reason}"));
        }
    }

    /// Compares a figure with its target.
    pub fn target(&mut self, name: impl Into<String>, unit: &'static str, at_most: f64, actual: f64) {
        self.targets.push(Target { name: name.into(), at_most, actual, unit, reached: actual <= at_most });
    }

    /// Adds a remark for the reader.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Whether every target was met.
    pub fn all_reached(&self) -> bool {
        self.targets.iter().all(|target| target.reached)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{} agents, {}\n", self.agents, self.machine)?;
        for figure in &self.figures {
            writeln!(f, "{:<64} {:>12.3} {}", figure.name, figure.value, figure.unit)?;
        }
        writeln!(f)?;
        for target in &self.targets {
            let verdict = if target.reached { "reached" } else { "MISSED " };
            let (actual, unit) = (target.actual, target.unit);
            writeln!(f, "{verdict}  {}: {actual:.3} {unit}, at most {}", target.name, target.at_most)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note     {note}"))
    }
}
