//! Logs: to standard error, above progress bars, in colour on a terminal.

use std::io::{self, IsTerminal, Write};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::progress::bars;

/// The variables that set what is logged, the first that is set wins; the syntax is that of
/// `tracing_subscriber::EnvFilter`.
pub const FILTER_VARIABLES: [&str; 2] = ["SYNCD_LOG", "RUST_LOG"];

/// Starts logging of what matters to an operator (`info`), where no variable says otherwise.
pub fn start() {
    start_with_default("info");
}

/// Starts logging, at `default` (`error`, `warn`, `info`, `debug`, `trace`, `off`) where no variable says otherwise.
/// What a variable has that is not understood is left out, with a line on standard error. Does nothing where logging
/// was started before (as in tests).
pub fn start_with_default(default: &str) {
    init(default.parse().unwrap_or(LevelFilter::INFO));
}

/// [`start_with_default`], for a level that is known.
pub fn init(default: LevelFilter) {
    let filter = FILTER_VARIABLES.iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default();
    let filter = EnvFilter::builder().with_default_directive(default.into()).parse_lossy(filter);
    // Fails only where there is a subscriber already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(|| AboveBars)
        .try_init();
}

/// Standard error, with the progress bars out of the way while a line is written. An event comes in one write.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        bars().suspend(|| io::stderr().lock().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starting_twice_is_harmless() {
        start_with_default("warn");
        start();
        tracing::warn!("a line");
        assert_eq!(AboveBars.write(b"").unwrap(), 0);
    }
}
