//! Gives `version.rs` the commit and its date: in a release build of a checkout, unless the environment names
//! them.
//!
//! A debug build does not ask git, so that a commit compiles nothing again there.

use std::path::{Path, PathBuf};
use std::process::Command;

const COMMIT: &str = "SYNCD_COMMIT";
/// Seconds since 1970.
const DATE: &str = "SOURCE_DATE_EPOCH";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for name in [COMMIT, DATE] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let is_given = |name: &str| std::env::var_os(name).is_some();
    let is_release = std::env::var_os("PROFILE").is_some_and(|profile| profile == "release");
    // A date that git knows may not be that of a commit that the environment names.
    if is_given(COMMIT) || !is_release {
        return;
    }
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let Some(Head { commit, seconds, files }) = checkout.and_then(head) else { return };
    for file in files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    println!("cargo:rustc-env={COMMIT}={commit}");
    if !is_given(DATE) {
        println!("cargo:rustc-env={DATE}={seconds}");
    }
}

/// The commit that is checked out.
pub struct Head {
    /// 12 hexadecimal digits, or more if they are ambiguous.
    pub commit: String,
    /// Date of the commit, in seconds since 1970.
    pub seconds: String,
    /// Files and directories of which one changes when HEAD moves. They exist.
    pub files: Vec<PathBuf>,
}

/// `None`: `checkout` is not the top of a git repository, as in an unpacked archive, or there is no git.
pub fn head(checkout: &Path) -> Option<Head> {
    let top = git(checkout, &["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != checkout.canonicalize().ok()? {
        return None;
    }
    let commit = git(checkout, &["rev-parse", "--short=12", "HEAD"])?;
    let seconds = git(checkout, &["log", "-1", "--format=%ct"])?;
    let file = |name: &str| {
        let file = checkout.join(git(checkout, &["rev-parse", "--git-path", name])?);
        // Cargo takes a missing file for a changed one.
        file.exists().then_some(file)
    };
    let mut files = vec![file("HEAD")?];
    if let Some(branch) = git(checkout, &["symbolic-ref", "--quiet", "HEAD"]) {
        match file(&branch) {
            Some(branch) => files.push(branch),
            None => files.extend(["packed-refs", "refs/heads"].into_iter().filter_map(file)),
        }
    }
    Some(Head { commit, seconds, files })
}

fn git(checkout: &Path, arguments: &[&str]) -> Option<String> {
    let mut git = Command::new("git");
    // A hook of git that builds has them set.
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        git.env_remove(name);
    }
    let output = git.arg("-C").arg(checkout).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
