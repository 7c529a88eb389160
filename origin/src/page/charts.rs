//! Bars of the newest generations: time from commit to live, and bytes sent.

use maud::{Markup, html};

use super::arrivals::Arrival;
use super::text::bytes;

/// Places for bars.
const BARS: usize = 40;
const WIDTH: usize = 400;
const HEIGHT: f64 = 72.0;

/// Both charts. Empty before the first generation that this origin saw arrive.
pub fn charts(arrivals: &[Arrival]) -> Markup {
    let newest = arrivals.get(arrivals.len().saturating_sub(BARS)..).unwrap_or_default();
    let live: Vec<Bar> = newest.iter().map(live_bar).collect();
    let sent: Vec<Bar> = newest.iter().map(sent_bar).collect();
    html! {
        section #charts aria-label="Charts" {
            @if !newest.is_empty() {
                (chart("Commit to live", "on the last node, darker on the first", &live, &|value| seconds(value)))
                (chart("Bytes sent", "to nodes, by generation", &sent, &|value| bytes(value)))
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
        0 => format!("generation {}: live on no node yet", arrival.generation),
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

fn sent_bar(arrival: &Arrival) -> Bar {
    let title = format!("generation {}: {}", arrival.generation, bytes(arrival.sent_bytes));
    Bar { whole: arrival.sent_bytes, part: 0, title }
}

fn seconds(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{} min", ms / 60_000),
    }
}

fn chart(name: &str, of: &str, bars: &[Bar], written: &dyn Fn(u64) -> String) -> Markup {
    let highest = bars.iter().map(|bar| bar.whole).max().unwrap_or(0).max(1);
    let newest = bars.last().map(|bar| bar.title.clone()).unwrap_or_default();
    let height = |value: u64| value as f64 * HEIGHT / highest as f64;
    let step = WIDTH / BARS;
    html! {
        figure {
            figcaption { b { (name) } " " span { (of) } span.most { (written(highest)) } }
            svg viewBox=(format!("0 0 {WIDTH} {}", HEIGHT + 2.0)) role="img" aria-label={ (name) ", newest: " (newest) } {
                line.base x1="0" x2=(WIDTH) y1=(HEIGHT + 1.0) y2=(HEIGHT + 1.0) {}
                @for (place, bar) in bars.iter().enumerate() {
                    @let x = (BARS - bars.len() + place) * step;
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
            p { (newest) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_the_newest_generations_and_says_the_last() {
        let arrival = |generation| Arrival {
            generation,
            first_ms: Some(80),
            last_ms: Some(1_230),
            nodes: 3,
            sent_bytes: 1 << 20,
        };
        let many: Vec<Arrival> = (1..=60).map(arrival).collect();
        let html = charts(&many).into_string();
        assert!(!html.contains("generation 20:") && html.contains("generation 21:"), "{html}");
        assert!(html.contains("newest: generation 60: 80 ms on the first, 1.2 s on the last of 3 nodes"));
        assert!(html.contains("1.00 MiB") && !html.contains("NaN"), "{html}");
        assert!(!charts(&[]).into_string().contains("svg"));
    }
}
