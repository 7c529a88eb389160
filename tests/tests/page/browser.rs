//! A real browser that loads pages of the origin, by tests/page/drive.mjs.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use syncd_tests::process::run_within;
use syncd_tests::require_program;

/// Size limit of everything that one page needs.
pub const PAGE_MAX_BYTES: u64 = 300_000;

/// The browser's driver in tests/page, with its packages.
fn driver() -> &'static Path {
    static DRIVER: OnceLock<PathBuf> = OnceLock::new();
    DRIVER.get_or_init(|| {
        require_program("chromium", "chromium");
        require_program("npm", "npm");
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
        if !directory.join("node_modules/puppeteer-core").exists() {
            let mut install = Command::new("npm");
            install.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&directory);
            run_within(&mut install, Duration::from_secs(300)).expect_success();
        }
        directory.join("drive.mjs")
    })
}

/// A browser that plays one scene of the driver.
pub struct Browser {
    child: Child,
    steps: BufReader<ChildStdout>,
}

impl Browser {
    pub fn start(scene: &str, address: &str, argument: &str) -> Self {
        let mut node = Command::new("node");
        let url =
            if address.starts_with("https://") { address.to_owned() } else { format!("http://{address}") };
        node.arg(driver()).args([scene, &url, argument]);
        let mut child = node.stdout(Stdio::piped()).spawn().expect("start node");
        let steps = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, steps }
    }

    /// The next step that it tells of.
    #[track_caller]
    pub fn step(&mut self) -> Value {
        let mut line = String::new();
        self.steps.read_line(&mut line).expect("a step");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("no step: {error}: {line:?}"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends its browser, which has a process group of its own, on this signal.
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Loads a page, and checks what every page must keep to.
#[track_caller]
pub fn visit(address: &str, path: &str, options: Value) -> Value {
    let visited = Browser::start("visit", &format!("{address}{path}"), &options.to_string()).step();
    assert_eq!(visited["status"], 200, "{path}: {visited}");
    assert_eq!(visited["errors"], json!([]), "{path}: {visited}");
    let bytes = visited["bytes"].as_u64().expect("bytes");
    assert!(bytes < PAGE_MAX_BYTES, "{path}: {bytes} bytes");
    let own = format!("http://{address}/");
    let requests = visited["requests"].as_array().expect("requests");
    assert!(requests.iter().all(|url| url.as_str().is_some_and(|url| url.starts_with(&own))), "{visited}");
    if options["axe"] == true {
        assert_eq!(visited["violations"], json!([]), "{path} {options}");
    }
    assert_eq!(visited["sideways"], false, "{path} {options}: wider than the window");
    // The document, its style sheet, script and icon. Streams of events are opened again now and then.
    let loads = requests.iter().filter(|url| !url.as_str().is_some_and(|url| url.contains("/live/"))).count();
    assert!(loads <= 4, "{path}: {visited}");
    let ms = visited["interactive_ms"].as_f64().expect("a time");
    println!("{path} {options}: {bytes} bytes in {loads} requests, interactive after {ms:.0} ms");
    visited
}
