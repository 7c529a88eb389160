//! Real content in two versions. It is downloaded once by `apt-get download` and `npm pack`, which verify it,
//! and unpacked once. All suites and the bench share the cache: `SYNCD_CORPORA`, by default `target/corpora`.
//!
//! The cache has `NAME/a` and `NAME/b` for the two versions, and `NAME/versions` for their descriptions. A
//! directory gets its name when it is complete. It is never changed afterwards: tests work on copies
//! ([`Corpus::copy`]).

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use walkdir::WalkDir;

use crate::Seeded;
use crate::process::{run_within, tool};
use crate::scene::{is_root, require_program};

/// A tree in two versions.
pub struct Corpus {
    directory: PathBuf,
}

impl Corpus {
    /// The first version. Must not be changed.
    pub fn a(&self) -> PathBuf {
        self.directory.join("a")
    }

    /// The second version. Must not be changed.
    pub fn b(&self) -> PathBuf {
        self.directory.join("b")
    }

    /// Description of the two versions.
    pub fn versions(&self) -> String {
        fs::read_to_string(self.directory.join("versions")).unwrap_or_default().trim().to_string()
    }

    /// Copies a version with all metadata to a new directory.
    #[track_caller]
    pub fn copy(version: &Path, to: &Path) {
        tool("cp", [OsString::from("-a"), "--reflink=auto".into(), version.into(), to.into()]);
    }

    /// Turns `tree` into `version` as a deployment would: by rsync, with whole files and deletions.
    #[track_caller]
    pub fn deploy(version: &Path, tree: &Path) {
        let slashed = |path: &Path| format!("{}/", path.display());
        tool("rsync", ["-a", "--whole-file", "--delete", &slashed(version), &slashed(tree)]);
    }
}

/// WordPress 6.4 and 6.5: about 3,400 files, 40 MB.
#[track_caller]
pub fn wordpress() -> Corpus {
    corpus("wordpress", |work| {
        require_program("npm", "npm");
        require_program("unzip", "unzip");
        const PACKAGE: &str = "@wp-playground/wordpress-builds@0.9.19";
        const SHA256: &str = "e62ccde83c48571e7f38b46030f13a9a868e42086b1c7c80b54cde535edd114d";
        let pack = run_within(
            Command::new("npm").args(["pack", "--silent", PACKAGE]).current_dir(work),
            Duration::from_secs(600),
        )
        .expect_success();
        let archive = work.join(pack.stdout.trim());
        let sum = tool("sha256sum", [archive.as_os_str()]).stdout;
        assert!(sum.starts_with(SHA256), "{PACKAGE} is not what it was: {sum}");
        tool("tar", [OsString::from("xzf"), archive.into(), "-C".into(), work.into()]);
        for (side, release) in [("a", "6.4"), ("b", "6.5")] {
            let to = work.join(side);
            // The PHP files are in an archive, and the files for browsers are beside it.
            let php = work.join(format!("package/src/wordpress/wp-{release}.zip"));
            tool("unzip", [OsString::from("-q"), php.into(), "-d".into(), to.clone().into()]);
            let assets = work.join(format!("package/public/wp-{release}/."));
            tool("cp", [OsString::from("-a"), assets.into(), to.into()]);
        }
        format!("WordPress 6.4 -> 6.5 (npm {PACKAGE})")
    })
}

/// A part of Debian's documentation for the suites: the linux and Python packages, 16,500 files, 300 MB.
#[track_caller]
pub fn docs_small() -> Corpus {
    corpus("docs-small", |work| debian(work, &[LINUX, PYTHON]))
}

/// Debian's documentation as measured in docs/performance.md: 34,851 files, 616 MB.
#[track_caller]
pub fn docs() -> Corpus {
    corpus("docs", |work| debian(work, &[LINUX, OPENJDK, PYTHON, BOOST]))
}

/// A package, and its versions for `a` and `b`.
type Package = (&'static str, &'static str, &'static str);
const LINUX: Package = ("linux-doc-6.1", "6.1.190-1", "6.1.192-1");
const OPENJDK: Package = ("openjdk-17-doc", "17.0.19+10-1~deb12u2", "17.0.21.1+2-1~deb12u1");
const PYTHON: Package = ("python3.11-doc", "3.11.2-6+deb12u8", "3.11.2-6+deb12u9");
const BOOST: Package = ("libboost1.81-doc", "1.81.0-5+deb12u1", "1.81.0-5+deb12u1");

fn debian(work: &Path, packages: &[Package]) -> String {
    if is_root() {
        // Older lists name versions that no longer exist.
        run_within(Command::new("apt-get").args(["update", "-qq"]), Duration::from_secs(600))
            .expect_success();
    }
    let mut said = Vec::new();
    for package in packages {
        let (old, new) = available(package);
        for (side, version) in [("a", &old), ("b", &new)] {
            let name = format!("{}={version}", package.0);
            let get = work.join(format!("get-{side}-{}", package.0));
            fs::create_dir_all(&get).expect("create a download directory");
            run_within(
                Command::new("apt-get").args(["download", "--quiet", &name]).current_dir(&get),
                Duration::from_secs(600),
            )
            .expect_success();
            for archive in fs::read_dir(&get).expect("list downloads") {
                let archive = archive.expect("list downloads").path();
                let to = work.join(side);
                fs::create_dir_all(&to).expect("create a version's directory");
                tool("dpkg-deb", [OsString::from("-x"), archive.into(), to.into()]);
            }
        }
        said.push(format!("{} {old} -> {new}", package.0));
    }
    said.join(", ")
}

/// The two wanted versions, or the two newest available ones if one is missing.
fn available(package: &Package) -> (String, String) {
    let listed = tool("apt-cache", ["madison", package.0]).stdout;
    let mut versions: Vec<String> = Vec::new();
    for version in listed.lines().filter_map(|line| line.split('|').nth(1)).map(|v| v.trim().to_string()) {
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    let has = |version: &str| versions.iter().any(|v| v == version);
    if has(package.1) && has(package.2) {
        return (package.1.to_string(), package.2.to_string());
    }
    let newest =
        versions.first().unwrap_or_else(|| panic!("no {} here: run apt-get update", package.0)).clone();
    (versions.get(1).unwrap_or(&newest).clone(), newest)
}

/// Many small files, as in docs/performance.md: 200,000 files of at most 4 KB, 200 in each directory. Only
/// version `a` exists.
#[track_caller]
pub fn many(files: usize) -> Corpus {
    corpus(&format!("many-{files}"), |work| {
        fs::create_dir(work.join("a")).expect("create a version's directory");
        grow(&work.join("a"), files);
        format!("{files} small files")
    })
}

/// Fills the directory `root` like [`many`]: small files made from those of `docs-small`, each with a line of
/// its own.
#[track_caller]
pub fn grow(root: &Path, files: usize) {
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for item in WalkDir::new(docs_small().a()).sort_by_file_name() {
        let item = item.expect("walk a corpus");
        let small = item.metadata().is_ok_and(|m| m.is_file() && (64..4000).contains(&m.len()));
        if small && seeds.len() < 5000 {
            seeds.push(fs::read(item.path()).expect("read a corpus"));
        }
    }
    let mut random = Seeded::new(200_000);
    for number in 0..files {
        let page = root.join(page(number));
        if number % 200 == 0 {
            fs::create_dir_all(page.parent().unwrap_or(root)).expect("create a directory");
        }
        let mut content = random.pick(&seeds).cloned().unwrap_or_default();
        content.extend_from_slice(format!("\nfile {number}\n").as_bytes());
        fs::write(page, content).expect("write a file");
    }
}

/// Path of file `number` in a tree made by [`grow`].
pub fn page(number: usize) -> PathBuf {
    format!("{:02}/{:03}/page-{number}.html", number / 200 % 32, number / 200).into()
}

/// Makes a corpus unless the cache has it. Processes that need the same one wait for each other.
#[track_caller]
fn corpus(name: &str, make: impl FnOnce(&Path) -> String) -> Corpus {
    let cache = cache_directory();
    fs::create_dir_all(&cache).expect("create the corpora's cache");
    let lock = fs::File::create(cache.join(format!(".{name}.lock"))).expect("create a lock file");
    flock(&lock, FlockOperation::LockExclusive).expect("lock a corpus");
    let directory = cache.join(name);
    if !directory.join("versions").exists() {
        let work = cache.join(format!(".{name}.new"));
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).expect("create a work directory");
        let versions = make(&work);
        align_times(&work.join("a"), &work.join("b"));
        fs::write(work.join("versions"), format!("{versions}\n")).expect("write versions");
        for item in fs::read_dir(&work).expect("list a work directory") {
            let path = item.expect("list a work directory").path();
            if !["a", "b", "versions"].iter().any(|keep| path.ends_with(keep)) {
                tool("rm", [OsString::from("-rf"), path.into()]);
            }
        }
        fs::rename(&work, &directory).expect("publish a corpus");
    }
    Corpus { directory }
}

fn cache_directory() -> PathBuf {
    if let Some(path) = std::env::var_os("SYNCD_CORPORA") {
        return path.into();
    }
    let profile = crate::binaries::profile_directory();
    profile.parent().map_or_else(|| profile.clone(), Path::to_path_buf).join("corpora")
}

/// Gives files that are equal in both versions equal times, as a careful deployment would. Every changed file
/// gets a time of its own, to the nanosecond.
fn align_times(a: &Path, b: &Path) {
    if !b.exists() {
        return;
    }
    for item in WalkDir::new(b).sort_by_file_name() {
        let item = item.expect("walk a corpus");
        let (Ok(relative), Ok(metadata)) = (item.path().strip_prefix(b), item.metadata()) else { continue };
        if !metadata.is_file() {
            continue;
        }
        let old = a.join(relative);
        let same = fs::symlink_metadata(&old).is_ok_and(|m| m.is_file() && m.len() == metadata.len())
            && fs::read(&old).ok() == fs::read(item.path()).ok();
        let time = if same {
            fs::metadata(&old).and_then(|m| m.modified()).expect("the old time")
        } else {
            UNIX_EPOCH
                + Duration::new(
                    1_700_000_000 + metadata.ino() % 1_000_000,
                    (metadata.len() % 1_000_000) as u32,
                )
        };
        fs::File::options()
            .write(true)
            .open(item.path())
            .and_then(|file| file.set_modified(time))
            .expect("set a time");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wordpress_has_two_versions_that_differ() {
        let corpus = wordpress();
        for version in [corpus.a(), corpus.b()] {
            assert!(version.join("wp-includes/version.php").is_file(), "{}", version.display());
            assert!(version.join("wp-includes/css").is_dir(), "{}", version.display());
        }
        let changed = crate::oracle::rsync_differences(&corpus.a(), &corpus.b()).lines().count();
        assert!(changed > 100, "{changed} changes");
    }
}
