//! Results of a scenario: samples in panels, ratios and targets.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::statistics::Summary;

/// All results of one scenario.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Name on the command line.
    pub scenario: String,
    /// Title for people.
    pub title: String,
    /// Quantities to compare with each other.
    pub panels: Vec<Panel>,
    ratios: Vec<Ratio>,
    targets: Vec<Target>,
    notes: Vec<String>,
    /// In the uncounted run, names are registered in order, but samples are dropped.
    #[serde(skip)]
    warming_up: bool,
}

/// Figures with the same unit: one picture of the plot.
#[derive(Debug, Serialize)]
pub struct Panel {
    /// Title of the panel.
    pub name: String,
    /// Unit of all its figures.
    pub unit: &'static str,
    /// Meaning of `x`; `None`: the figures have no `x`.
    pub axis: Option<&'static str>,
    /// In the order of their first samples.
    pub figures: Vec<Figure>,
}

/// Samples of one quantity.
#[derive(Debug)]
pub struct Figure {
    /// Name of the program or quantity.
    pub name: String,
    /// Position on the panel's axis.
    pub x: Option<f64>,
    /// One sample for each run.
    pub samples: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Ratio {
    panel: String,
    of: String,
    to: String,
    #[serde(flatten)]
    summary: Summary,
}

#[derive(Debug, Serialize)]
struct Target {
    name: String,
    unit: &'static str,
    at_most: f64,
    actual: f64,
    met: bool,
}

impl Report {
    /// An empty report.
    pub fn new(scenario: &str, title: &str) -> Self {
        Self { scenario: scenario.into(), title: title.into(), ..Self::default() }
    }

    /// Begins a run. Run 0 warms up and is not counted.
    pub fn begin(&mut self, run: usize, runs: usize) {
        self.warming_up = run == 0;
        let warming_up = if run == 0 { " (warm-up, not counted)" } else { "" };
        eprintln!("{}: run {run} of {runs}{warming_up}", self.scenario);
    }

    /// Adds a sample of a quantity without an axis.
    pub fn sample(&mut self, panel: &str, unit: &'static str, name: &str, value: f64) {
        self.add(panel, unit, None, name, None, value);
    }

    /// Adds a sample at `x` on the panel's `axis`.
    pub fn point(
        &mut self,
        panel: &str,
        unit: &'static str,
        axis: &'static str,
        name: &str,
        x: f64,
        value: f64,
    ) {
        self.add(panel, unit, Some(axis), name, Some(x), value);
    }

    fn add(
        &mut self,
        panel: &str,
        unit: &'static str,
        axis: Option<&'static str>,
        name: &str,
        x: Option<f64>,
        value: f64,
    ) {
        let place = self.panels.iter().position(|p| p.name == panel).unwrap_or_else(|| {
            self.panels.push(Panel { name: panel.into(), unit, axis, figures: Vec::new() });
            self.panels.len() - 1
        });
        let figures = &mut self.panels[place].figures;
        let place = figures.iter().position(|f| f.name == name && f.x == x).unwrap_or_else(|| {
            figures.push(Figure { name: name.into(), x, samples: Vec::new() });
            figures.len() - 1
        });
        if !self.warming_up {
            figures[place].samples.push(value);
        }
    }

    /// All samples of a quantity; empty if there are none.
    pub fn samples(&self, panel: &str, name: &str, x: Option<f64>) -> &[f64] {
        let panel = self.panels.iter().find(|p| p.name == panel);
        let figure = panel.and_then(|p| p.figures.iter().find(|f| f.name == name && f.x == x));
        figure.map_or(&[], |f| &f.samples)
    }

    /// Median of a quantity.
    pub fn median(&self, panel: &str, name: &str) -> f64 {
        Summary::of(self.samples(panel, name, None)).median
    }

    /// Adds the ratio of two quantities' medians, and returns it.
    pub fn ratio(&mut self, panel: &str, of: &str, to: &str) -> f64 {
        let summary = Summary::ratio(self.samples(panel, of, None), self.samples(panel, to, None));
        self.ratios.push(Ratio { panel: panel.into(), of: of.into(), to: to.into(), summary });
        summary.median
    }

    /// Compares a figure with its target.
    pub fn target(&mut self, name: &str, unit: &'static str, at_most: f64, actual: f64) {
        self.targets.push(Target { name: name.into(), unit, at_most, actual, met: actual <= at_most });
    }

    /// Like [`Self::ratio`], and compares it with its target.
    pub fn target_ratio(&mut self, name: &str, at_most: f64, panel: &str, of: &str, to: &str) {
        let actual = self.ratio(panel, of, to);
        self.target(name, "x", at_most, actual);
    }

    /// Adds a remark for the reader.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Number of targets met and missed.
    pub fn met_and_missed(&self) -> (usize, usize) {
        let met = self.targets.iter().filter(|target| target.met).count();
        (met, self.targets.len() - met)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## {} ({})", self.title, self.scenario)?;
        for panel in &self.panels {
            writeln!(
                f,
                "\n| {:<60} | {:>9} | {:>9} | {:>9} | {:>3} |",
                panel.heading(),
                "median",
                "least",
                "most",
                "n"
            )?;
            writeln!(f, "| {:-<60} | {:->9} | {:->9} | {:->9} | {:->3} |", "", ":", ":", ":", ":")?;
            for figure in &panel.figures {
                let Summary { median, least, most } = Summary::of(&figure.samples);
                let (name, n) = (figure.label(panel.axis), figure.samples.len());
                writeln!(f, "| {name:<60} | {median:>9.3} | {least:>9.3} | {most:>9.3} | {n:>3} |")?;
            }
        }
        writeln!(f)?;
        for Ratio { panel, of, to, summary: Summary { median, least, most } } in &self.ratios {
            writeln!(f, "ratio    {panel}: {of} = {median:.3} x {to} (run by run {least:.3} to {most:.3})")?;
        }
        for Target { name, unit, at_most, actual, met } in &self.targets {
            let verdict = if *met { "met   " } else { "MISSED" };
            writeln!(f, "{verdict}   {name}: {actual:.3} {unit}, target at most {at_most} {unit}")?;
        }
        for note in &self.notes {
            writeln!(f, "note     {note}")?;
        }
        Ok(())
    }
}

impl Panel {
    /// Name and unit.
    pub fn heading(&self) -> String {
        format!("{}, {}", self.name, self.unit)
    }
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            name: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            x: Option<f64>,
            #[serde(flatten)]
            summary: Summary,
            samples: &'a [f64],
        }
        let Self { name, x, samples } = self;
        Shown { name, x: *x, summary: Summary::of(samples), samples }.serialize(serializer)
    }
}

impl Figure {
    fn label(&self, axis: Option<&str>) -> String {
        match (self.x, axis) {
            (Some(x), Some(axis)) => format!("{} at {x} {axis}", self.name),
            _ => self.name.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_up_is_not_counted_but_gives_the_order() {
        let mut report = Report::new("some", "Some");
        report.begin(0, 1);
        report.sample("time", "s", "first", 100.0);
        report.begin(1, 1);
        report.sample("time", "s", "second", 2.0);
        report.sample("time", "s", "first", 1.0);
        assert_eq!(report.median("time", "first"), 1.0);
        assert_eq!(report.panels[0].figures[0].name, "first");
    }

    #[test]
    fn a_target_without_a_figure_is_missed() {
        let mut report = Report::new("some", "Some");
        report.sample("time", "s", "own", 2.0);
        report.sample("time", "s", "peer", 4.0);
        report.target_ratio("half", 0.5, "time", "own", "peer");
        assert_eq!(report.met_and_missed(), (1, 0));
        report.target_ratio("nobody", 0.5, "time", "own", "nobody");
        assert_eq!(report.met_and_missed(), (1, 1));
        assert!(report.to_string().contains("MISSED"));
    }
}
