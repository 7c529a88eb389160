//! The version of this build: number, commit and date.
//!
//! The build of the packages sets `SYNCD_COMMIT` and `SOURCE_DATE_EPOCH`. Other release builds of a checkout
//! get them from git by `build.rs`. A debug build knows neither, so that a commit does not compile everything
//! again.

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
#[path = "../build.rs"]
#[expect(dead_code, reason = "its main function is run by cargo")]
mod build;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::*;

    fn git(directory: &Path, arguments: &[&str]) {
        let person = ["-c", "user.name=A", "-c", "user.email=a@example.org"];
        let date = "2026-11-30T12:00:00Z";
        let mut git = Command::new("git");
        git.arg("-C").arg(directory).args(person).args(arguments).env("GIT_COMMITTER_DATE", date);
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            git.env_remove(name);
        }
        let output = git.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn a_build_script_learns_the_commit_of_a_checkout_and_of_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let (top, inner) = (directory.path().join("top"), directory.path().join("top/sources"));
        std::fs::create_dir_all(&inner).unwrap();
        assert!(build::head(&top).is_none(), "no repository");
        git(&top, &["init", "-q"]);
        assert!(build::head(&top).is_none(), "no commit");
        let commit = ["commit", "-q", "--allow-empty", "--no-gpg-sign", "-m", "first"];
        git(&top, &commit);
        let head = build::head(&top).unwrap();
        assert_eq!((head.commit.len(), head.seconds.as_str(), head.files.len()), (12, "1796040000", 2));
        assert!(
            build::head(&inner).is_none(),
            "sources that were unpacked in a repository of something else"
        );
        // A commit changes the file of the branch, also after all branches were packed.
        for packed in [false, true] {
            if packed {
                git(&top, &["pack-refs", "--all"]);
            }
            let files = build::head(&top).unwrap().files;
            for file in &files {
                std::fs::File::open(file).unwrap().set_modified(UNIX_EPOCH).unwrap();
            }
            git(&top, &commit);
            let is_new = |file: &PathBuf| file.metadata().unwrap().modified().unwrap() != UNIX_EPOCH;
            assert!(files.iter().any(is_new), "{files:?}");
        }
        git(&top, &["checkout", "-q", "--detach"]);
        assert_eq!(build::head(&top).unwrap().files, [top.join(".git/HEAD")]);
    }

    #[test]
    fn commit_and_date_are_shown_where_the_build_knows_them() {
        let of = |commit, epoch| described("0.2.0", commit, epoch);
        assert_eq!(of(Some("6aaae49"), Some("1796000000")), "0.2.0 (commit 6aaae49, 2026-11-30)");
        assert_eq!(of(Some("6aaae49"), Some("soon")), "0.2.0 (commit 6aaae49)");
        assert_eq!(of(None, Some("0")), "0.2.0 (built without its commit)");
    }
}
