//! Figures as people read them.

use indicatif::{HumanBytes, HumanCount};
use maud::{Markup, html};

/// A time, in UTC. The script replaces the text by the time since then.
pub fn time(rfc3339: &str) -> Markup {
    html! { time datetime=(rfc3339) { (minute(rfc3339)) } }
}

/// `2026-11-30 07:14 UTC` of `2026-11-30T07:14:20.123Z`.
fn minute(rfc3339: &str) -> String {
    match (rfc3339.get(..10), rfc3339.get(11..16)) {
        (Some(day), Some(minute)) => format!("{day} {minute} UTC"),
        _ => rfc3339.to_owned(),
    }
}

pub fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

pub fn bytes(number: u64) -> String {
    HumanBytes(number).to_string()
}

/// `1 node`, `2,500 nodes`.
pub fn counted(number: usize, one: &str, many: &str) -> String {
    syncd_shared::text::counted(number as u64, one, many)
}
