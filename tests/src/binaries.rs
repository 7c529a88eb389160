//! Finds the programs under test beside the test executable, where the same cargo built them.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// Path of `syncd-origin`, `syncd-agent` or another binary of the workspace. Builds them once for each test
/// process, unless `SYNCD_TESTS_BUILT` says that `tests/run` has done so. Panics if the build fails.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(build);
    let path = profile_directory().join(name);
    assert!(path.exists(), "{} is missing: run ./tests/run, or cargo build --workspace", path.display());
    path
}

/// `target/debug` or `target/release`, wherever this test executable is.
pub fn profile_directory() -> PathBuf {
    let executable = std::env::current_exe().expect("the path of this test executable");
    let mut directory = executable.parent().expect("an executable is in a directory").to_path_buf();
    if directory.ends_with("deps") {
        directory.pop();
    }
    directory
}

fn build() {
    if std::env::var_os("SYNCD_TESTS_BUILT").is_some() {
        return;
    }
    let directory = profile_directory();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([
        "build",
        "--quiet",
        "-p",
        "syncd-origin",
        "-p",
        "syncd-agent",
        "-p",
        "syncd-load",
        "-p",
        "syncd-sim",
        "-p",
        "syncd-endurance",
        "-p",
        "syncd-quickstart",
        "--bins",
    ]);
    cargo.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
    if let Some(target) = directory.parent() {
        cargo.arg("--target-dir").arg(target);
    }
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("start cargo build");
    assert!(status.success(), "building the binaries under test failed");
}
