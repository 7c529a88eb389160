//! Collected directories: visitors write on several nodes, while lines are cut, and nodes and the origin die.
//!
//! The engine of each node works on real files with its real journal. The origin is the real collection with
//! the real conversation. This scheduler carries their messages, and reports what visitors write as a watch
//! would. Clocks are an hour ahead, so that every file is old enough to be read.

mod deeds;
mod promises;
mod visit;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use syncd_agent::clock::Clock;
use syncd_agent::collected::{CollectedReport, Engine, Event as Heard, Owners, Surroundings, Watches};
use syncd_origin::collected::{CollectedOptions, Collection, parse};
use syncd_origin::serve::{ExchangeError, Sessions};
use syncd_proto::v1;
use syncd_shared::TreePath;
use syncd_shared::collected::CollectedName;
use syncd_tests::Seeded;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use walkdir::WalkDir;

use crate::run::Run;
use crate::world::{Tally, Violation};
use promises::Promises;
use visit::{Visit, Visited};
use wire::{Killed, Line, Wire, lock};

const NAME: &str = "uploads";
const TABLE: &str = "[uploads]\npath = 'uploads'\nowner = '0:0'\n";
const HOUR_MS: u64 = 3_600_000;
/// Time from the last fault until everything must be the same everywhere. Nodes walk every hour.
const CONVERGE_MS: u64 = 3 * HOUR_MS;
/// Messages of a connection that are not delivered yet.
const QUEUE: usize = 1 << 16;

enum Event {
    Deed,
    /// The engine has something to do.
    Wake {
        node: usize,
        life: u64,
    },
    /// Its watch reports something.
    Hint {
        node: usize,
        life: u64,
        heard: Heard,
    },
    Dial {
        node: usize,
        life: u64,
    },
    Up {
        session: u64,
        message: Box<v1::CollectedUp>,
    },
    Down {
        node: usize,
        session: u64,
        message: Box<v1::CollectedDown>,
    },
    Lost {
        node: usize,
        session: u64,
    },
    StartNode {
        node: usize,
    },
    StartOrigin,
}

/// A connection, as the network and the origin know it.
struct Session {
    id: u64,
    to_origin: mpsc::UnboundedSender<Result<v1::CollectedUp, Status>>,
    from_origin: mpsc::Receiver<Result<v1::CollectedDown, Status>>,
    task: JoinHandle<Result<(), ExchangeError>>,
    up_ms: u64,
    down_ms: u64,
}

struct Node {
    root: PathBuf,
    clock: Clock,
    engine: Option<Engine>,
    life: u64,
    wire: Arc<Mutex<Wire>>,
    watched: Watched,
    session: Option<Session>,
    partitioned_until: u64,
    wake_ms: u64,
    report: watch::Receiver<Option<CollectedReport>>,
}

impl Node {
    fn files(&self) -> PathBuf {
        self.root.join("collected").join(NAME)
    }
}

/// Directories that a node watches.
#[derive(Clone, Default)]
struct Watched(Arc<Mutex<BTreeSet<TreePath>>>);

impl Watches for Watched {
    fn add(&self, _name: &CollectedName, path: &TreePath) -> io::Result<()> {
        lock(&self.0).insert(path.clone());
        Ok(())
    }
}

struct Origin {
    collection: Collection,
    sessions: Sessions,
}

struct World {
    random: Seeded,
    start: Instant,
    now_ms: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Event>,
    data: PathBuf,
    backup: PathBuf,
    options: Vec<CollectedOptions>,
    name: CollectedName,
    origin: Option<Origin>,
    nodes: Vec<Node>,
    /// Connections that nodes have given up, and the origin has not.
    abandoned: Vec<Session>,
    promises: Promises,
    newest_content: u64,
    deeds_left: u64,
    trace: blake3::Hasher,
    log: Option<Vec<String>>,
    tally: Tally,
}

/// Runs a seed in a new directory below `directory`.
pub fn run(seed: u64, directory: &Path, log: bool) -> anyhow::Result<Run> {
    let place = tempfile::Builder::new().prefix(&format!("syncd-sim-{seed}-")).tempdir_in(directory)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = runtime.block_on(async {
        let mut world = World::create(seed, place.path(), log)?;
        let broken = world.live_through().await;
        if let Err(error) = &broken
            && error.downcast_ref::<Violation>().is_none()
        {
            world.note(format!("{error:#}"));
        }
        let violation = match broken {
            Ok(()) => None,
            Err(error) => Some(error.downcast::<Violation>()?),
        };
        if violation.is_none() {
            world.count("seeds that held");
        }
        let trace = world.trace.finalize().to_hex().to_string();
        world.end_origin().await;
        anyhow::Ok(Run {
            seed,
            trace,
            violation,
            tally: world.tally,
            virtual_ms: world.now_ms,
            log: world.log,
        })
    })?;
    if std::env::var_os("SYNCD_KEEP").is_some() {
        println!("seed {seed}: keeping {}", place.keep().display());
    }
    Ok(run)
}

impl World {
    fn create(seed: u64, place: &Path, log: bool) -> anyhow::Result<Self> {
        let mut random = Seeded::new(seed);
        let start = Instant::now();
        let nodes = 2 + random.below(2);
        let nodes = (0..nodes).map(|n| Node {
            root: place.join(format!("node-{n}")),
            clock: Clock::given(start),
            engine: None,
            life: 0,
            wire: Arc::default(),
            watched: Watched::default(),
            session: None,
            partitioned_until: 0,
            wake_ms: 0,
            report: watch::channel(None).1,
        });
        let nodes: Vec<Node> = nodes.collect();
        for node in &nodes {
            fs::create_dir_all(node.files())?;
            fs::create_dir_all(node.root.join("state"))?;
        }
        let deeds_left = 20 + random.below(60);
        let mut world = Self {
            random,
            start,
            now_ms: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            data: place.join("data"),
            backup: place.join("backup"),
            options: parse(&TABLE.parse().context("the table")?)?,
            name: NAME.parse()?,
            origin: None,
            nodes,
            abandoned: Vec::new(),
            promises: Promises::default(),
            newest_content: 0,
            deeds_left,
            trace: blake3::Hasher::new(),
            log: log.then(Vec::new),
            tally: Tally::new(),
        };
        world.start_origin()?;
        Ok(world)
    }

    async fn live_through(&mut self) -> anyhow::Result<()> {
        for node in 0..self.nodes.len() {
            let delay = self.random.below(2_000);
            self.after(delay, Event::StartNode { node });
        }
        self.after(500, Event::Deed);
        while self.deeds_left > 0 {
            self.handle_next().await?;
        }
        self.note("the faults end");
        for node in &mut self.nodes {
            node.partitioned_until = node.partitioned_until.min(self.now_ms + 1);
        }
        let end = self.now_ms + CONVERGE_MS;
        while self.queue.first_key_value().is_some_and(|((at_ms, _), _)| *at_ms < end) {
            self.handle_next().await?;
        }
        self.note("the end");
        let roots: Vec<PathBuf> = self.nodes.iter().map(|node| node.root.clone()).collect();
        let Some(origin) = &self.origin else { return Err(self.violation("the origin is away")) };
        let broken = self.promises.broken(&origin.collection, &self.name, &roots)?;
        broken.map_or(Ok(()), |what| Err(self.violation(what)))
    }

    fn violation(&self, what: impl Into<String>) -> anyhow::Error {
        Violation { at_ms: self.now_ms, what: what.into() }.into()
    }

    fn note(&mut self, what: impl AsRef<str>) {
        let line = format!("{:>9} {}\n", self.now_ms, what.as_ref());
        self.trace.update(line.as_bytes());
        self.log.iter_mut().for_each(|log| log.push(line.clone()));
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn at(&mut self, at_ms: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((at_ms.max(self.now_ms), self.sequence), event);
    }

    fn after(&mut self, delay_ms: u64, event: Event) {
        self.at(self.now_ms + delay_ms, event);
    }

    fn latency(&mut self) -> u64 {
        1 + self.random.below(30)
    }

    async fn handle_next(&mut self) -> anyhow::Result<()> {
        let Some(((at_ms, _), event)) = self.queue.pop_first() else { return Ok(()) };
        self.now_ms = at_ms;
        match event {
            Event::Deed => self.deed().await,
            Event::StartNode { node } => self.start_node(node).await,
            Event::StartOrigin => self.start_origin(),
            Event::Wake { node, life } if self.nodes[node].life == life => {
                match self.nodes[node].wake_ms == at_ms {
                    true => self.step(node, Vec::new()).await,
                    false => Ok(()),
                }
            }
            Event::Hint { node, life, heard } if self.nodes[node].life == life => {
                self.step(node, vec![heard]).await
            }
            Event::Dial { node, life } if self.nodes[node].life == life => self.dial(node).await,
            Event::Up { session, message } => {
                let sessions = self.nodes.iter().filter_map(|node| node.session.as_ref());
                let session = sessions.chain(&self.abandoned).find(|one| one.id == session);
                // The origin's end may have gone.
                session.iter().for_each(|session| drop(session.to_origin.send(Ok(*message.clone()))));
                self.settle().await
            }
            Event::Down { node, session, message } if self.is_current(node, session) => {
                self.step(node, vec![Heard::Received(message)]).await
            }
            Event::Lost { node, session } if self.is_current(node, session) => {
                self.note(format!("node {node} loses its connection"));
                self.nodes[node].session = None;
                let (life, pause) = (self.nodes[node].life, 200 + self.random.below(2_000));
                self.after(pause, Event::Dial { node, life });
                self.step(node, vec![Heard::Disconnected]).await
            }
            _ => Ok(()),
        }
    }

    fn is_current(&self, node: usize, session: u64) -> bool {
        self.nodes[node].session.as_ref().is_some_and(|one| one.id == session)
    }

    fn start_origin(&mut self) -> anyhow::Result<()> {
        if self.origin.is_none() {
            let collection = Collection::open(&self.data, self.options.clone())?;
            self.origin = Some(Origin { collection, sessions: Sessions::default() });
            self.note("the origin starts");
        }
        Ok(())
    }

    /// Ends the origin where it is. Its earlier messages still arrive.
    async fn end_origin(&mut self) {
        let ended = self.nodes.iter_mut().filter_map(|node| node.session.as_mut());
        for session in ended.chain(&mut self.abandoned) {
            session.task.abort();
            while !session.task.is_finished() {
                tokio::task::yield_now().await;
            }
        }
        self.drain();
        self.abandoned.clear();
        self.origin = None;
    }

    async fn start_node(&mut self, n: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[n];
        if node.engine.is_some() {
            return Ok(());
        }
        node.life += 1;
        node.wire = Arc::default();
        node.watched = Watched::default();
        node.clock.set(self.start + Duration::from_millis(HOUR_MS + self.now_ms));
        let (report, reported) = watch::channel(None);
        let (watch, clock) = (Box::new(node.watched.clone()), node.clock.clone());
        let surroundings = Surroundings { owners: Owners::new(None), watch, clock, report };
        node.engine = Some(surroundings.open(&node.root)?);
        node.report = reported;
        let life = node.life;
        self.note(format!("node {n} starts"));
        self.after(1, Event::Dial { node: n, life });
        self.step(n, Vec::new()).await
    }

    /// Ends the node's process where it is.
    fn kill_node(&mut self, n: usize) {
        self.nodes[n].engine = None;
        self.nodes[n].life += 1;
        self.hang_up(n);
    }

    /// Gives up the node's connection. The origin notices unless nothing passes.
    fn hang_up(&mut self, n: usize) {
        let is_cut = self.nodes[n].partitioned_until > self.now_ms;
        self.abandoned.extend(self.nodes[n].session.take().filter(|_| is_cut));
    }

    async fn dial(&mut self, n: usize) -> anyhow::Result<()> {
        let (life, pause) = (self.nodes[n].life, 200 + self.random.below(3_000));
        let (Some(origin), true) = (&self.origin, self.nodes[n].partitioned_until <= self.now_ms) else {
            self.after(pause, Event::Dial { node: n, life });
            return Ok(());
        };
        self.sequence += 1;
        let id = self.sequence;
        let (to_origin, incoming) = mpsc::unbounded_channel();
        let (outgoing, from_origin) = mpsc::channel(QUEUE);
        let (sessions, collection) = (origin.sessions.clone(), origin.collection.clone());
        let task = tokio::spawn(async move {
            let incoming = UnboundedReceiverStream::new(incoming);
            sessions.serve(collection, format!("web{n}"), incoming, &outgoing).await
        });
        let (up_ms, down_ms) = (self.now_ms, self.now_ms);
        let session = Session { id, to_origin, from_origin, task, up_ms, down_ms };
        self.nodes[n].session = Some(session);
        self.note(format!("node {n} connects"));
        self.count("connections");
        let (wire, files) = (self.nodes[n].wire.clone(), self.nodes[n].files());
        lock(&wire).hung_up = false;
        self.step(n, vec![Heard::Connected(Box::new(Line { wire, files }))]).await
    }

    /// Lets the origin work until it is idle, and looks at its new versions.
    async fn settle(&mut self) -> anyhow::Result<()> {
        while let Some(origin) = &self.origin {
            let collection = origin.collection.clone();
            for _ in 0..3 {
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                collection.barrier().await;
            }
            if self.drain() {
                continue;
            }
            let returned = self.promises.observe(&collection, &self.name)?;
            return returned.map_or(Ok(()), |what| Err(self.violation(what)));
        }
        Ok(())
    }

    /// Takes what the origin says. True: it said something.
    fn drain(&mut self) -> bool {
        let mut said = false;
        for n in 0..self.nodes.len() {
            loop {
                let latency = self.latency();
                let node = &mut self.nodes[n];
                let Some(session) = &mut node.session else { break };
                let arrival = (self.now_ms.max(node.partitioned_until) + latency).max(session.down_ms + 1);
                let id = session.id;
                let event = match session.from_origin.try_recv() {
                    Ok(Ok(message)) => Event::Down { node: n, session: id, message: Box::new(message) },
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Ok(Err(_)) | Err(_) => Event::Lost { node: n, session: id },
                };
                let is_end = matches!(event, Event::Lost { .. });
                session.down_ms = arrival;
                self.at(arrival, event);
                if is_end {
                    break;
                }
                said = true;
            }
        }
        said
    }

    /// Lets a node's engine take events and do one turn.
    async fn step(&mut self, n: usize, events: Vec<Heard>) -> anyhow::Result<()> {
        let Some(mut engine) = self.nodes[n].engine.take() else { return Ok(()) };
        self.prepare_step(n);
        let stepped = catch_unwind(AssertUnwindSafe(move || {
            let is_well = engine.step(events);
            let pause = if is_well { engine.wait() } else { Duration::from_millis(500) };
            (engine, pause)
        }));
        let mut wire = std::mem::take(&mut *lock(&self.nodes[n].wire));
        lock(&self.nodes[n].wire).hung_up = wire.hung_up;
        for message in std::mem::take(&mut wire.sent) {
            self.send(n, message);
        }
        for visited in &wire.visited {
            self.report(n, visited);
        }
        if wire.is_cut {
            self.cut(n);
        }
        match stepped {
            Ok((engine, pause)) => {
                self.nodes[n].engine = Some(engine);
                let report = self.nodes[n].report.borrow().clone();
                if report.is_some_and(|report| report.connected && report.waiting == 0) {
                    self.promises.rests(n);
                }
                let wake = self.now_ms + u64::try_from(pause.as_millis()).unwrap_or(HOUR_MS) + 1;
                self.nodes[n].wake_ms = wake;
                let life = self.nodes[n].life;
                self.at(wake, Event::Wake { node: n, life });
                if wire.hung_up && self.nodes[n].session.is_some() {
                    self.note(format!("node {n} hangs up"));
                    self.hang_up(n);
                    self.after(500, Event::Dial { node: n, life });
                }
            }
            Err(payload) if payload.is::<Killed>() => {
                self.note(format!("node {n} is killed in a step"));
                self.count("nodes killed in a step");
                let files = self.nodes[n].files();
                self.promises.killed(n, &files);
                self.kill_node(n);
                let pause = self.random.below(5_000);
                self.after(pause, Event::StartNode { node: n });
            }
            Err(payload) => resume_unwind(payload),
        }
        self.report_directories(n)?;
        self.settle().await
    }

    /// Decides what happens to a node during a step.
    fn prepare_step(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.clock.set(self.start + Duration::from_millis(HOUR_MS + self.now_ms));
        let is_reached = node.session.is_some() && node.partitioned_until <= self.now_ms;
        let mut wire = lock(&node.wire);
        wire.collection = self.origin.as_ref().filter(|_| is_reached).map(|origin| origin.collection.clone());
        if self.deeds_left == 0 {
            return;
        }
        let random = &mut self.random;
        let some = |random: &mut Seeded, rate| if random.one_in(rate) { 1 + random.below(8) } else { 0 };
        wire.dies_in = some(random, 150);
        wire.cut_in = some(random, 60);
        for _ in 0..some(random, 20) {
            wire.visits.push(Visit::random(random, &mut self.newest_content));
        }
    }

    /// Carries a message to the origin.
    fn send(&mut self, n: usize, message: v1::collected_up::Message) {
        let latency = self.latency();
        let node = &mut self.nodes[n];
        let Some(session) = &mut node.session else { return };
        let arrival = (self.now_ms.max(node.partitioned_until) + latency).max(session.up_ms + 1);
        session.up_ms = arrival;
        let message = Box::new(v1::CollectedUp { message: Some(message) });
        let session = session.id;
        self.at(arrival, Event::Up { session, message });
    }

    /// Remembers a visit, and has the watch report it, as far as it watches.
    fn report(&mut self, n: usize, visited: &Visited) {
        self.note(format!("node {n}: {visited:?}"));
        self.count("visits");
        self.promises.visited(n, visited);
        let changed = visited.changed.iter().map(|path| (path, false));
        let all: Vec<_> = changed.chain(visited.settled.iter().map(|path| (path, true))).collect();
        for (path, is_settled) in all {
            let Ok(path) = TreePath::from_bytes(path.as_bytes()) else { continue };
            let name = self.name.clone();
            let heard = match is_settled {
                true => Heard::Settled(name, path.clone()),
                false => Heard::Changed(name, path.clone()),
            };
            self.hint(n, &path, heard);
        }
    }

    fn hint(&mut self, n: usize, path: &TreePath, heard: Heard) {
        let parent = path.split_last().map_or_else(TreePath::root, |(parent, _)| parent);
        if !lock(&self.nodes[n].watched.0).contains(&parent) {
            return;
        }
        // Some are lost for lack of room, which the watch reports.
        let heard = if self.random.one_in(40) { Heard::Everything } else { heard };
        let (life, delay) = (self.nodes[n].life, self.random.below(20));
        self.after(delay, Event::Hint { node: n, life, heard });
    }

    /// Has the watch report new directories, and forget those that are gone.
    fn report_directories(&mut self, n: usize) -> anyhow::Result<()> {
        let top = self.nodes[n].files();
        let mut found = BTreeSet::from([TreePath::root()]);
        for item in WalkDir::new(&top).min_depth(1).sort_by_file_name().into_iter().filter_map(Result::ok) {
            if item.file_type().is_dir() {
                let path = item.path().strip_prefix(&top)?.display().to_string();
                found.insert(TreePath::from_bytes(path.as_bytes())?);
            }
        }
        let new: Vec<TreePath> = {
            let mut watched = lock(&self.nodes[n].watched.0);
            watched.retain(|path| found.contains(path));
            found.into_iter().filter(|path| !watched.contains(path)).collect()
        };
        for path in new {
            let heard = Heard::Below(self.name.clone(), path.clone());
            self.hint(n, &path, heard);
        }
        Ok(())
    }
}
