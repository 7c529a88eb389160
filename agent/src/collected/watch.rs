//! Watches collected directories: one inotify watch for each directory. Events are hints; the engine looks.
//!
//! A file is reported when it was closed after writing, or moved, not while it is being written. Directories
//! that visitors replace by symlinks may lead a watch elsewhere, which causes useless hints and no more.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use syncd_shared::collected::CollectedName;
use syncd_shared::{Component, TreePath};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::engine::{Event, Watches};

const BUFFER_BYTES: usize = 64 * 1024;
/// Longest time until a stop is noticed.
const LOOK: Duration = Duration::from_millis(200);

type Watched = Arc<Mutex<HashMap<i32, (CollectedName, TreePath)>>>;

/// The watches of all collected directories.
pub(super) struct Watch {
    inotify: Arc<OwnedFd>,
    watched: Watched,
    parent: PathBuf,
}

impl Watch {
    /// Starts the thread that reads events. `parent`: ROOT/collected.
    pub fn start(parent: &Path, events: mpsc::Sender<Event>, stop: CancellationToken) -> io::Result<Self> {
        let inotify = Arc::new(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?);
        let watched = Watched::default();
        let watch = Self { inotify: inotify.clone(), watched: watched.clone(), parent: parent.to_owned() };
        let run = move || {
            if let Err(error) = read(&inotify, &watched, &events, &stop) {
                tracing::error!(%error, "the watch of collected directories ended: changes are found hourly");
            }
        };
        std::thread::Builder::new().name("collected-watch".into()).spawn(run)?;
        Ok(watch)
    }
}

impl Watches for Watch {
    fn add(&self, name: &CollectedName, path: &TreePath) -> io::Result<()> {
        let at = self.parent.join(name.as_str()).join(OsStr::from_bytes(path.as_bytes()));
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW;
        match inotify::add_watch(&*self.inotify, &at, flags) {
            Ok(number) => {
                let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
                watched.insert(number, (name.clone(), path.clone()));
                Ok(())
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Reads events until `stop`.
fn read(
    inotify: &OwnedFd,
    watched: &Watched,
    events: &mpsc::Sender<Event>,
    stop: &CancellationToken,
) -> io::Result<()> {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
    let mut reader = Reader::new(inotify, &mut buffer);
    let look = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
    while !stop.is_cancelled() {
        let event = match reader.next() {
            Ok(event) => hint(&event, watched),
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(inotify, PollFlags::IN)], Some(&look)) {
                Ok(_) | Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            },
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        if let Some(event) = event
            && events.blocking_send(event).is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

/// The meaning of an event to the engine.
fn hint(event: &inotify::Event<'_>, watched: &Watched) -> Option<Event> {
    let flags = event.events();
    if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
        return Some(Event::Everything);
    }
    let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
    if flags.contains(ReadFlags::IGNORED) {
        watched.remove(&event.wd());
        return None;
    }
    let (directory, parent) = watched.get(&event.wd())?;
    let Some(name) = event.file_name() else {
        return Some(Event::Changed(directory.clone(), parent.clone())).filter(|_| !parent.is_root());
    };
    let path = parent.join(&Component::new(name.to_bytes()).ok()?).ok()?;
    let is_directory = flags.contains(ReadFlags::ISDIR);
    if is_directory && flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
        return Some(Event::Below(directory.clone(), path));
    }
    match () {
        () if flags.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO) => {
            Some(Event::Settled(directory.clone(), path))
        }
        // A new file is reported again when it is closed.
        () if flags.contains(ReadFlags::CREATE) && !is_directory => None,
        () => Some(Event::Changed(directory.clone(), path)),
    }
}
