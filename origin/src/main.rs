//! `syncd-origin`: see the library documentation.

use std::process::ExitCode;

use syncd_origin::cli::{self, Cli};
use syncd_runtime::{output, telemetry};
use tracing::level_filters::LevelFilter;

fn main() -> ExitCode {
    telemetry::init(LevelFilter::INFO);
    // Files of an origin are for nobody else.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let parsed = match Cli::from_process() {
        Ok(parsed) => parsed,
        Err(error) => return fail(&anyhow::Error::from(error), 2),
    };
    match cli::run(parsed) {
        Ok(code) => code,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    output::failed("syncd-origin", error.as_ref(), code)
}
