//! The version of this build: number, commit and date.
//!
//! The build of the packages sets `SYNCD_COMMIT` and `SOURCE_DATE_EPOCH`. A plain `cargo build` knows
//! neither, so that a commit does not compile everything again.

use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

static VERSION: LazyLock<String> = LazyLock::new(|| {
    described(env!("CARGO_PKG_VERSION"), option_env!("SYNCD_COMMIT"), option_env!("SOURCE_DATE_EPOCH"))
});

/// As in `0.2.0 (commit 6aaae49, 2026-11-30)`.
pub fn version() -> &'static str {
    &VERSION
}

fn described(number: &str, commit: Option<&str>, epoch: Option<&str>) -> String {
    let date = epoch.and_then(|seconds| {
        let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds.parse().ok()?))?;
        // Formatting fails only past the year 9999.
        let text = humantime::format_rfc3339_seconds(time).to_string();
        Some(text.split('T').next().unwrap_or_default().to_owned())
    });
    match (commit, date) {
        (Some(commit), Some(date)) => format!("{number} (commit {commit}, {date})"),
        (Some(commit), None) => format!("{number} (commit {commit})"),
        (None, _) => format!("{number} (built without its commit)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commit_and_date_are_shown_where_the_build_knows_them() {
        let of = |commit, epoch| described("0.2.0", commit, epoch);
        assert_eq!(of(Some("6aaae49"), Some("1796000000")), "0.2.0 (commit 6aaae49, 2026-11-30)");
        assert_eq!(of(Some("6aaae49"), Some("soon")), "0.2.0 (commit 6aaae49)");
        assert_eq!(of(None, Some("0")), "0.2.0 (built without its commit)");
    }
}
