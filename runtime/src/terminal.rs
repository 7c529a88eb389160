//! The terminal that standard output is: its width and colours. In a pipe, output stays as it is.

use std::fmt::Write as _;

use console::{Term, measure_text_width};

use crate::telemetry::is_colour_wanted;

/// Columns of a terminal that does not report its width.
const USUAL_COLUMNS: u16 = 80;
const END: &str = "\x1b[0m";

/// Colour of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// That of the terminal.
    Plain,
    Green,
    Yellow,
    Red,
}

impl Colour {
    /// `text` between the codes of the colour.
    pub fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Green => "\x1b[32m",
            Self::Yellow => "\x1b[33m",
            Self::Red => "\x1b[31m",
        };
        format!("{code}{text}{END}")
    }
}

/// Width and colours for lines on standard output.
#[derive(Debug, Clone, Copy)]
pub struct Terminal {
    /// Width in characters.
    pub columns: usize,
    /// Whether lines have colours.
    pub colour: bool,
}

impl Terminal {
    /// `None` if standard output is no terminal.
    pub fn of_output() -> Option<Self> {
        let terminal = Term::stdout();
        let columns = terminal.size_checked().map_or(USUAL_COLUMNS, |(_, columns)| columns);
        terminal.is_term().then(|| Self { columns: columns.into(), colour: is_colour_wanted() })
    }

    /// `line` in rows that fit, joined by line feeds. The second and later rows begin with `indent` spaces.
    pub fn fit(self, line: &str, indent: usize, colour: Colour) -> String {
        let mut out = String::new();
        for row in rows(line, self.columns, indent) {
            let separator = if out.is_empty() { "" } else { "\n" };
            let row = if self.colour { colour.paint(&row) } else { row };
            // Writing to a string does not fail.
            let _ = write!(out, "{separator}{row}");
        }
        out
    }
}

/// Breaks `line` between words. A word that is longer than a row stays whole, so that it can be copied.
fn rows(line: &str, columns: usize, indent: usize) -> Vec<String> {
    let mut rows = Vec::new();
    let (mut rest, mut margin) = (line, 0);
    while let Some((row, next)) = split(rest, columns.saturating_sub(margin)) {
        rows.push(format!("{:margin$}{row}", ""));
        (rest, margin) = (next, indent);
    }
    rows.push(format!("{:margin$}{rest}", ""));
    rows
}

/// The row that fits, and what follows. `None`: all of it fits, or has no place to break.
///
/// Three spaces separate the parts of a line. The last of them is preferred in the second half of the row.
fn split(text: &str, columns: usize) -> Option<(&str, &str)> {
    if measure_text_width(text) <= columns {
        return None;
    }
    let start = text.len() - text.trim_start().len();
    let (mut word, mut part) = (None, None);
    let mut from = start;
    while let Some(at) = text[from..].find(' ').map(|at| from + at) {
        let row = &text[..at];
        let width = measure_text_width(row);
        if width > columns && word.is_some() {
            break;
        }
        let next = text[at..].trim_start();
        let gap = text.len() - next.len() - at;
        if next.is_empty() {
            break;
        }
        word = Some((row, next));
        if gap >= 3 && width.saturating_mul(2) >= columns {
            part = word;
        }
        from = at + gap;
    }
    part.or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_parts_then_between_words_and_words_never() {
        let line = "current  generation 7 (release)   12 files, 3 MiB   root abcdef";
        let expected =
            ["current  generation 7 (release)", "         12 files, 3 MiB", "         root abcdef"];
        assert_eq!(rows(line, 34, 9), expected);
        assert_eq!(rows("one two three", 8, 2), ["one two", "  three"]);
        assert_eq!(
            rows("  a  /a/very/long/path and more", 14, 5),
            ["  a", "     /a/very/long/path", "     and more"]
        );
        assert_eq!(rows("fits", 4, 2), ["fits"]);
        assert_eq!(rows("", 0, 2), [""]);
        assert_eq!(rows("漢字 漢字", 8, 1), ["漢字", " 漢字"]);
        assert_eq!(rows("a b", 0, 1), ["a", " b"]);
    }

    #[test]
    fn every_row_has_the_colour_unless_none_is_wanted() {
        let terminal = Terminal { columns: 7, colour: true };
        assert_eq!(
            terminal.fit("one two three", 0, Colour::Red),
            "\x1b[31mone two\x1b[0m\n\x1b[31mthree\x1b[0m"
        );
        assert_eq!(terminal.fit("one two three", 0, Colour::Plain), "one two\nthree");
        let plain = Terminal { colour: false, ..terminal };
        assert_eq!(plain.fit("one two", 0, Colour::Green), "one two");
    }
}
