//! Options of the bench: scenarios, trees and runs.

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use syncd_tests::corpora::{self, Corpus};

use crate::report::Report;

/// Measures syncd on real content beside its peers, in the same run. Needs root: all programs write to new
/// loop-mounted file systems and run in a network namespace whose counters measure the wire.
#[derive(Debug, Parser)]
#[command(name = "syncd-bench", version)]
pub struct Bench {
    /// Scenarios to measure [default: all].
    #[arg(value_enum)]
    pub scenarios: Vec<Scenario>,
    /// Number of counted runs. One more, uncounted, warms up.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub runs: u16,
    /// Use small trees, to check that the bench works.
    #[arg(long)]
    pub quick: bool,
    /// Directory for JSON and plots [default: docs/bench, with --quick target/bench].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Trees of `first-sync`, `first-seal` and `no-change`.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Tree::Docs, Tree::Many])]
    pub trees: Vec<Tree>,
    /// Size of each large file of `big`, in MiB.
    #[arg(long, default_value_t = 1024)]
    pub big_mib: u64,
    /// Extend `growth` to a million files (needs about 20 GB of disk).
    #[arg(long)]
    pub million: bool,
    /// Also measure peers that take minutes (syncthing).
    #[arg(long)]
    pub slow_peers: bool,
}

/// Scenarios, each in one file of `scenarios/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// First sync of an additional node: docs, and 200,000 small files.
    FirstSync,
    /// The origin's first seal of a tree, beside `cp -a`.
    FirstSeal,
    /// docs a -> b: on an additional node, and from commit to live on the first node.
    Update,
    /// WordPress 6.4 -> 6.5, back to the tree that the nodes hold, and forth again.
    Release,
    /// Nothing changed, or nothing to do.
    NoChange,
    /// One changed file of 200,000 and of 1,000, `commit --wait` until live on two agents.
    OneFile,
    /// One changed file for each commit, at 1 and 10 commits per second.
    Sustained,
    /// A directory at the top is renamed.
    Rename,
    /// All of 200,000 files get new times, or are edited.
    EveryFile,
    /// Large files: scattered edits, an insertion, a database.
    Big,
    /// An update of 1, 2, 4, 8, 16 and 32 agents.
    FanOut,
    /// Trees of 1,000, 10,000 and 100,000 files.
    Growth,
    /// Uploads on one node until they are on another: 2 MB, and 10,000 small files.
    Uploads,
}

/// Content to replicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tree {
    /// Documentation of Debian packages: 34,851 files, 616 MB.
    Docs,
    /// 200,000 files of at most 4 KB.
    Many,
}

impl Bench {
    /// Scenarios to measure, in order.
    pub fn wanted(&self) -> Vec<Scenario> {
        let all = Scenario::value_variants().iter().copied();
        all.filter(|scenario| self.scenarios.is_empty() || self.scenarios.contains(scenario)).collect()
    }

    /// Number of counted runs.
    pub fn runs(&self) -> usize {
        self.runs.into()
    }

    /// Directory for JSON and plots.
    pub fn out(&self) -> PathBuf {
        let default = if self.quick { "target/bench" } else { "docs/bench" };
        self.out.clone().unwrap_or_else(|| default.into())
    }

    /// The documentation tree, with its name.
    pub fn docs(&self) -> (&'static str, Corpus) {
        if self.quick { ("wordpress", corpora::wordpress()) } else { ("docs", corpora::docs()) }
    }

    /// The tree of many small files, with its name.
    pub fn many(&self) -> (&'static str, Corpus) {
        if self.quick { ("many (1k)", corpora::many(1000)) } else { ("many (200k)", corpora::many(200_000)) }
    }

    /// Makes the required trees, which may need the network.
    pub fn prepare(&self) {
        for scenario in self.wanted() {
            match scenario {
                Scenario::FirstSync | Scenario::FirstSeal | Scenario::NoChange => drop(self.trees()),
                Scenario::Update | Scenario::Rename => drop(self.docs()),
                Scenario::EveryFile => drop(self.many()),
                Scenario::OneFile | Scenario::Sustained => drop((self.many(), corpora::many(1000))),
                Scenario::FanOut | Scenario::Release => drop(corpora::wordpress()),
                Scenario::Growth => drop(corpora::docs_small()),
                Scenario::Big | Scenario::Uploads => {}
            }
        }
    }

    /// The requested trees.
    pub fn trees(&self) -> Vec<(&'static str, Corpus)> {
        let tree = |tree: &Tree| match tree {
            Tree::Docs => self.docs(),
            Tree::Many => self.many(),
        };
        self.trees.iter().map(tree).collect()
    }

    /// An empty report that describes these trees.
    pub fn report<'a>(
        &self,
        scenario: &str,
        title: &str,
        corpora: impl IntoIterator<Item = (&'a str, &'a Corpus)>,
    ) -> Report {
        let mut report = Report::new(scenario, title);
        if self.quick {
            report.note("--quick: small trees; nothing follows from these figures");
        }
        for (name, corpus) in corpora {
            report.note(format!("{name}: {}", corpus.versions()));
        }
        report
    }
}

/// Runs all sides once, in an order that alternates from run to run.
pub fn in_turn(run: usize, report: &mut Report, sides: &[&dyn Fn(&mut Report)]) {
    let mut order: Vec<usize> = (0..sides.len()).collect();
    if run % 2 == 1 {
        order.reverse();
    }
    for side in order {
        sides[side](report);
    }
}
