//! Logging to standard error, above progress bars, in colour on a terminal.
//!
//! Logging starts before the command line is parsed, as [`LogFormat::Text`]. A service then calls
//! [`set_format`].

mod format;

use std::io::{self, IsTerminal, Write};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::progress::bars;
use format::Lines;
pub use format::{LogFormat, set_format};
use syncd_shared::text::write_escaped;

/// Variables that set the log filter, in the syntax of [`Targets`]: `TARGET=LEVEL`, separated by commas. The
/// first one that is set wins.
pub const FILTER_VARIABLES: [&str; 2] = ["SYNCD_LOG", "RUST_LOG"];

/// Starts logging at `info` unless a variable sets another level.
pub fn start() {
    start_with_default("info");
}

/// Starts logging at `default` (`error`, `warn`, `info`, `debug`, `trace`, `off`) unless a variable sets
/// another level. An invalid value of a variable is ignored, with a warning. Does nothing if
/// logging was started before (as in tests).
pub fn start_with_default(default: &str) {
    init(default.parse().unwrap_or(LevelFilter::INFO));
}

/// Like [`start_with_default`], for a parsed level.
pub fn init(default: LevelFilter) {
    let said = FILTER_VARIABLES.iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default();
    let usual = || Targets::new().with_default(LevelFilter::WARN).with_target("syncd", default);
    let (filter, wrong) = match filter(&said, default).parse::<Targets>() {
        Ok(filter) if filter.default_level().is_none() => (filter.with_default(LevelFilter::WARN), None),
        Ok(filter) => (filter, None),
        Err(error) => (usual(), Some(error)),
    };
    let format = tracing_subscriber::fmt::layer()
        .with_ansi(io::stderr().is_terminal() && is_colour_wanted())
        .event_format(Lines)
        .with_writer(|| AboveBars);
    // Fails only if a subscriber is already set.
    let _ = tracing_subscriber::registry().with(format).with(filter).try_init();
    if let Some(error) = wrong {
        tracing::warn!("the log filter {said:?} is ignored: {error}");
    }
}

/// Whether the environment allows colours (<https://no-color.org>).
pub fn is_colour_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A bare level applies to syncd's own crates. Messages of libraries below `warn` must be requested by name.
fn filter(said: &str, default: LevelFilter) -> String {
    match said.trim() {
        "" => format!("warn,syncd={default}"),
        level => match level.parse::<LevelFilter>() {
            Ok(LevelFilter::OFF) => "off".to_owned(),
            Ok(level) => format!("warn,syncd={level}"),
            Err(_) => said.to_owned(),
        },
    }
}

/// Standard error, with progress bars hidden while a line is written. An event arrives in one write and
/// leaves as one line.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = one_event(event);
        bars().suspend(|| io::stderr().lock().write_all(line.as_bytes()))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An event as one line that cannot affect a terminal except by colour: paths and library messages may
/// contain anything. The subscriber has already escaped ESC everywhere except in its own colours, so ESC is
/// kept.
fn one_event(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    let mut line = String::with_capacity(text.len());
    for c in text.trim_end_matches('\n').chars() {
        match c {
            '\u{1b}' => line.push(c),
            // Writing to a string does not fail.
            _ => drop(write_escaped(&mut line, c)),
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_is_that_of_our_own_crates() {
        assert_eq!(filter("", LevelFilter::INFO), "warn,syncd=info");
        assert_eq!(filter(" debug ", LevelFilter::INFO), "warn,syncd=debug");
        assert_eq!(filter("off", LevelFilter::INFO), "off");
        assert_eq!(filter("h2=trace,syncd_agent=info", LevelFilter::INFO), "h2=trace,syncd_agent=info");
    }

    #[test]
    fn an_event_is_one_line_whatever_it_tells_of() {
        assert_eq!(one_event(b"\x1b[32m INFO\x1b[0m a line\n"), "\u{1b}[32m INFO\u{1b}[0m a line\n");
        let forged = "read x\n2026-11-29  INFO all is well\r\u{202e}\u{9b}1A\n";
        assert_eq!(
            one_event(forged.as_bytes()),
            "read x\\n2026-11-29  INFO all is well\\r\\u{202e}\\u{9b}1A\n"
        );
    }

    #[test]
    fn starting_twice_is_harmless() {
        start_with_default("warn");
        start();
        tracing::warn!("a line");
        assert_eq!(AboveBars.write(b"").unwrap(), 0);
    }
}
