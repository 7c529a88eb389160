//! What is to be measured, and on what.

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use syncd_tests::corpora::{self, Corpus};

use crate::report::Report;

/// Measures syncd on real content beside its peers, in the same run. Needs root: every side writes to fresh
/// loop-mounted file systems, and all of it runs in a network namespace whose counters are the wire.
#[derive(Debug, Parser)]
#[command(name = "syncd-bench", version)]
pub struct Bench {
    /// What to measure; everything if none is named.
    #[arg(value_enum)]
    pub scenarios: Vec<Scenario>,
    /// Counted runs of each side; one more, uncounted, warms up.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub runs: u16,
    /// Small trees: shows that it works, and nothing else.
    #[arg(long)]
    pub quick: bool,
    /// Where JSON and plots go [default: docs/bench, with --quick target/bench].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Trees of `first-sync`, `first-seal` and `no-change`.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Tree::Docs, Tree::Many])]
    pub trees: Vec<Tree>,
    /// MiB of each large file of `big`.
    #[arg(long, default_value_t = 1024)]
    pub big_mib: u64,
    /// `growth` up to a million files (needs some 20 GB of disk).
    #[arg(long)]
    pub million: bool,
    /// Peers that take minutes too (syncthing).
    #[arg(long)]
    pub slow_peers: bool,
}

/// One file in `scenarios/` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// A tree to an additional node: docs, and 200,000 small files.
    FirstSync,
    /// The origin's first seal of a tree, beside `cp -a`.
    FirstSeal,
    /// docs a -> b: to an additional node, and from commit to live on the first.
    Update,
    /// Nothing changed, and nothing to do.
    NoChange,
    /// One changed file of 200,000 and of 1,000, `commit --wait` to live on two agents.
    OneFile,
    /// One changed file a commit, 1 and 10 commits a second.
    Sustained,
    /// A top directory gets another name.
    Rename,
    /// All files of 200,000 get new times, or are edited.
    EveryFile,
    /// Large files: scattered edits, an insertion, a database.
    Big,
    /// An update to 1, 2, 4, 8, 16, 32 agents.
    FanOut,
    /// Trees of 1,000, 10,000, 100,000 files.
    Growth,
}

/// What is replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tree {
    /// Documentation of Debian packages: 34,851 files, 616 MB.
    Docs,
    /// 200,000 files of at most 4 KB.
    Many,
}

impl Bench {
    /// What is to be measured, in order.
    pub fn wanted(&self) -> Vec<Scenario> {
        let all = Scenario::value_variants().iter().copied();
        all.filter(|scenario| self.scenarios.is_empty() || self.scenarios.contains(scenario)).collect()
    }

    /// Runs of each side, with the uncounted one.
    pub fn runs(&self) -> usize {
        self.runs.into()
    }

    /// Where JSON and plots go.
    pub fn out(&self) -> PathBuf {
        let default = if self.quick { "target/bench" } else { "docs/bench" };
        self.out.clone().unwrap_or_else(|| default.into())
    }

    /// The documentation tree, and what it is called.
    pub fn docs(&self) -> (&'static str, Corpus) {
        if self.quick { ("wordpress", corpora::wordpress()) } else { ("docs", corpora::docs()) }
    }

    /// Many small files.
    pub fn many(&self) -> (&'static str, Corpus) {
        if self.quick { ("many (1k)", corpora::many(1000)) } else { ("many (200k)", corpora::many(200_000)) }
    }

    /// Makes the trees that are wanted, which may need the network.
    pub fn prepare(&self) {
        for scenario in self.wanted() {
            match scenario {
                Scenario::FirstSync | Scenario::FirstSeal | Scenario::NoChange => drop(self.trees()),
                Scenario::Update | Scenario::Rename => drop(self.docs()),
                Scenario::EveryFile => drop(self.many()),
                Scenario::OneFile | Scenario::Sustained => drop((self.many(), corpora::many(1000))),
                Scenario::FanOut => drop(corpora::wordpress()),
                Scenario::Growth => drop(corpora::docs_small()),
                Scenario::Big => {}
            }
        }
    }

    /// The trees that were asked for.
    pub fn trees(&self) -> Vec<(&'static str, Corpus)> {
        let tree = |tree: &Tree| match tree {
            Tree::Docs => self.docs(),
            Tree::Many => self.many(),
        };
        self.trees.iter().map(tree).collect()
    }

    /// An empty report that says which trees these are.
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
