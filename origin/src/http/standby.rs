//! Health and metrics of an origin on standby.
//!
//! Status 200 while it follows what the other origin publishes, so that it could take its place.

use axum::Router;
use prometheus_client::registry::Registry;
use syncd_runtime::health::Health;
use syncd_runtime::metrics::{Value, Values};
use tokio::sync::watch;

/// State of an origin on standby.
#[derive(Debug, Clone, Default)]
pub struct Followed {
    /// The last generation of the other origin.
    pub generation: Option<u64>,
    /// Why the last look at the published tree failed.
    pub error: Option<String>,
}

/// The pages of its HTTP port.
pub fn pages(followed: &watch::Receiver<Followed>) -> Router {
    let (told, counted) = (followed.clone(), followed.clone());
    let health = syncd_runtime::health::page(move || health(&told.borrow()));
    health.merge(syncd_runtime::metrics::page(move || registry(&counted.borrow())))
}

fn health(followed: &Followed) -> Health {
    let Followed { generation, error } = followed;
    let shown = generation.map_or("no generation yet".to_owned(), |number| format!("generation {number}"));
    match error {
        None => Health { is_well: generation.is_some(), text: format!("standby; {shown}") },
        Some(error) => Health { is_well: false, text: format!("standby; {shown}; {error}") },
    }
}

/// Metrics with the names that the origin has after its promotion.
fn registry(followed: &Followed) -> Registry {
    let mut registry = Registry::with_prefix("syncd_origin");
    let version = Values::by(&["version"], [(env!("CARGO_PKG_VERSION"), 1u64)]);
    registry.register("build_info", "1, with the version of the program", version);
    let state = Values::by(&["state"], [("standby", 1u64)]);
    registry.register("state", "1 for the state that the origin is in", state);
    let help = "1 while the published tree can't be followed";
    registry.register("trouble", help, Value::new(u64::from(followed.error.is_some())));
    if let Some(generation) = followed.generation {
        registry.register("generation", "Number of the last generation here", Value::new(generation));
    }
    registry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_is_well_once_it_has_a_generation_and_while_it_follows() {
        let told = |generation, error: Option<&str>| {
            let Health { is_well, text } = health(&Followed { generation, error: error.map(str::to_owned) });
            (is_well, text)
        };
        assert_eq!(told(None, None), (false, "standby; no generation yet".into()));
        assert_eq!(told(Some(7), None), (true, "standby; generation 7".into()));
        assert_eq!(told(Some(7), Some("it is down")), (false, "standby; generation 7; it is down".into()));
    }
}
