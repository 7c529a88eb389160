//! Text that others wrote, made fit for a terminal and a log.
//!
//! A peer, a file or a person may put anything into a reason, a label, a version or a name: a line feed forges a line
//! of the log, an escape sequence rewrites the operator's terminal, a change of writing direction swaps what is read.
//! Such text passes [`one_line`] where it arrives; errors pass [`error_chain`], which does the same. Names of a tree
//! ([`crate::TreePath`]) keep their bytes and are escaped when they are printed, by the same rule.

use std::error::Error;
use std::fmt;

use crate::limits::REASON_MAX_BYTES;

/// Ends a line that was cut.
const CUT: &str = "...";

/// `text` on one line of at most `max_bytes`: nothing in it acts on a terminal, ends a line or hides. Such characters
/// are escaped as Rust writes them (`\n`, `\u{202e}`); a line that is cut ends in `...`. Once more changes nothing.
pub fn one_line(text: &str, max_bytes: usize) -> String {
    // Longer text is cut in any case: of a message of megabytes only the beginning is looked at.
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

/// An error with its causes, outermost first, joined by `: `, as [`one_line`] of at most [`REASON_MAX_BYTES`]. A cause
/// that its error repeats is left out. Of a gRPC status only what the other side said is shown, or else its code.
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

/// Milliseconds since 1970 as RFC 3339 in UTC, always with three decimals.
pub fn rfc3339(unix_ms: i64) -> String {
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
    );
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|time| time.format(format).ok())
        .unwrap_or_else(|| format!("{unix_ms} ms since 1970"))
}

/// A number with its noun: `1 path`, `2,594 paths`.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        number => format!("{} {many}", indicatif::HumanCount(number)),
    }
}

/// Whether a character does something else than show itself: control characters (C0, DEL, C1), ends of lines and
/// paragraphs, changes of the writing direction, and what is invisible. U+200C and U+200D stay, which shape scripts and
/// pictographs.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Writes a character as it is, or escaped where it [`is_unprintable`].
pub(crate) fn write_escaped(out: &mut impl fmt::Write, c: char) -> fmt::Result {
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
