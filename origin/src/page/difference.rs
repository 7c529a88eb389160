//! The difference of two versions of a file, line by line.

use std::time::Duration;

use maud::{Markup, html};
use similar::{ChangeTag, TextDiff};
use syncd_shared::text::one_line;
use syncd_shared::{Entry, Kind};

use super::text::bytes;
use crate::admin::browse::{Content, TEXT_MAX_BYTES, Version};

/// Maximum number of lines shown.
const LINES_MAX: usize = 3_000;
/// Bytes of a line that are shown.
const LINE_MAX_BYTES: usize = 1_000;
/// Unchanged lines around a change.
const CONTEXT: usize = 3;
/// After this time the difference is a coarser one.
const TIME_MAX: Duration = Duration::from_millis(200);

/// Two versions of a path, of which one may be missing. `before` is shown in place of a missing old one.
pub fn difference(old: Option<&Version>, new: Option<&Version>, before: &str) -> Markup {
    html! {
        dl.facts {
            div { dt { "Before" } dd { (about(old, before)) } }
            div { dt { "After" } dd { (about(new, "not there")) } }
        }
        (content(old, new))
    }
}

fn about(version: Option<&Version>, missing: &str) -> Markup {
    html! {
        @match version {
            None => (missing),
            Some(Version { entry, .. }) => { (kind(entry)) ", mode " (format!("{:04o}", entry.metadata.mode)) },
        }
    }
}

fn kind(entry: &Entry) -> String {
    match entry.kind {
        Kind::Directory { .. } => "directory".to_owned(),
        Kind::Symlink { .. } => "symlink".to_owned(),
        Kind::File { size, .. } => format!("file of {}", bytes(size)),
        Kind::Collected { .. } => "collected directory".to_owned(),
    }
}

fn content(old: Option<&Version>, new: Option<&Version>) -> Markup {
    let (old, new) = (old.map(|version| &version.content), new.map(|version| &version.content));
    let is = |wanted: fn(&Content) -> bool| old.is_some_and(wanted) || new.is_some_and(wanted);
    let text = |content: Option<&Content>| match content {
        Some(Content::Text(text)) => text.clone(),
        _ => String::new(),
    };
    html! {
        @if is(|content| matches!(content, Content::Closed)) {
            p { "Not shown: in the tree, not every user of this machine may read it." }
        } @else if is(|content| matches!(content, Content::Large)) {
            p { "Not shown: larger than " (bytes(TEXT_MAX_BYTES)) "." }
        } @else if is(|content| matches!(content, Content::NotText)) {
            p { "Not shown: not text." }
        } @else {
            (lines(&text(old), &text(new)))
        }
    }
}

fn lines(old: &str, new: &str) -> Markup {
    let diff = TextDiff::configure().timeout(TIME_MAX).diff_lines(old, new);
    let mut shown = Vec::new();
    let mut is_cut = false;
    for (place, group) in diff.grouped_ops(CONTEXT).iter().enumerate() {
        if is_cut {
            break;
        }
        if place > 0 {
            shown.push(html! { tr.gap { td colspan="3" { "⋯" } } });
        }
        for change in group.iter().flat_map(|operation| diff.iter_changes(operation)) {
            is_cut = shown.len() >= LINES_MAX;
            if is_cut {
                break;
            }
            let (sign, word) = match change.tag() {
                ChangeTag::Equal => (" ", "same"),
                ChangeTag::Insert => ("+", "added"),
                ChangeTag::Delete => ("−", "removed"),
            };
            let number =
                |index: Option<usize>| index.map(|index| (index + 1).to_string()).unwrap_or_default();
            shown.push(html! {
                tr data-c=(word) {
                    td.place { (number(change.old_index())) }
                    td.place { (number(change.new_index())) }
                    td { (sign) " " (plain(change.value())) }
                }
            });
        }
    }
    html! {
        @if shown.is_empty() { p { "The content is the same." } } @else {
            table.difference {
                caption.quiet { "Difference by lines" }
                thead.quiet { tr { th scope="col" { "Before" } th scope="col" { "After" } th scope="col" { "Line" } } }
                tbody { @for line in &shown { (line) } }
            }
        }
        @if is_cut { p.after { "The first " (LINES_MAX) " lines." } }
    }
}

/// A line without its end, fit for display.
fn plain(line: &str) -> String {
    one_line(&line.trim_end_matches(['\n', '\r']).replace('\t', "    "), LINE_MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_what_changed_with_context() {
        let old: String = (0..40).map(|line| format!("line {line}\n")).collect();
        let new = old.replace("line 20\n", "<script>alert(1)</script>\x1b[2J\n");
        let html = lines(&old, &new).into_string();
        assert!(html.contains("− line 20") && html.contains("+ &lt;script&gt;"), "{html}");
        assert!(html.contains("\\u{1b}[2J") && !html.contains("<script>"), "{html}");
        assert!(html.contains("line 17") && html.contains("line 23"), "{html}");
        assert!(!html.contains("line 16") && !html.contains("line 24"), "{html}");
        assert!(lines("a", "a").into_string().contains("the same"));
    }

    #[test]
    fn a_huge_difference_is_bounded() {
        let (old, new) = ("a\n".repeat(100_000), "b\n".repeat(100_000));
        let html = lines(&old, &new).into_string();
        assert!(html.len() < 400_000 && html.contains("The first 3000 lines"), "{} bytes", html.len());
    }
}
