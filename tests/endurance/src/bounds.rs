//! Bounds that hold for all samples, and the table that shows them.

use std::fmt;

use crate::figures::Sample;

/// Samples of a run, oldest first.
#[derive(Debug, Default)]
pub struct Series(Vec<Sample>);

/// Bound of a figure.
#[derive(Debug, Clone, Copy)]
enum Bound {
    /// Limit of every sample.
    AtMost(u64),
    /// The maximum of the second half of the run may exceed that of the first half by a quarter plus this
    /// amount. A figure that grows with the number of commits soon exceeds this.
    Level(u64),
}

struct Row {
    name: &'static str,
    figure: fn(&Sample) -> u64,
    bounds: &'static [Bound],
}

/// Limit of an agent's trees: 3 kept, 8 retired ones in their grace period, 3 spares, two being built or
/// checked, and the directory for arriving content.
const TREES: u64 = 3 + 8 + 3 + 2 + 1;

/// Content of ten minutes of commits, the interval of garbage collection, plus a quarter.
const DATA_KIB: u64 = 104 * 1024;

const ROWS: [Row; 8] = [
    Row {
        name: "origin: memory, KiB",
        figure: |sample| sample.origin_memory_kib,
        bounds: &[Bound::AtMost(96 * 1024), Bound::Level(16 * 1024)],
    },
    Row {
        name: "origin: descriptors",
        figure: |sample| sample.origin_descriptors,
        bounds: &[Bound::AtMost(96), Bound::Level(16)],
    },
    Row {
        name: "agent: memory, KiB",
        figure: |sample| sample.agent_memory_kib,
        bounds: &[Bound::AtMost(96 * 1024), Bound::Level(16 * 1024)],
    },
    Row {
        name: "agent: descriptors",
        figure: |sample| sample.agent_descriptors,
        bounds: &[Bound::AtMost(96), Bound::Level(16)],
    },
    Row { name: "agent: trees", figure: |sample| sample.trees, bounds: &[Bound::AtMost(TREES)] },
    Row {
        name: "agent: names in the trash",
        figure: |sample| sample.trash_names,
        bounds: &[Bound::AtMost(40)],
    },
    Row { name: "agent: ROOT, KiB", figure: |sample| sample.root_kib, bounds: &[Bound::Level(16 * 1024)] },
    Row { name: "origin: DATA, KiB", figure: |sample| sample.data_kib, bounds: &[Bound::AtMost(DATA_KIB)] },
];

impl Bound {
    fn holds(self, figures: &[u64]) -> bool {
        let (first, second) = figures.split_at(figures.len() / 2);
        let highest = |figures: &[u64]| figures.iter().copied().max().unwrap_or_default();
        match self {
            Self::AtMost(most) => highest(figures) <= most,
            Self::Level(slack) => highest(second) <= highest(first) / 4 * 5 + slack,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "at most {most}"),
            Self::Level(slack) => write!(f, "second half at most 1.25 times the first and {slack}"),
        }
    }
}

impl Series {
    pub fn push(&mut self, sample: Sample) {
        self.0.push(sample);
    }

    fn figures(&self, row: &Row) -> Vec<u64> {
        self.0.iter().map(row.figure).collect()
    }

    /// Whether all bounds hold for a run that was long enough.
    pub fn holds(&self) -> bool {
        let holds = |row: &Row| row.bounds.iter().all(|bound| bound.holds(&self.figures(row)));
        self.0.len() >= 4 && ROWS.iter().all(holds)
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| figure | first | middle | last | highest | bound | |")?;
        writeln!(f, "| --- | --- | --- | --- | --- | --- | --- |")?;
        for row in &ROWS {
            let figures = self.figures(row);
            let at = |index: usize| figures.get(index).copied().unwrap_or_default();
            let (middle, last) = (at(figures.len() / 2), at(figures.len().saturating_sub(1)));
            let highest = figures.iter().max().copied().unwrap_or_default();
            for bound in row.bounds {
                let verdict = if bound.holds(&figures) { "holds" } else { "EXCEEDED" };
                let (name, first) = (row.name, at(0));
                writeln!(f, "| {name} | {first} | {middle} | {last} | {highest} | {bound} | {verdict} |")?;
            }
        }
        write!(f, "{} samples", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_with_the_number_of_commits_exceeds_its_level() {
        let growing: Vec<u64> = (1..=60).map(|minute| minute * 100).collect();
        assert!(!Bound::Level(500).holds(&growing));
        let level: Vec<u64> = (1..=60).map(|minute| 1000 + minute % 7 * 100).collect();
        assert!(Bound::Level(0).holds(&level));
        assert!(!Bound::AtMost(1500).holds(&level) && Bound::AtMost(1600).holds(&level));
    }

    #[test]
    fn a_run_that_was_too_short_to_tell_does_not_hold() {
        let mut series = Series::default();
        series.push(Sample::default());
        assert!(!series.holds());
        (0..3).for_each(|_| series.push(Sample::default()));
        assert!(series.holds());
    }
}
