//! Formats of log lines.

use std::fmt;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use syncd_shared::text::{is_unprintable, rfc3339};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// Time, level, message and fields, for people.
    #[default]
    Text,
    /// One JSON object a line: at, level, message, and the fields.
    Json,
    /// Priority, message and fields, for journald, which adds the time.
    Journal,
}

/// Sets the format of this process from now on. Only the first call has an effect.
pub fn set_format(format: LogFormat) {
    let _ = FORMAT.set(format);
}

/// Formats events in the format of the process.
pub(super) struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match FORMAT.get().copied().unwrap_or_default() {
            LogFormat::Text => text().format_event(context, writer, event),
            LogFormat::Json => writeln!(writer, "{}", json(now_ms(), event)),
            LogFormat::Journal => {
                let mut fields = FormattedFields::<N>::new(String::new());
                context.format_fields(fields.as_writer(), event)?;
                writeln!(writer, "<{}>{fields}", priority(*event.metadata().level()))
            }
        }
    }
}

fn text() -> Format<Full> {
    Format::default().with_target(false)
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Priority of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// The event as one line without characters that affect a terminal.
fn json(at_ms: i64, event: &Event<'_>) -> String {
    let mut fields = Fields(Map::new());
    event.record(&mut fields);
    fields.0.insert("at".into(), rfc3339(at_ms).into());
    fields.0.insert("level".into(), event.metadata().level().as_str().to_ascii_lowercase().into());
    let text = Value::Object(fields.0).to_string();
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unprintable(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| line.push_str(&format!("\\u{unit:04x}")));
        } else {
            line.push(c);
        }
    }
    line
}

struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

    struct Json(Arc<Mutex<String>>);

    impl<S: Subscriber> Layer<S> for Json {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            *self.0.lock().unwrap() = json(0, event);
        }
    }

    #[test]
    fn json_has_the_fields_and_nothing_that_moves_a_terminal() {
        let line = Arc::new(Mutex::new(String::new()));
        let subscriber = tracing_subscriber::registry().with(Json(line.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(agent = "web1", left_out = 3u64, path = %"a\u{202e}\n\u{9b}\u{e0041}", "refused");
        });
        let line = line.lock().unwrap().clone();
        assert!(!line.chars().any(is_unprintable), "{line}");
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"at": "1970-01-01T00:00:00.000Z", "level": "warn", "message": "refused",
                "agent": "web1", "left_out": 3, "path": "a\u{202e}\n\u{9b}\u{e0041}"})
        );
    }
}
