//! Errors about wrong usage, fit for a terminal.
//!
//! clap repeats what was typed. An argument may come from a script, a file or a web form, so it passes
//! through [`one_line`] like every text from outside.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue};
use syncd_shared::text::one_line;

/// Longest part of an argument that is repeated.
const SHOWN_MAX_BYTES: usize = 200;

/// Escapes and shortens the arguments that an error repeats. The error's usage and colours stay, except for
/// the colours of suggestions.
pub fn printable(mut error: clap::Error) -> clap::Error {
    let escaped: Vec<(ContextKind, ContextValue)> = error
        .context()
        .filter(|(kind, _)| *kind != ContextKind::Usage)
        .filter_map(|(kind, value)| Some((kind, escaped(value)?)))
        .collect();
    for (kind, value) in escaped {
        error.insert(kind, value);
    }
    error
}

/// `None`: the value has no text.
fn escaped(value: &ContextValue) -> Option<ContextValue> {
    let line = |text: &str| one_line(text, SHOWN_MAX_BYTES);
    let styled = |text: &StyledStr| StyledStr::from(line(&text.to_string()));
    Some(match value {
        ContextValue::String(text) => ContextValue::String(line(text)),
        ContextValue::Strings(texts) => ContextValue::Strings(texts.iter().map(|text| line(text)).collect()),
        ContextValue::StyledStr(text) => ContextValue::StyledStr(styled(text)),
        ContextValue::StyledStrs(texts) => ContextValue::StyledStrs(texts.iter().map(styled).collect()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};
    use syncd_shared::text::is_unprintable;

    use super::*;

    #[test]
    fn arguments_are_repeated_escaped_and_shortened() {
        let command = Command::new("syncd").subcommand(
            Command::new("serve")
                .arg(Arg::new("port").long("port").value_parser(clap::value_parser!(u16)))
                .arg(Arg::new("kind").long("kind").value_parser(["one", "two"])),
        );
        let evil = "7\n2026-11-30 INFO all is well\x1b[2J\u{202e}";
        let long = "9".repeat(100_000);
        let cases = [
            vec!["serve", "--port", evil],
            vec!["serve", "--kind", evil],
            vec!["serve", evil],
            vec!["serve", "--kid\n\x1b[2J"],
            vec![evil],
            vec!["serve", "--port", &long],
            vec!["serve", "--kind", &long],
            vec!["serve", &long],
        ];
        for given in cases {
            let error = command.clone().try_get_matches_from([&["syncd"], &*given].concat()).unwrap_err();
            let shown = printable(error).render().to_string();
            assert!(!shown.contains(|c| is_unprintable(c) && c != '\n'), "{shown:?}");
            assert!(!shown.lines().any(|line| line.starts_with("2026")), "{shown}");
            assert!(shown.len() < 1000, "{} bytes", shown.len());
        }
    }

    #[test]
    fn other_errors_keep_their_words() {
        let command = Command::new("syncd").arg(Arg::new("port").long("port").value_parser(["80", "443"]));
        let error = || command.clone().try_get_matches_from(["syncd", "--port", "44"]).unwrap_err();
        assert_eq!(printable(error()).render().to_string(), error().render().to_string());
    }
}
