//! A directory as an object store, for a mounted file system or a web server's document root.
//!
//! An object gets its name once it is durable: by a link, which fails if the name is taken, or by a rename,
//! which replaces. A crash leaves a file in `tmp/`, which may be a second name of an object. It has a random
//! name, so that no writer on any host ever opens it again, and is removed after a day.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::{Bucket, BucketError, Fault, Listed};

/// Age from which no writer can still be at work on a file in `tmp/`.
const LEFT_BEHIND: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug)]
pub(super) struct DirectoryBucket {
    root: PathBuf,
    /// With the first write, what crashes have left is removed.
    cleaned: Once,
}

impl DirectoryBucket {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, cleaned: Once::new() }
    }

    /// Refuses names that lead elsewhere.
    fn path(&self, name: &str) -> io::Result<PathBuf> {
        let is_word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
        if name.split('/').all(is_word) {
            Ok(self.root.join(name))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "not a name of a published object"))
        }
    }

    /// Writes a durable file under a name of its own, which the caller gives its final name.
    fn write(&self, bytes: &[u8]) -> io::Result<PathBuf> {
        let directory = self.root.join("tmp");
        self.make_directory(&directory)?;
        self.cleaned.call_once(|| remove_left_behind(&directory));
        let path = directory.join(format!("{:016x}", getrandom::u64()?));
        let mut file = File::create_new(&path)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        written.inspect_err(|_| drop(fs::remove_file(&path)))?;
        Ok(path)
    }

    fn put_file(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (path, parent) = self.place(name)?;
        let written = self.write(bytes)?;
        fs::rename(&written, &path)?;
        sync(&parent)
    }

    fn create_file(&self, name: &str, bytes: &[u8]) -> io::Result<bool> {
        let (path, parent) = self.place(name)?;
        let written = self.write(bytes)?;
        let linked = fs::hard_link(&written, &path);
        fs::remove_file(&written)?;
        match linked {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            linked => linked?,
        }
        sync(&parent)?;
        Ok(true)
    }

    /// Path and directory of an object. Creates the directory.
    fn place(&self, name: &str) -> io::Result<(PathBuf, PathBuf)> {
        let path = self.path(name)?;
        let parent = path.parent().unwrap_or(&self.root).to_owned();
        self.make_directory(&parent)?;
        Ok((path, parent))
    }

    /// Creates a directory below the root, durably. The root itself may be a mount point that is empty or
    /// gone, and is never created.
    fn make_directory(&self, directory: &Path) -> io::Result<()> {
        self.check_root()?;
        match fs::create_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            created => created.and_then(|()| sync(&self.root)),
        }
    }

    fn check_root(&self) -> io::Result<()> {
        if self.root.try_exists()? {
            return Ok(());
        }
        let text = format!("there is no directory {}: create it, or mount it", self.root.display());
        Err(io::Error::new(io::ErrorKind::NotADirectory, text))
    }

    fn open(&self, name: &str) -> io::Result<Option<File>> {
        let opened = missing_is_none(File::open(self.path(name)?))?;
        if opened.is_none() {
            self.check_root()?;
        }
        Ok(opened)
    }

    fn list_directory(&self, prefix: &str) -> io::Result<Vec<Listed>> {
        let directory = self.path(prefix.trim_end_matches('/'))?;
        let Some(entries) = missing_is_none(fs::read_dir(directory))? else {
            return self.check_root().map(|()| Vec::new());
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Some(stat) = missing_is_none(entry.metadata())? else { continue };
            let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else {
                continue;
            };
            let modified = stat.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.push(Listed { name, bytes: stat.len(), modified });
        }
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

fn missing_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Failures are left to the next start: nothing depends on it.
fn remove_left_behind(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let modified = entry.metadata().and_then(|stat| stat.modified());
        if modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFT_BEHIND)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

impl Bucket for DirectoryBucket {
    fn get(&self, name: &str, limit: usize) -> Result<Option<Bytes>, BucketError> {
        let read = || {
            let Some(file) = self.open(name)? else { return Ok(None) };
            let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
            if length > limit {
                return Err(Fault::Long { limit });
            }
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(Some(bytes.into()))
        };
        read().map_err(|fault| BucketError::new("read", name, fault))
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Option<Bytes>, BucketError> {
        let read = || {
            let Some(file) = self.open(name)? else { return Ok(None) };
            let length = range.end.saturating_sub(range.start);
            let stored = file.metadata()?.len();
            if range.end > stored {
                let has = stored.saturating_sub(range.start);
                return Err(Fault::Short { wanted: length, has });
            }
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut bytes, range.start)?;
            Ok(Some(bytes.into()))
        };
        read().map_err(|fault| BucketError::new("read", name, fault))
    }

    fn put(&self, name: &str, bytes: Bytes) -> Result<(), BucketError> {
        self.put_file(name, &bytes).map_err(|source: io::Error| BucketError::new("write", name, source))
    }

    fn create(&self, name: &str, bytes: Bytes) -> Result<bool, BucketError> {
        self.create_file(name, &bytes).map_err(|source: io::Error| BucketError::new("create", name, source))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, BucketError> {
        self.list_directory(prefix).map_err(|source: io::Error| BucketError::new("list", prefix, source))
    }

    fn delete(&self, name: &str) -> Result<(), BucketError> {
        let deleted = self.path(name).and_then(|path| missing_is_none(fs::remove_file(path)));
        deleted.map(drop).map_err(|source: io::Error| BucketError::new("delete", name, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket() -> (tempfile::TempDir, DirectoryBucket) {
        let directory = tempfile::tempdir().unwrap();
        let bucket = DirectoryBucket::new(directory.path().to_owned());
        (directory, bucket)
    }

    #[test]
    fn one_of_many_writers_creates_an_object() {
        let (_directory, bucket) = bucket();
        let created = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..16u8)
                .map(|n| {
                    (
                        n,
                        scope.spawn({
                            let bucket = &bucket;
                            move || bucket.create("gen/1", Bytes::from(vec![n; 1000])).unwrap()
                        }),
                    )
                })
                .collect();
            let created = writers.into_iter().filter_map(|(n, writer)| writer.join().unwrap().then_some(n));
            created.collect::<Vec<_>>()
        });
        let [winner] = created[..] else { panic!("{created:?}") };
        assert_eq!(bucket.get("gen/1", 1000).unwrap().unwrap(), vec![winner; 1000]);
        assert_eq!(fs::read_dir(bucket.root.join("tmp")).unwrap().count(), 0, "no litter");
    }

    #[test]
    fn objects_are_replaced_read_in_part_listed_and_deleted() {
        let (_directory, bucket) = bucket();
        assert_eq!(bucket.get("head", 10).unwrap(), None);
        assert!(bucket.list("pack/").unwrap().is_empty());
        for content in ["one", "three"] {
            bucket.put("head", Bytes::from_static(content.as_bytes())).unwrap();
        }
        assert_eq!(bucket.get("head", 5).unwrap().unwrap(), "three");
        assert!(bucket.get("head", 4).is_err(), "longer than the limit");
        assert_eq!(bucket.read("head", 1..3).unwrap().unwrap(), "hr");
        assert!(bucket.read("head", 1..6).is_err(), "a short object is an error");
        for name in ["pack/b", "pack/a"] {
            bucket.put(name, Bytes::from_static(b"x")).unwrap();
        }
        let names: Vec<_> = bucket.list("pack/").unwrap().into_iter().map(|found| found.name).collect();
        assert_eq!(names, ["pack/a", "pack/b"]);
        bucket.delete("pack/a").unwrap();
        bucket.delete("pack/a").unwrap();
        assert_eq!(bucket.list("pack/").unwrap().len(), 1);
    }

    #[test]
    fn what_a_crash_has_left_is_never_opened_again_and_goes_after_a_day() {
        let (_directory, bucket) = bucket();
        assert!(bucket.create("gen/1", Bytes::from_static(b"one")).unwrap());
        // Killed between link and removal: one file with two names.
        let left = bucket.root.join("tmp/left");
        fs::hard_link(bucket.root.join("gen/1"), &left).unwrap();
        let again = DirectoryBucket::new(bucket.root.clone());
        for n in 0..20u8 {
            again.put("head", Bytes::from(vec![n])).unwrap();
        }
        assert_eq!(again.get("gen/1", 9).unwrap().unwrap(), "one");
        assert!(left.exists(), "it may be another writer's");
        let old = SystemTime::now() - LEFT_BEHIND - Duration::from_secs(60);
        File::open(&left).unwrap().set_modified(old).unwrap();
        DirectoryBucket::new(bucket.root.clone()).put("head", Bytes::new()).unwrap();
        assert!(!left.exists());
        assert_eq!(again.get("gen/1", 9).unwrap().unwrap(), "one");
    }

    #[test]
    fn a_directory_that_is_gone_is_an_error_and_not_created() {
        let (_directory, bucket) = bucket();
        let gone = DirectoryBucket::new(bucket.root.join("gone"));
        assert!(gone.get("head", 9).is_err());
        assert!(gone.list("gen/").is_err());
        assert!(gone.put("head", Bytes::new()).is_err());
        assert!(gone.create("gen/1", Bytes::new()).is_err());
        assert!(!gone.root.exists());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let (_directory, bucket) = bucket();
        for name in ["../x", "gen/../../x", "/etc/passwd", "gen//x", ""] {
            assert!(bucket.put(name, Bytes::new()).is_err(), "{name}");
            assert!(bucket.get(name, 9).is_err(), "{name}");
        }
    }
}
