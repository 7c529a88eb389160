//! The owner of journal and files: one thread. Events come in, messages to the origin go out.
//!
//! Each turn looks at some of the paths that may have changed, makes what it learned durable, and only then
//! sends. A path whose change is unanswered is left alone until the answer.

mod look;
#[cfg(test)]
mod tests;
mod transfers;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::collected_down::Message as Down;
use syncd_proto::v1::collected_up::Message as Up;
use syncd_shared::TreePath;
use syncd_shared::collected::message::{Decision, MessageError, path};
use syncd_shared::collected::{Change, CollectedName, CollectedRules, Ruling, State, Version};
use syncd_shared::text::error_chain;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::error::{AGAIN, CollectedError};
use super::files::Files;
use super::journal::{Journal, Known, Position};
use super::report::CollectedReport;
use crate::clock::Clock;
pub use transfers::Transfer;

/// Paths looked at in one turn.
const TURN: usize = 128;
/// Changes that may be unanswered.
const UNANSWERED_MAX: usize = 256;
/// A turn sends no more contents and places no more versions once those have this many bytes.
const TURN_BYTES: u64 = 16 * 1024 * 1024;
/// Everything is looked at again this often, for what the watch missed.
const WALK_EVERY: Duration = Duration::from_secs(60 * 60);
/// Shortest time between two reports.
const REPORT_EVERY: Duration = Duration::from_millis(250);

type Key = (CollectedName, TreePath);

/// An event of the file system or of the connection.
pub enum Event {
    /// A file was closed after it was written, or moved here.
    Settled(CollectedName, TreePath),
    /// A path may have changed.
    Changed(CollectedName, TreePath),
    /// A path and everything below it may have changed.
    Below(CollectedName, TreePath),
    /// Anything may have changed.
    Everything,
    Connected(Box<dyn Link>),
    Received(Box<v1::CollectedDown>),
    Disconnected,
    Stop,
}

/// A connection to the origin. Dropping it ends it. Calls block.
pub trait Link: Send {
    fn send(&mut self, message: Up) -> Result<(), CollectedError>;

    /// Sends contents, several at a time. Returns the outcome of each, in order.
    fn upload(&mut self, contents: &mut [Transfer]) -> Vec<Result<(), CollectedError>>;

    /// Receives contents, several at a time, and of each at most the announced bytes. Returns the outcome of
    /// each, in order. The caller checks the hashes.
    fn download(&mut self, contents: &mut [Transfer]) -> Vec<Result<(), CollectedError>>;
}

/// Reports changes in directories, as events.
pub trait Watches: Send {
    /// Watches a directory from now on. It must be listed afterwards.
    fn add(&self, name: &CollectedName, path: &TreePath) -> io::Result<()>;
}

/// Opens the collected directories that exist.
pub(super) type Open = Box<dyn Fn() -> Result<Vec<(CollectedName, Files)>, CollectedError> + Send>;

/// A local file that is not collected. It is tried again in the next session, and with the hourly walk.
struct Refusal {
    /// The state that the origin refused; `None`: whatever stands there.
    state: Option<State>,
    /// The newest version when it was offered. With a newer one, the origin may judge otherwise.
    newest: Option<Version>,
    reason: String,
}

/// A change that was sent, until its answer.
#[derive(Clone)]
struct Offer {
    key: Key,
    change: Change,
    /// The newest version when it was sent.
    newest: Option<Version>,
}

/// The surroundings of an engine.
pub(super) struct Parts {
    pub journal: Journal,
    pub watch: Box<dyn Watches>,
    pub open: Open,
    pub clock: Clock,
    pub report: watch::Sender<Option<CollectedReport>>,
}

/// See the module documentation.
pub struct Engine {
    parts: Parts,
    directories: BTreeMap<CollectedName, Files>,
    /// Rules of the directories, from the newest session.
    rules: BTreeMap<CollectedName, CollectedRules>,
    refused: BTreeMap<Key, Refusal>,
    /// Files that were reported as closed, and not read since.
    settled: HashSet<Key>,
    kept_aside: u64,
    /// The last error, until nothing is waiting to be tried again.
    trouble: Option<String>,
    report_due: Instant,
    /// The last turn came too soon after a report.
    is_unreported: bool,
    /// Directories whose versions are all known in this session.
    caught_up: BTreeSet<CollectedName>,
    link: Option<Box<dyn Link>>,
    waiting: BTreeSet<Key>,
    again: BTreeMap<Key, Instant>,
    /// Unanswered changes by ID.
    unanswered: HashMap<u64, Offer>,
    busy: BTreeSet<Key>,
    /// Unanswered changes whose contents the origin has asked for.
    wanted: VecDeque<u64>,
    next_id: u64,
    /// Rows that are not durable yet.
    rows: HashMap<Key, Known>,
    positions: BTreeMap<CollectedName, Position>,
    /// Local changes that the rows know of, and that a power cut might undo.
    unsynced: BTreeSet<Key>,
    outgoing: Vec<Up>,
    walk_due: Instant,
}

impl Engine {
    pub(super) fn new(parts: Parts) -> Self {
        let now = parts.clock.now();
        Self {
            parts,
            rules: BTreeMap::new(),
            refused: BTreeMap::new(),
            settled: HashSet::new(),
            kept_aside: 0,
            trouble: None,
            report_due: now,
            is_unreported: false,
            directories: BTreeMap::new(),
            caught_up: BTreeSet::new(),
            link: None,
            waiting: BTreeSet::new(),
            again: BTreeMap::new(),
            unanswered: HashMap::new(),
            busy: BTreeSet::new(),
            wanted: VecDeque::new(),
            next_id: 0,
            rows: HashMap::new(),
            positions: BTreeMap::new(),
            unsynced: BTreeSet::new(),
            outgoing: Vec::new(),
            walk_due: now,
        }
    }

    /// Runs until [`Event::Stop`], or until nobody sends events. Blocks.
    pub fn run(mut self, runtime: &Handle, mut events: mpsc::Receiver<Event>) {
        loop {
            let wait = self.wait();
            let first = runtime.block_on(async { tokio::time::timeout(wait, events.recv()).await });
            let first = match first {
                Ok(None) => return,
                Ok(event) => event,
                Err(_) => None,
            };
            let more = std::iter::from_fn(|| events.try_recv().ok());
            let all: Vec<Event> = first.into_iter().chain(more).take(TURN).collect();
            if all.iter().any(|event| matches!(event, Event::Stop)) {
                return;
            }
            if !self.step(all) {
                std::thread::sleep(AGAIN);
            }
        }
    }

    /// Takes events, and does one turn. False: the turn failed, and should be tried again after a pause.
    pub fn step(&mut self, events: Vec<Event>) -> bool {
        for event in events {
            if let Err(error) = self.take(event) {
                tracing::warn!(error = error_chain(&error), "a collected directory");
                self.mend(&error);
            }
        }
        // The next stream begins anew after an error.
        let uploaded = self.upload_wanted().inspect_err(|_| self.disconnect());
        let turned = uploaded.and_then(|()| self.turn());
        if let Err(error) = &turned {
            tracing::warn!(error = error_chain(error), "collected directories wait");
            self.mend(error);
        }
        self.report();
        turned.is_ok()
    }

    /// Goes on with an empty journal if the error says that it is damaged.
    fn mend(&mut self, error: &CollectedError) {
        self.trouble = Some(error_chain(error));
        if !error.is_damage() {
            return;
        }
        if let Err(error) = self.parts.journal.replace(error) {
            tracing::error!(error = error_chain(&error), "the damaged journal is still there");
        }
        self.rows.clear();
        self.positions.clear();
        // The next session begins without a position.
        self.disconnect();
    }

    fn report(&mut self) {
        let now = self.parts.clock.now();
        self.is_unreported = now < self.report_due;
        if self.is_unreported {
            return;
        }
        self.report_due = now + REPORT_EVERY;
        let waiting = self.waiting.len() + self.again.len() + self.unanswered.len();
        let first = self.refused.iter().next();
        let report = CollectedReport {
            directories: self.directories.keys().map(ToString::to_string).collect(),
            connected: self.link.is_some() && self.caught_up.len() == self.rules.len(),
            waiting: waiting as u64,
            refused: self.refused.len() as u64,
            first_refused: first.map(|((name, path), refusal)| format!("{name}/{path}: {}", refusal.reason)),
            kept_aside: self.kept_aside,
            error: self.trouble.clone(),
        };
        self.parts.report.send_if_modified(|last| {
            let is_new = last.as_ref() != Some(&report);
            *last = Some(report);
            is_new
        });
    }

    /// Time until there is something to do without an event.
    pub fn wait(&self) -> Duration {
        if !self.wanted.is_empty() || !self.waiting.is_empty() && self.may_look() {
            return Duration::ZERO;
        }
        let due = self.again.values().copied().min().unwrap_or(self.walk_due).min(self.walk_due);
        let now = self.parts.clock.now();
        let due = if self.is_unreported { due.min(self.report_due) } else { due };
        due.saturating_duration_since(now)
    }

    fn may_look(&self) -> bool {
        self.unanswered.len() < UNANSWERED_MAX
    }

    fn take(&mut self, event: Event) -> Result<(), CollectedError> {
        match event {
            Event::Settled(name, path) => {
                self.settled.insert((name.clone(), path.clone()));
                self.waiting.insert((name, path));
                Ok(())
            }
            Event::Changed(name, path) => {
                self.waiting.insert((name, path));
                Ok(())
            }
            Event::Below(name, path) => self.look_below(&name, &path),
            Event::Everything => self.look_everywhere(),
            Event::Connected(link) => {
                self.link = Some(link);
                self.hello()
            }
            Event::Received(message) => {
                let received = message.message.map_or(Ok(()), |message| self.receive(message));
                // The next stream begins anew.
                received.inspect_err(|_| self.disconnect())
            }
            Event::Disconnected => {
                self.disconnect();
                Ok(())
            }
            Event::Stop => Ok(()),
        }
    }

    /// Forgets the session. Dropping the link ends its stream.
    fn disconnect(&mut self) {
        self.link = None;
        self.caught_up.clear();
        self.outgoing.clear();
        self.unanswered.clear();
        self.wanted.clear();
        self.busy.clear();
    }

    fn open_all(&mut self) -> Result<(), CollectedError> {
        for (name, files) in (self.parts.open)()? {
            self.directories.entry(name).or_insert(files);
        }
        self.count_kept_aside();
        Ok(())
    }

    fn count_kept_aside(&mut self) {
        // All directories share `.incoming`.
        match self.directories.values().next().map(Files::kept_aside) {
            None => self.kept_aside = 0,
            Some(Ok(count)) => self.kept_aside = count,
            Some(Err(error)) => {
                tracing::warn!(error = error_chain(&error), "files kept aside were not counted")
            }
        }
    }

    /// Introduces this node.
    fn hello(&mut self) -> Result<(), CollectedError> {
        self.open_all()?;
        let mut positions = Vec::new();
        for name in self.directories.keys() {
            let Position { after, line } = self.position(name)?;
            positions.push(v1::CollectedPosition { directory: name.to_string(), line: line.into(), after });
        }
        self.outgoing.push(Up::Hello(v1::CollectedHello { positions }));
        Ok(())
    }

    /// Looks at all files and all rows again.
    fn look_everywhere(&mut self) -> Result<(), CollectedError> {
        self.walk_due = self.parts.clock.now() + WALK_EVERY;
        self.refused.clear();
        self.open_all()?;
        let names: Vec<CollectedName> = self.directories.keys().cloned().collect();
        for name in names {
            self.look_at_directory(&name)?;
        }
        Ok(())
    }

    fn look_at_directory(&mut self, name: &CollectedName) -> Result<(), CollectedError> {
        self.look_below(name, &TreePath::root())?;
        let paths = self.parts.journal.paths(name)?;
        self.waiting.extend(paths.into_iter().map(|path| (name.clone(), path)));
        Ok(())
    }

    /// Watches a directory and everything below it, and looks at all names.
    fn look_below(&mut self, name: &CollectedName, below: &TreePath) -> Result<(), CollectedError> {
        let Some(files) = self.directories.get(name) else { return Ok(()) };
        if !below.is_root() {
            self.waiting.insert((name.clone(), below.clone()));
        }
        let mut directories = vec![below.clone()];
        while let Some(directory) = directories.pop() {
            // Before it is listed, so that nothing is missed.
            self.parts.watch.add(name, &directory).map_err(CollectedError::Watch)?;
            for (child, is_directory) in files.names(&directory)? {
                let rules = self.rules.get(name);
                if rules.is_some_and(|rules| rules.ruling(&child, is_directory) == Ruling::Ignored) {
                    continue;
                }
                if is_directory {
                    directories.push(child.clone());
                }
                self.waiting.insert((name.clone(), child));
            }
        }
        Ok(())
    }

    fn position(&self, name: &CollectedName) -> Result<Position, CollectedError> {
        self.positions.get(name).cloned().map_or_else(|| self.parts.journal.position(name), Ok)
    }

    fn known(&self, key: &Key) -> Result<Known, CollectedError> {
        self.rows.get(key).cloned().map_or_else(|| self.parts.journal.get(&key.0, &key.1), Ok)
    }

    fn receive(&mut self, message: Down) -> Result<(), CollectedError> {
        match message {
            Down::Welcome(welcome) => {
                self.rules.clear();
                for directory in welcome.directories {
                    let name = name(&directory.name)?;
                    let rules = CollectedRules::new(&directory.ignore, &directory.deny)?;
                    self.rules.insert(name.clone(), rules);
                    self.begin_line(name, directory.line.to_vec())?;
                }
                Ok(())
            }
            Down::Version(version) => {
                let key = (name(&version.directory)?, path(&version.path)?);
                self.learn(key, Version::from_message(version.number, version.state.as_ref())?)
            }
            Down::CaughtUp(caught_up) => self.catch_up(name(&caught_up.directory)?),
            Down::Answer(answer) => self.answered(answer.id, Decision::from_message(&answer)?),
        }
    }

    /// The journal is void if it belongs to another line of numbers.
    fn begin_line(&mut self, name: CollectedName, line: Vec<u8>) -> Result<(), CollectedError> {
        let position = self.position(&name)?;
        if position.line == line {
            return Ok(());
        }
        if !position.line.is_empty() {
            tracing::warn!(directory = %name, "the origin lost versions: this node offers what it has");
        }
        let position = Position { after: 0, line };
        self.rows.retain(|(directory, _), _| *directory != name);
        self.parts.journal.clear(&name, &position)?;
        self.positions.insert(name, position);
        Ok(())
    }

    fn learn(&mut self, key: Key, version: Version) -> Result<(), CollectedError> {
        let mut position = self.position(&key.0)?;
        position.after = position.after.max(version.number.get());
        self.positions.insert(key.0.clone(), position);
        let mut known = self.known(&key)?;
        known.row.learn(version);
        self.rows.insert(key.clone(), known);
        self.waiting.insert(key);
        Ok(())
    }

    /// All versions are known: what was sent before and is not among them was not taken.
    fn catch_up(&mut self, directory: CollectedName) -> Result<(), CollectedError> {
        for path in self.parts.journal.paths(&directory)? {
            let key = (directory.clone(), path);
            let mut known = self.known(&key)?;
            if known.row.sent().is_some() {
                known.row.caught_up();
                self.rows.insert(key, known);
            }
        }
        self.refused.retain(|(name, _), _| *name != directory);
        self.caught_up.insert(directory.clone());
        self.look_at_directory(&directory)
    }

    fn answered(&mut self, id: u64, decision: Decision) -> Result<(), CollectedError> {
        let Some(Offer { key, change, newest }) = self.unanswered.get(&id).cloned() else { return Ok(()) };
        let mut known = self.known(&key)?;
        match decision {
            Decision::NeedsContent => {
                self.wanted.push_back(id);
                return Ok(());
            }
            Decision::Refused { reason } => {
                tracing::error!(directory = %key.0, path = %key.1, reason, "refused by the origin: it stays on this node");
                known.row.caught_up();
                self.refused.insert(key.clone(), Refusal { state: Some(change.state), newest, reason });
                // It may have changed before the answer, and a newer version may have come.
                self.waiting.insert(key.clone());
            }
            Decision::Answered(answer) => {
                known.row.answered(&answer);
                self.waiting.insert(key.clone());
            }
        }
        self.unanswered.remove(&id);
        self.busy.remove(&key);
        self.rows.insert(key, known);
        Ok(())
    }

    /// Looks at some paths, makes what was learned durable, and sends.
    fn turn(&mut self) -> Result<(), CollectedError> {
        let now = self.parts.clock.now();
        if self.walk_due <= now {
            self.look_everywhere()?;
        }
        let due: Vec<Key> =
            self.again.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.again.remove(&key);
            self.waiting.insert(key);
        }
        let (mut arrivals, mut arriving_bytes) = (Vec::new(), 0_u64);
        for _ in 0..TURN {
            if !self.may_look() || arriving_bytes > TURN_BYTES {
                break;
            }
            let Some(key) = self.waiting.pop_first() else { break };
            // Looked at after the answer.
            if self.busy.contains(&key) {
                continue;
            }
            match self.look(&key) {
                Err(error) if error.is_damage() => return Err(error),
                Err(error) => self.fail(key, &error),
                Ok(None) => {}
                Ok(Some(arrival)) => {
                    arriving_bytes = arriving_bytes.saturating_add(arrival.file.size);
                    arrivals.push(arrival);
                }
            }
        }
        self.place_files(arrivals);
        if self.again.is_empty() {
            self.trouble = None;
        }
        self.flush()
    }

    /// Has a path looked at again after an error.
    fn fail(&mut self, key: Key, error: &CollectedError) {
        let error_text = error_chain(error);
        tracing::debug!(path = %key.1, error = error_text, "a path is looked at again");
        self.trouble = Some(error_text);
        self.again.insert(key, self.parts.clock.now() + error.pause());
    }

    /// Makes local changes durable. Otherwise a power cut might undo one that the origin has taken, and that
    /// would look like another change.
    fn sync(&mut self) -> Result<(), CollectedError> {
        for (name, files) in &self.directories {
            let changed = self.unsynced.iter().filter(|(directory, _)| directory == name);
            let paths: Vec<TreePath> = changed.map(|(_, path)| path.clone()).collect();
            files.sync(&paths)?;
        }
        self.unsynced.clear();
        Ok(())
    }

    /// After a failed sync: another one would not report what this one lost. Files are read again, from the
    /// disk, before anything is recorded or said of them.
    fn distrust(&mut self) {
        for key in std::mem::take(&mut self.unsynced) {
            if let Some(files) = self.directories.get(&key.0) {
                files.drop_cached(&key.1);
            }
            self.waiting.insert(key);
        }
        self.rows.clear();
        self.positions.clear();
        // The next session begins with the positions of the journal.
        self.disconnect();
    }

    /// Files before rows, and rows before messages.
    fn flush(&mut self) -> Result<(), CollectedError> {
        self.sync().inspect_err(|_| self.distrust())?;
        if !self.rows.is_empty() || !self.positions.is_empty() {
            self.parts.journal.put(&self.rows, &self.positions)?;
            self.rows.clear();
            self.positions.clear();
        }
        let Some(link) = &mut self.link else { return Ok(()) };
        for message in self.outgoing.drain(..) {
            // The end of the stream is reported as an event.
            if link.send(message).is_err() {
                break;
            }
        }
        Ok(())
    }
}

fn name(text: &str) -> Result<CollectedName, CollectedError> {
    text.parse().map_err(|_| MessageError::Field { field: "directory" }.into())
}

fn message(id: u64, (name, path): &Key, change: &Change) -> Up {
    Up::Change(v1::CollectedChange {
        id,
        directory: name.to_string(),
        path: Bytes::copy_from_slice(path.as_bytes()),
        base: change.base.get(),
        state: Some(change.state.to_message()),
    })
}
