//! Takes a tree of files into a collected directory, and writes a collected directory to a tree of files.
//! Blocks.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use futures::future::join_all;
use syncd_shared::collected::message::Decision;
use syncd_shared::collected::{Answer, Change, CollectedName, FileState, State, Verdict, VersionNumber};
use syncd_shared::directory::{MODE_MASK, Timestamp};
use syncd_shared::{Component, ContentHash, TreePath};
use tokio::runtime::Handle;

use super::{AT_ORIGIN, CollectError, Collection, NodeChange, config, io_error};

const PIECE_BYTES: usize = 64 * 1024;
/// Changes judged at once.
const BATCH: usize = 256;

/// Result of taking or writing files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moved {
    /// Files that are, or were already, the current ones.
    pub files: u64,
    /// Paths left out, with reasons.
    pub left_out: Vec<String>,
}

impl Collection {
    /// Submits changes of a person, against the current versions. Returns the paths that were not taken.
    pub fn submit_all(
        &self,
        name: &CollectedName,
        changes: Vec<(TreePath, State)>,
    ) -> Result<Moved, Arc<CollectError>> {
        let mut moved = Moved::default();
        for batch in changes.chunks(BATCH) {
            let mut submitted = Vec::new();
            for (path, state) in batch {
                let base = self.current(name, path)?;
                let change = Change { base, state: *state };
                let (directory, node) = (name.clone(), AT_ORIGIN.to_owned());
                submitted.push(self.submit(NodeChange { directory, node, path: path.clone(), change }));
            }
            let answers = Handle::current().block_on(join_all(submitted));
            for ((path, state), answer) in batch.iter().zip(answers) {
                let reason = match answer? {
                    Decision::Answered(Answer { verdict: Verdict::Take | Verdict::Same, .. }) => {
                        moved.files += u64::from(matches!(state, State::File(_)));
                        continue;
                    }
                    Decision::Answered(_) => "something else stands there".to_owned(),
                    Decision::NeedsContent => "its content is gone".to_owned(),
                    Decision::Refused { reason } => reason,
                };
                moved.left_out.push(format!("{path}: {reason}"));
            }
        }
        Ok(moved)
    }

    fn current(&self, name: &CollectedName, path: &TreePath) -> Result<VersionNumber, CollectError> {
        let history = self.history(name, path)?;
        Ok(history.last().map_or(VersionNumber::NONE, |last| last.version.number))
    }

    /// Takes all files below `from`. Versions at their paths become past.
    pub fn adopt(&self, name: &CollectedName, from: &Path) -> Result<Moved, Arc<CollectError>> {
        self.directory(name)?;
        let (mut found, mut left_out) = (Vec::new(), Vec::new());
        let mut directories = vec![TreePath::root()];
        while let Some(directory) = directories.pop() {
            let at = config::at(from, &directory);
            let listed = fs::read_dir(&at).map_err(io_error("read", &at))?;
            for entry in listed {
                let entry = entry.map_err(io_error("read", &at))?;
                let child = Component::new(entry.file_name().as_bytes());
                let Ok(path) = child.and_then(|child| directory.join(&child)) else {
                    left_out.push(format!("{directory}: a name that no path can have"));
                    continue;
                };
                match self.read(&entry.path())? {
                    Some(state) => {
                        if matches!(state, State::Directory { .. }) {
                            directories.push(path.clone());
                        }
                        found.push((path, state));
                    }
                    None => left_out.push(format!("{path}: neither a file nor a directory, or setuid")),
                }
            }
        }
        let mut moved = self.submit_all(name, found)?;
        moved.left_out.splice(0..0, left_out);
        Ok(moved)
    }

    /// The state of an entry, whose content is stored; `None`: it is not taken.
    fn read(&self, at: &Path) -> Result<Option<State>, CollectError> {
        let failed = || io_error("read", at);
        let stat = fs::symlink_metadata(at).map_err(failed())?;
        let mode = (stat.mode() & u32::from(MODE_MASK)) as u16;
        if stat.is_dir() {
            return Ok(Some(State::Directory { mode }));
        }
        if !stat.is_file() || stat.mode() & 0o6000 != 0 {
            return Ok(None);
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(at).map_err(failed())?).map_err(failed())?;
        let content = ContentHash::from_bytes(hasher.finalize().into());
        if !self.contents().has(&content, stat.size()) {
            let mut upload = self.contents().upload(content, stat.size())?;
            let mut file = File::open(at).map_err(failed())?;
            let mut buffer = vec![0; PIECE_BYTES];
            loop {
                match file.read(&mut buffer).map_err(failed())? {
                    0 => break,
                    read => upload.write(buffer.get(..read).unwrap_or_default())?,
                }
            }
            upload.finish()?;
        }
        let nanoseconds = u32::try_from(stat.mtime_nsec()).unwrap_or(0);
        let mtime = Timestamp { seconds: stat.mtime(), nanoseconds };
        Ok(Some(State::File(FileState { content, size: stat.size(), mode, mtime })))
    }

    /// Writes all current files to `to`, which must be empty, or missing and is then created.
    pub fn release(&self, name: &CollectedName, to: &Path) -> Result<Moved, CollectError> {
        let is_used = fs::read_dir(to).is_ok_and(|mut listed| listed.next().is_some());
        if is_used {
            return Err(CollectError::NotEmpty { path: to.to_owned() });
        }
        fs::create_dir_all(to).map_err(io_error("create", to))?;
        let mut moved = Moved::default();
        for (path, chain, _) in self.chains(name, &TreePath::root())? {
            let at = config::at(to, &path);
            match chain.current().state {
                State::Absent => {}
                State::Directory { mode } => {
                    fs::create_dir_all(&at).map_err(io_error("create", &at))?;
                    // Others may have to write below it.
                    let mode = Permissions::from_mode(u32::from(mode) | 0o700);
                    fs::set_permissions(&at, mode).map_err(io_error("write", &at))?;
                }
                State::File(file) => {
                    self.write(&file, &at).map_err(io_error("write", &at))?;
                    moved.files += 1;
                }
            }
        }
        Ok(moved)
    }

    fn write(&self, file: &FileState, at: &Path) -> io::Result<()> {
        if let Some(parent) = at.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut from = self.contents().open_content(&file.content).map_err(io::Error::other)?;
        let mut to = File::create_new(at)?;
        io::copy(&mut from, &mut to)?;
        let since = Duration::new(file.mtime.seconds.unsigned_abs(), file.mtime.nanoseconds);
        let time = if file.mtime.seconds < 0 { UNIX_EPOCH } else { UNIX_EPOCH + since };
        to.set_times(FileTimes::new().set_modified(time))?;
        to.set_permissions(Permissions::from_mode(u32::from(file.mode)))
    }
}
