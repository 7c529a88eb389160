//! Makes untrusted text fit for a terminal and a log.
//!
//! A peer, a file or a person may put anything into a reason, a label, a version or a name. A line feed
//! forges a log line, an escape sequence rewrites the operator's terminal, and a change of writing direction
//! reorders the displayed text. Such text passes through [`one_line`] on arrival; errors pass through
//! [`error_chain`], which does the same. Names in a tree ([`crate::TreePath`]) keep their bytes and are
//! escaped by the same rule when printed.

use std::error::Error;
use std::fmt;

use crate::limits::REASON_MAX_BYTES;

/// Marks a truncated line.
const CUT: &str = "...";

/// Returns `text` as one line of at most `max_bytes` without characters that control a terminal, end a line
/// or are invisible. Such characters are escaped as in Rust (`\n`, `\u{202e}`); a truncated line ends in
/// `...`. Idempotent.
pub fn one_line(text: &str, max_bytes: usize) -> String {
    // Longer text is truncated anyway, so only the beginning of a message of megabytes is examined.
    let mut line = String::with_capacity(text.len().min(max_bytes));
    let mut room_for_cut = 0;
    let mut piece = String::new();
    for c in text.chars() {
        piece.clear();
        // Writing to a string does not fail.
        let _ = write_escaped(&mut piece, c);
        if line.len() + piece.len() > max_bytes {
            line.truncate(room_for_cut);
            line.push_str(CUT.get(..max_bytes.min(CUT.len())).unwrap_or_default());
            return line;
        }
        line.push_str(&piece);
        if line.len() + CUT.len() <= max_bytes {
            room_for_cut = line.len();
        }
    }
    line
}

/// An error with its causes, outermost first, joined by `: ` and passed through [`one_line`] with
/// [`REASON_MAX_BYTES`]. A cause whose text is already included is omitted. A gRPC status shows only its
/// message, or its code if there is none.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let boxed = || error.downcast_ref::<Box<tonic::Status>>().map(Box::as_ref);
        let part = match error.downcast_ref::<tonic::Status>().or_else(boxed) {
            Some(status) => status_text(status),
            None => error.to_string(),
        };
        if !part.is_empty() && !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    one_line(&text, REASON_MAX_BYTES)
}

fn status_text(status: &tonic::Status) -> String {
    match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    }
}

/// Formats milliseconds since 1970 as RFC 3339 in UTC, always with three decimals.
pub fn rfc3339(unix_ms: i64) -> String {
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
    );
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|time| time.format(format).ok())
        .unwrap_or_else(|| format!("{unix_ms} ms since 1970"))
}

/// Formats a number with its noun: `1 path`, `2,594 paths`.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        number => format!("{} {many}", indicatif::HumanCount(number)),
    }
}

/// A number of items, of a total if one is known: `652 of 2,594 files`, `1 of 1 file`, `1 file`.
pub fn counted_of(done: u64, total: Option<u64>, one: &str, many: &str) -> String {
    match total {
        Some(total) => format!("{} of {}", indicatif::HumanCount(done), counted(total, one, many)),
        None => counted(done, one, many),
    }
}

/// Whether a character does anything other than show itself: control characters (C0, DEL, C1), line and
/// paragraph separators, direction changes, and invisible characters. U+200C and U+200D are allowed, because
/// they shape scripts and emoji.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Writes a character, escaped if it [`is_unprintable`].
pub fn write_escaped(out: &mut impl fmt::Write, c: char) -> fmt::Result {
    if is_unprintable(c) { write!(out, "{}", c.escape_default()) } else { out.write_char(c) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading\nthe record")]
    struct Outer(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("the connection broke")]
    struct Broken(#[source] Box<tonic::Status>);

    #[test]
    fn a_status_is_told_by_what_it_says_in_a_box_too() {
        let status = Box::new(tonic::Status::from_error(std::io::Error::other("connection reset").into()));
        assert_eq!(error_chain(&Broken(status)), "the connection broke: connection reset");
    }

    #[test]
    fn one_is_counted_in_the_singular() {
        assert_eq!(counted(1, "path", "paths"), "1 path");
        assert_eq!([0, 2_594].map(|n| counted(n, "path", "paths")), ["0 paths", "2,594 paths"]);
        let of = |done, total| counted_of(done, total, "file", "files");
        assert_eq!(
            [of(1, None), of(0, Some(1)), of(1, Some(2_594))],
            ["1 file", "0 of 1 file", "1 of 2,594 files"]
        );
    }

    #[test]
    fn times_are_rfc_3339_of_one_length() {
        assert_eq!(rfc3339(1_790_000_000_123), "2026-09-21T14:13:20.123Z");
        assert_eq!(rfc3339(1_790_000_000_000), "2026-09-21T14:13:20.000Z");
    }

    #[test]
    fn causes_follow_on_one_line() {
        let error = Outer(std::io::Error::other("disk is gone"));
        assert_eq!(error_chain(&error), "reading\\nthe record: disk is gone");
        let long = Outer(std::io::Error::other("x".repeat(2 * REASON_MAX_BYTES)));
        assert_eq!(error_chain(&long).len(), REASON_MAX_BYTES);
    }

    #[test]
    fn a_status_shows_what_was_said_or_its_code() {
        assert_eq!(error_chain(&tonic::Status::unavailable("come\rback")), "come\\rback");
        assert!(!error_chain(&tonic::Status::unavailable("")).is_empty());
    }

    #[test]
    fn what_acts_on_a_terminal_is_escaped_and_text_of_all_scripts_stays() {
        let forged = "web1\n  web2  connected\u{1b}[2J\u{9b}1A\u{202e}evil\u{2066}\u{feff}\u{2028}";
        let line = one_line(forged, 1_000);
        assert!(!line.chars().any(is_unprintable), "{line}");
        assert!(line.starts_with("web1\\n  web2  connected\\u{1b}[2J"), "{line}");
        for plain in ["Größe 10 %", "日本語", "می‌خواهم", "👩‍💻", "a\\nb", "'quoted' \"text\""]
        {
            assert_eq!(one_line(plain, 1_000), plain);
        }
    }

    #[test]
    fn a_cut_line_says_so_and_keeps_its_bound() {
        assert_eq!(one_line("abcdefgh", 8), "abcdefgh");
        assert_eq!(one_line("abcdefghi", 8), "abcde...");
        assert_eq!(one_line("äöüäöü", 8), "äö...");
        assert_eq!(one_line("abc", 2), "..");
        assert_eq!(one_line("abc", 0), "");
    }

    proptest! {
        #[test]
        fn a_line_is_bounded_and_nothing_in_it_acts(
            text in prop::collection::vec(
                prop_oneof![
                    any::<char>(),
                    prop::char::range('\0', '\u{ff}'),
                    prop::char::range('\u{2000}', '\u{2070}'),
                    prop::char::range('\u{fff0}', '\u{ffff}'),
                    prop::char::range('\u{e0000}', '\u{e0080}'),
                ],
                0..80,
            ),
            max_bytes in 0_usize..200,
        ) {
            let text: String = text.into_iter().collect();
            let line = one_line(&text, max_bytes);
            prop_assert!(line.len() <= max_bytes);
            prop_assert!(!line.chars().any(|c| c.is_control()), "{line:?}");
            let turns = |c: char| matches!(c as u32, 0x61c | 0x200e | 0x200f | 0x2028..=0x202e | 0x2066..=0x2069);
            prop_assert!(!line.chars().any(turns), "{line:?}");
            prop_assert_eq!(one_line(&line, max_bytes), line.clone());
            if !text.chars().any(is_unprintable) && text.len() <= max_bytes {
                prop_assert_eq!(line, text);
            }
        }
    }
}
