//! Figures: samples, medians, spread, and what was to be reached.

use std::fmt;

use serde::Serialize;

/// Everything measured in one run of the bench.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    machine: String,
    figures: Vec<Figure>,
    targets: Vec<Target>,
    notes: Vec<String>,
}

/// Samples of one quantity.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    name: String,
    unit: &'static str,
    median: f64,
    least: f64,
    most: f64,
    samples: Vec<f64>,
}

/// What was to be reached, and what was.
#[derive(Debug, Serialize)]
struct Target {
    name: String,
    at_most: f64,
    actual: f64,
    unit: &'static str,
    reached: bool,
}

impl Report {
    /// An empty report of this machine.
    pub fn new() -> Self {
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let memory = crate::proc_figures::total_memory_mib();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self { machine: format!("{cpus} CPUs, {memory} MiB, Linux {}", kernel.trim()), ..Self::default() }
    }

    /// Adds samples; their median.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, samples: Vec<f64>) -> f64 {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let median = match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        };
        let (least, most) =
            (sorted.first().copied().unwrap_or(f64::NAN), sorted.last().copied().unwrap_or(f64::NAN));
        self.figures.push(Figure { name: name.into(), unit, median, least, most, samples });
        median
    }

    /// Holds a figure against what was to be reached.
    pub fn target(&mut self, name: impl Into<String>, unit: &'static str, at_most: f64, actual: f64) {
        self.targets.push(Target { name: name.into(), at_most, actual, unit, reached: actual <= at_most });
    }

    /// Adds what a reader must know.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Whether every target was reached.
    pub fn all_reached(&self) -> bool {
        self.targets.iter().all(|target| target.reached)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}\n", self.machine)?;
        let header = ("figure", "unit", "median", "least", "most", "n");
        writeln!(
            f,
            "| {:<58} | {:>5} | {:>9} | {:>9} | {:>9} | {:>3} |",
            header.0, header.1, header.2, header.3, header.4, header.5
        )?;
        writeln!(f, "|{:-<60}|{:->7}|{:->11}|{:->11}|{:->11}|{:->5}|", "", "", "", "", "", "")?;
        for figure in &self.figures {
            writeln!(
                f,
                "| {:<58} | {:>5} | {:>9.3} | {:>9.3} | {:>9.3} | {:>3} |",
                figure.name,
                figure.unit,
                figure.median,
                figure.least,
                figure.most,
                figure.samples.len()
            )?;
        }
        writeln!(f)?;
        for target in &self.targets {
            let verdict = if target.reached { "reached" } else { "MISSED " };
            writeln!(
                f,
                "{verdict}  {}: {:.3} {}, at most {}",
                target.name, target.actual, target.unit, target.at_most
            )?;
        }
        for note in &self.notes {
            writeln!(f, "note     {note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_a_missed_target_fails() {
        let mut report = Report::new();
        assert_eq!(report.add("odd", "s", vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(report.add("even", "s", vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        report.target("good", "s", 2.0, 2.0);
        assert!(report.all_reached());
        report.target("bad", "s", 2.0, f64::NAN);
        assert!(!report.all_reached());
    }
}
