//! syncd in one command: an origin and two agents in one process, on loopback, with real tokens over real
//! TLS.
//!
//! Run it with `cargo run --bin syncd-quickstart [-- TREE]`. With `--once` it runs through a story
//! without a person, and exits with 0 only if every check passed.

mod site;
mod story;
mod web;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use tracing::level_filters::LevelFilter;

/// Runs an origin and two agents in one process, to show what syncd does.
#[derive(Debug, Parser)]
#[command(name = "syncd-quickstart", version, max_term_width = 100)]
struct Options {
    /// Content tree to replicate [default: a small site in a temporary directory].
    tree: Option<PathBuf>,
    /// Run a story without a person: edit, lose the origin, restore it, add a node. Never touches TREE.
    #[arg(long, conflicts_with = "tree")]
    once: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    // The story stops the origin, which needs no warning.
    let level = if options.once { LevelFilter::ERROR } else { LevelFilter::WARN };
    syncd_runtime::telemetry::init(level);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let result = runtime.block_on(run(options));
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    syncd_runtime::output::failed("syncd-quickstart", error.as_ref(), 1)
}

async fn run(options: Options) -> anyhow::Result<()> {
    let directory = tempfile::Builder::new().prefix("syncd-quickstart-").tempdir()?;
    let tree = match options.tree {
        Some(tree) => tree.canonicalize().with_context(|| format!("find {}", tree.display()))?,
        None => {
            let tree = directory.path().join("site");
            site::write(&tree)?;
            tree
        }
    };
    let world = world::World::create(directory.path(), tree).await?;
    if options.once { story::tell(world).await } else { story::watch(world).await }
}
