//! `syncd-sim`: origin and agents in one process, in which network, clock and randomness follow from one
//! seed.
//!
//! All deciding code is real: the agents' session machine, and staging, activation, recovery, spares and
//! verification on real directories; the origin's scan, store, sealer, fleet, planner and conversations.
//! Typed messages replace TLS and HTTP/2. docs/reliability.md says what is not simulated. The long run is
//! `cargo run --release -p syncd-sim -- --seeds 10000`. `SYNCD_SEED=N` repeats one seed and prints its
//! events.

mod deeds;
mod lies;
mod life;
mod model;
mod node;
mod oracle;
mod origin;
mod plant;
mod rollouts;
mod run;
mod site;
mod store;
mod sweep;
mod transfer;
mod uploads;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;

use plant::Plant;
use run::Run;
use world::Tally;

/// Simulates seeds, and reports which ones broke a promise.
#[derive(Debug, Clone, Parser)]
#[command(name = "syncd-sim", version)]
struct Options {
    /// First seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Number of seeds.
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// Run a single seed and print its events.
    #[arg(long, env = "SYNCD_SEED")]
    seed: Option<u64>,
    /// Run every seed twice, and compare the traces.
    #[arg(long)]
    twice: bool,
    /// Plant a bug: the run succeeds if the bug is found.
    #[arg(long)]
    plant: Option<Plant>,
    /// Number of seeds at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Directory for the trees. A tmpfs is faster, and nothing that it loses is checked here.
    #[arg(long, default_value = "/dev/shm")]
    directory: PathBuf,
    /// Have rollouts and checks in every seed.
    #[arg(long, conflicts_with = "plant")]
    rollouts: bool,
    /// Simulate collected directories instead: uploads on several nodes.
    #[arg(long, conflicts_with_all = ["plant", "rollouts"])]
    uploads: bool,
    /// Simulate origins, a second origin and followers with an object store between them.
    #[arg(long, conflicts_with_all = ["plant", "rollouts", "uploads"])]
    store: bool,
    /// Kill the origin at each durable step of rollouts.
    #[arg(long)]
    sweep: bool,
    /// Explore rollouts exhaustively instead, with the real decisions of both sides. `SYNCD_MODEL=full`
    /// explores more.
    #[arg(long)]
    model: bool,
    /// Plant a bug in the model: the run succeeds if the bug is found.
    #[arg(long, requires = "model")]
    flaw: Option<model::Planted>,
    /// Explore only configurations whose name contains this.
    #[arg(long, requires = "model")]
    only: Option<String>,
    /// Print the hash of each seed's trace.
    #[arg(long)]
    traces: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let mut options = Options::parse();
    if !options.directory.is_dir() {
        options.directory = std::env::temp_dir();
    }
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    }
    if let Some(seed) = options.seed {
        (options.first, options.seeds, options.jobs) = (seed, 1, 1);
    }
    // The threads of killed nodes unwind, which is not reported.
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !std::thread::current().name().is_some_and(|name| name.starts_with("node-")) {
            shown(info);
        }
    }));
    let started = Instant::now();
    if options.sweep {
        let cases = sweep::sweep(&options.directory)?;
        println!("the origin died in {cases} cases, in {:.1} s", started.elapsed().as_secs_f64());
        return Ok(ExitCode::SUCCESS);
    }
    if options.model {
        let broken = model::run(options.flaw, options.only.as_deref())?;
        broken.iter().for_each(|broken| println!("{broken}"));
        let held = broken.is_some() == options.flaw.is_some();
        return Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let outcome = Outcome::default();
    std::thread::scope(|scope| {
        for job in 0..options.jobs.max(1) {
            let (outcome, options) = (&outcome, &options);
            scope.spawn(move || {
                keep_to_one_processor(job);
                outcome.work(options);
            });
        }
    });
    outcome.report(&options, started)
}

/// Keeps the threads started by this one on one processor, with one worker each. Otherwise the amount that
/// several workers had written when one failed would vary between runs.
fn keep_to_one_processor(job: usize) {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return };
    let allowed: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    let mut own = rustix::thread::CpuSet::new();
    own.set(allowed[job % allowed.len()]);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &own) {
        eprintln!("traces may differ: can't stay on one processor: {error}");
    }
}

#[derive(Default)]
struct Outcome {
    next: AtomicU64,
    enough: AtomicBool,
    done: AtomicU64,
    virtual_ms: AtomicU64,
    failures: Mutex<Vec<(u64, String)>>,
    tally: Mutex<Tally>,
}

impl Outcome {
    fn work(&self, options: &Options) {
        let how = run::Options {
            plant: options.plant,
            log: options.seed.is_some() || options.rollouts || options.uploads || options.store,
            nodes: None,
            rolls: options.rollouts,
        };
        let simulate = |seed| match options {
            Options { uploads: true, .. } => uploads::run(seed, &options.directory, how.log),
            Options { store: true, .. } => store::run(seed, &options.directory),
            _ => run::run(seed, &options.directory, how),
        };
        while !self.enough.load(Ordering::Relaxed) {
            let seed = options.first + self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= options.first + options.seeds {
                return;
            }
            let run = match simulate(seed) {
                Ok(run) => run,
                Err(error) => {
                    self.fail(seed, format!("the simulation itself failed: {error:#}"));
                    continue;
                }
            };
            if options.twice && run.violation.is_none() {
                match simulate(seed) {
                    Ok(again) if again.trace == run.trace => {}
                    Ok(again) => {
                        self.fail(seed, format!("trace {} the second time {}", run.trace, again.trace))
                    }
                    Err(error) => self.fail(seed, format!("the second time: {error:#}")),
                }
            }
            self.take(options, run);
        }
    }

    fn take(&self, options: &Options, run: Run) {
        if options.traces || options.seed.is_some() {
            println!("seed {} trace {}", run.seed, run.trace);
        }
        if options.seed.is_some() || run.violation.is_some() {
            run.log.iter().flatten().for_each(|line| print!("{line}"));
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        self.virtual_ms.fetch_add(run.virtual_ms, Ordering::Relaxed);
        if let Ok(mut tally) = self.tally.lock() {
            for (what, count) in &run.tally {
                *tally.entry(what).or_default() += count;
            }
        }
        if let Some(violation) = run.violation {
            self.fail(run.seed, violation.to_string());
        }
        if options.plant.is_some() && self.failures.lock().is_ok_and(|f| !f.is_empty()) {
            self.enough.store(true, Ordering::Relaxed);
        }
    }

    fn fail(&self, seed: u64, what: String) {
        println!("seed {seed}: {what}\n  again: SYNCD_SEED={seed} syncd-sim, with the same options");
        if let Ok(mut failures) = self.failures.lock() {
            failures.push((seed, what));
        }
    }

    fn report(self, options: &Options, started: Instant) -> anyhow::Result<ExitCode> {
        let (done, failures) = (self.done.into_inner(), self.failures.into_inner().unwrap_or_default());
        let seconds = started.elapsed().as_secs_f64();
        let hours = self.virtual_ms.into_inner() as f64 / 3.6e6;
        println!(
            "{done} seeds from {} in {seconds:.1} s ({:.0} ms each and thread), {hours:.1} hours of their time; {} failed",
            options.first,
            seconds * 1e3 * options.jobs as f64 / done.max(1) as f64,
            failures.len()
        );
        for (what, count) in self.tally.into_inner().unwrap_or_default() {
            println!("{count:>9} {what}");
        }
        let caught = !failures.is_empty();
        if let (Some(plant), true) = (options.plant, caught) {
            println!("{plant:?} was caught after {done} seeds");
        }
        Ok(if caught == options.plant.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
