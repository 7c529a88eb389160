//! Bars of the newest generations: time from commit to live, and bytes sent.

use maud::{Markup, html};

use super::arrivals::Arrival;
use super::text::{bytes, time};

/// Places for bars.
const BARS: usize = 40;
const WIDTH: usize = 400;
const HEIGHT: f64 = 72.0;

/// Both charts. Empty before the first generation that an origin saw arrive. `since`: start of this origin,
/// RFC 3339. Bytes of before are not known.
pub fn charts(arrivals: &[Arrival], since: &str) -> Markup {
    let newest = arrivals.get(arrivals.len().saturating_sub(BARS)..).unwrap_or_default();
    let live: Vec<Option<Bar>> = newest.iter().map(|arrival| Some(live_bar(arrival))).collect();
    let sent: Vec<Option<Bar>> = newest.iter().map(sent_bar).collect();
    let is_whole = sent.iter().all(Option::is_some);
    let of_live = html! { "on the last node, darker on the first" };
    let of_sent = html! {
        "to nodes, by generation" @if !is_whole { ", since " (time(since)) }
    };
    html! {
        section #charts aria-label="Charts" {
            @if !newest.is_empty() {
                (chart("Commit to live", &of_live, &live, &|value| seconds(value)))
                (chart("Bytes sent", &of_sent, &sent, &|value| bytes(value)))
            }
        }
    }
}

struct Bar {
    /// Height of the whole bar, and of its darker part.
    whole: u64,
    part: u64,
    title: String,
}

fn live_bar(arrival: &Arrival) -> Bar {
    let (first, last) = (arrival.first_ms.unwrap_or(0), arrival.last_ms.unwrap_or(0));
    let title = match arrival.nodes {
        0 => format!("generation {}: seen live on no node", arrival.generation),
        1 => format!("generation {}: {} on one node", arrival.generation, seconds(last)),
        nodes => format!(
            "generation {}: {} on the first, {} on the last of {nodes} nodes",
            arrival.generation,
            seconds(first),
            seconds(last)
        ),
    };
    Bar { whole: last, part: first, title }
}

fn sent_bar(arrival: &Arrival) -> Option<Bar> {
    let sent = arrival.sent_bytes?;
    let title = format!("generation {}: {}", arrival.generation, bytes(sent));
    Some(Bar { whole: sent, part: 0, title })
}

fn seconds(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{} min", ms / 60_000),
    }
}

/// A place without a bar is empty.
fn chart(name: &str, of: &Markup, bars: &[Option<Bar>], written: &dyn Fn(u64) -> String) -> Markup {
    let highest = bars.iter().flatten().map(|bar| bar.whole).max().unwrap_or(0);
    let newest = bars.iter().flatten().last().map_or("no generation since then", |bar| &bar.title);
    let height = |value: u64| value as f64 * HEIGHT / highest.max(1) as f64;
    let step = WIDTH / BARS;
    html! {
        figure {
            figcaption { b { (name) } " " span { (of) } @if highest > 0 { span.most { (written(highest)) } } }
            svg viewBox=(format!("0 0 {WIDTH} {}", HEIGHT + 2.0)) role="img" aria-label={ (name) ", newest: " (newest) } {
                line.base x1="0" x2=(WIDTH) y1=(HEIGHT + 1.0) y2=(HEIGHT + 1.0) {}
                @for (place, bar) in bars.iter().enumerate() {
                    @let x = (BARS - bars.len() + place) * step;
                    @if let Some(bar) = bar {
                        g {
                            title { (bar.title) }
                            rect.whole x=(x + 1) width=(step - 2) y=(format!("{:.1}", HEIGHT - height(bar.whole)))
                                height=(format!("{:.1}", height(bar.whole).max(1.0))) {}
                            @if bar.part > 0 {
                                rect.part x=(x + 1) width=(step - 2) y=(format!("{:.1}", HEIGHT - height(bar.part)))
                                    height=(format!("{:.1}", height(bar.part))) {}
                            }
                        }
                    }
                }
            }
            p { (newest) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINCE: &str = "2026-11-30T07:14:20Z";

    #[test]
    fn a_chart_has_the_newest_generations_and_says_the_last() {
        let arrival = |generation| Arrival {
            generation,
            first_ms: Some(80),
            last_ms: Some(1_230),
            nodes: 3,
            sent_bytes: Some(1 << 20),
        };
        let many: Vec<Arrival> = (1..=60).map(arrival).collect();
        let html = charts(&many, SINCE).into_string();
        assert!(!html.contains("generation 20:") && html.contains("generation 21:"), "{html}");
        assert!(html.contains("newest: generation 60: 80 ms on the first, 1.2 s on the last of 3 nodes"));
        assert!(html.contains("1.00 MiB") && !html.contains("NaN"), "{html}");
        assert!(!html.contains("2026"), "{html}");
        assert!(!charts(&[], SINCE).into_string().contains("svg"));
    }

    #[test]
    fn bytes_of_before_the_start_are_not_invented() {
        let before =
            Arrival { generation: 7, first_ms: Some(80), last_ms: Some(90), nodes: 2, sent_bytes: None };
        let html = charts(std::slice::from_ref(&before), SINCE).into_string();
        assert!(html.contains("generation 7: 80 ms on the first, 90 ms on the last of 2 nodes"), "{html}");
        assert!(html.contains("by generation, since <time datetime=\"2026-11-30T07:14:20Z\">"), "{html}");
        assert!(html.contains("no generation since then") && html.matches("<rect").count() == 2, "{html}");
        let after = Arrival { generation: 8, sent_bytes: Some(2_048), ..before.clone() };
        let html = charts(&[before, after], SINCE).into_string();
        assert!(html.contains("generation 8: 2.00 KiB") && !html.contains("no generation since"), "{html}");
    }
}
