//! For tests that need limits or mounts of their own: runs one test again inside namespaces.

use std::process::Command;

const INSIDE: &str = "SYNCD_TEST_INSIDE_NAMESPACE";

/// Whether the calling test is to go on. Outside it runs itself again under `unshare` with these options, after `setup`
/// in a shell, asserts that it passed, and returns false; where namespaces are not to be had, it says so.
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
