//! The binary `syncd-agent`; everything is in the library.

use std::process::ExitCode;

use syncd_agent::cli::{self, Cli};
use syncd_allocator as _;
use syncd_runtime::{output, telemetry};
use tracing::level_filters::LevelFilter;

fn main() -> ExitCode {
    let cli = Cli::from_process();
    telemetry::init(LevelFilter::INFO);
    cli::run(cli).unwrap_or_else(|error| output::failed("syncd-agent", error.as_ref(), 1))
}
