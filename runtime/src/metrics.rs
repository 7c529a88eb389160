//! Metrics over HTTP: `GET /metrics`, in the format that the monitor asks for.
//!
//! A registry is made for each answer. Counters and histograms are shared handles that live as long as the
//! process; gauges are read when the answer is made. Prometheus asks for OpenMetrics.
//! Other clients get the older text format, which `promtool check metrics` reads.

use std::fmt;

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::{EncodeGaugeValue, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The page `GET /metrics`. `registry` is called for every request, on a thread that may block.
pub fn page(registry: impl Fn() -> Registry + Clone + Send + Sync + 'static) -> Router {
    let answer = get(move |headers: HeaderMap| {
        let registry = registry.clone();
        async move {
            let text = tokio::task::spawn_blocking(move || encode(&registry())).await;
            text.ok().flatten().map_or_else(
                || StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                |text| answer(text, takes_open_metrics(&headers)),
            )
        }
    });
    Router::new().route("/metrics", answer)
}

fn takes_open_metrics(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok());
    accepted.is_some_and(|accepted| accepted.contains("application/openmetrics-text"))
}

fn answer(text: String, open_metrics: bool) -> Response {
    let (kind, text) = if open_metrics { (OPEN_METRICS, text) } else { (PLAIN, plain(&text)) };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// OpenMetrics text; `None` if a metric can't be formatted.
fn encode(registry: &Registry) -> Option<String> {
    let mut out = String::new();
    text::encode(&mut out, registry).ok()?;
    Some(out)
}

/// The older text format. There a counter's description has the name of its samples, and units and the end
/// are not written.
fn plain(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    // The description precedes the type, which alone says whether the metric is a counter.
    let mut help: Option<&str> = None;
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), ..) => help = Some(line),
            (Some("#"), Some("UNIT" | "EOF"), ..) => {}
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let suffix = if kind == "counter" { "_total" } else { "" };
                let described = help.take().and_then(|help| help.strip_prefix("# HELP "));
                let described = described.and_then(|help| help.strip_prefix(name)).unwrap_or_default();
                out.push_str(&format!("# HELP {name}{suffix}{described}\n# TYPE {name}{suffix} {kind}\n"));
            }
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

/// One value, read for one answer.
pub type Value<N> = ConstGauge<N>;

/// Values of one metric, told apart by labels, read for one answer.
#[derive(Debug, Default)]
pub struct Values<N> {
    names: &'static [&'static str],
    values: Vec<(Vec<String>, N)>,
}

impl<N> Values<N> {
    /// Values with one label.
    pub fn by(
        name: &'static [&'static str; 1],
        values: impl IntoIterator<Item = (impl Into<String>, N)>,
    ) -> Self {
        let values = values.into_iter().map(|(label, value)| (vec![label.into()], value)).collect();
        Self { names: name, values }
    }

    /// Values with several labels, in the order of `names`.
    pub fn by_all(
        names: &'static [&'static str],
        values: impl IntoIterator<Item = (Vec<String>, N)>,
    ) -> Self {
        Self { names, values: values.into_iter().collect() }
    }
}

impl<N: EncodeGaugeValue + Copy + fmt::Debug> EncodeMetric for Values<N> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        for (labels, value) in &self.values {
            let labels: Vec<(&str, &str)> =
                self.names.iter().copied().zip(labels.iter().map(String::as_str)).collect();
            ConstGauge::new(*value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// A histogram of durations from a millisecond to an hour.
pub fn durations() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
        900.0, 3600.0,
    ])
}

/// Milliseconds since 1970 as seconds, the unit of metrics.
pub fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::registry::Unit;

    fn registry() -> Registry {
        let mut registry = Registry::with_prefix("syncd_test");
        let sent = Counter::<u64>::default();
        sent.inc_by(7);
        registry.register_with_unit("sent", "Bytes sent", Unit::Bytes, sent);
        let names = [("we\"b\\1\n", 1u64), ("web2", 2)];
        registry.register("lag", "Generations behind", Values::by(&["agent"], names));
        registry
    }

    #[test]
    fn labels_are_escaped_and_every_name_is_described() {
        let text = encode(&registry()).unwrap();
        assert!(text.contains("syncd_test_sent_bytes_total 7\n"), "{text}");
        assert!(text.contains("syncd_test_lag{agent=\"we\\\"b\\\\1\\n\"} 1\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn the_older_format_describes_a_counter_by_the_name_of_its_samples() {
        let text = plain(&encode(&registry()).unwrap());
        assert!(
            text.starts_with(
                "# HELP syncd_test_sent_bytes_total Bytes sent.\n# TYPE syncd_test_sent_bytes_total counter\n"
            ),
            "{text}"
        );
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"), "{text}");
    }
}
