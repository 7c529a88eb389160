//! Runs a test again inside namespaces, for tests that need their own limits or mounts.

use std::process::Command;

const INSIDE: &str = "SYNCD_TEST_INSIDE_NAMESPACE";

/// Returns whether the calling test should proceed. Outside, runs the test again under `unshare` with these
/// options, after `setup` in a shell, asserts that it passed, and returns `false`. Reports if namespaces are
/// unavailable.
pub(crate) fn within(test: &str, unshare: &[&str], setup: &str) -> bool {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == test) {
        return true;
    }
    let probe = Command::new("unshare").args(unshare).args(["sh", "-c", setup]).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("not tested, no namespaces here: {test}");
        return false;
    }
    let script = format!("{setup} && exec \"$0\" --exact --nocapture {test}");
    let output = Command::new("unshare")
        .args(unshare)
        .args(["sh", "-c", &script])
        .arg(std::env::current_exe().expect("the test's own path"))
        .env(INSIDE, test)
        .output()
        .expect("unshare ran before");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}
