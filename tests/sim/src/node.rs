//! One agent: the real session machine, and the real worker's bench with a real replica on a thread of its own.
//!
//! The thread runs only while the scheduler waits for it: it gets a command or a frame, and runs until it wants another
//! frame or is done. So everything happens one after the other, and staging is still interrupted in its midst by
//! whatever the scheduler lets happen before the next frame comes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use syncd_agent::clock::Clock;
use syncd_agent::replica::{Replica, ReplicaOptions};
use syncd_agent::session::worker::{Bench, Cancellation, Command, Hooks, ReplicaState, ReplicaWork, Report};
use syncd_agent::source::{Batches, FetchError, Frames, Source};
use syncd_shared::RootHash;
use syncd_shared::diff::PartLimits;
use syncd_shared::wire::Frame;

use crate::plant::{Plant, Planted};

/// What the thread is told.
pub enum ToWorker {
    Do(Box<Command>, Cancellation),
    Frame(Option<Result<Frame, FetchError>>),
    /// The activation goes on.
    Go,
    /// The process is killed.
    Die,
}

/// What the thread tells. After `Opened`, `Wait`, `Pause` and `Done` it stands still.
pub enum FromWorker {
    Opened(Result<Box<ReplicaState>, String>),
    Ask {
        transfer: u64,
        ask: Ask,
    },
    Wait {
        transfer: u64,
    },
    Close {
        transfer: u64,
    },
    /// In the midst of an activation: before the switch, and after it.
    Pause,
    Done {
        report: Box<Report>,
        activating: bool,
    },
}

/// What is fetched.
pub enum Ask {
    Update { from: RootHash, to: RootHash },
    Objects { root: RootHash, batches: Batches },
}

/// The thread, and both ways to it.
pub struct Worker {
    to: Sender<ToWorker>,
    from: Receiver<FromWorker>,
    thread: Option<JoinHandle<()>>,
}

/// Longer than anything that one step does, on a machine however busy.
const STEP: Duration = Duration::from_secs(120);

impl Worker {
    /// Opens the replica in `root`, which recovers it.
    pub fn start(name: String, root: &Path, options: ReplicaOptions, plant: Option<Plant>) -> Self {
        let (to, inbox) = channel();
        let (outbox, from) = channel();
        let root = root.to_path_buf();
        let thread =
            std::thread::Builder::new().name(name).spawn(move || work(root, options, plant, inbox, outbox));
        Self { to, from, thread: Some(thread.expect("a thread")) }
    }

    pub fn tell(&self, message: ToWorker) {
        // A thread that died says so where it is heard.
        let _ = self.to.send(message);
    }

    /// What it says next; `None`: it died, which only a defect does.
    pub fn hear(&self) -> Option<FromWorker> {
        self.from.recv_timeout(STEP).ok()
    }

    /// Ends it where it stands, with nothing tidied up that a killed process would leave.
    pub fn kill(mut self) {
        self.tell(ToWorker::Die);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What unwinds a thread that is killed in the midst of something.
struct Killed;

fn work(
    root: PathBuf,
    options: ReplicaOptions,
    plant: Option<Plant>,
    inbox: Receiver<ToWorker>,
    outbox: Sender<FromWorker>,
) {
    let inbox = Arc::new(Mutex::new(inbox));
    let (told, telling) = (inbox.clone(), outbox.clone());
    let pause = Box::new(move || {
        let _ = telling.send(FromWorker::Pause);
        match told.lock().unwrap_or_else(PoisonError::into_inner).recv() {
            Ok(ToWorker::Go) => {}
            _ => std::panic::resume_unwind(Box::new(Killed)),
        }
    });
    let replica = match Replica::open(&root, options) {
        Ok(replica) => Planted::new(replica, root, plant, pause),
        Err(error) => {
            let _ = outbox.send(FromWorker::Opened(Err(format!("{error}: {error:?}"))));
            return;
        }
    };
    let _ = outbox.send(FromWorker::Opened(Ok(Box::new(replica.state()))));
    let wire = Wire { inbox: inbox.clone(), outbox: outbox.clone(), transfers: Arc::default() };
    let (reports, mut reported) = tokio::sync::mpsc::channel(4096);
    let open_source = Box::new(move |_| Box::new(wire.clone()) as Box<dyn Source>);
    let mut bench = Bench::new(replica, open_source, Hooks::default(), reports);
    loop {
        // Its own statement: the lock is given back before the command runs.
        let told = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(ToWorker::Do(command, cancellation)) = told else { return };
        let report = Box::new(bench.perform(*command, &cancellation));
        // A node does this when the report is out; here nothing may run beside what comes next.
        bench.bound();
        // How often staging tells its progress depends on threads of its own, and may be lost in any case.
        let activating =
            std::iter::from_fn(|| reported.try_recv().ok()).any(|r| matches!(r, Report::Activating));
        if outbox.send(FromWorker::Done { report, activating }).is_err() {
            return;
        }
    }
}

/// The origin, as the thread sees it.
#[derive(Clone)]
struct Wire {
    inbox: Arc<Mutex<Receiver<ToWorker>>>,
    outbox: Sender<FromWorker>,
    transfers: Arc<AtomicU64>,
}

impl Wire {
    fn start(&self, ask: Ask) -> Result<Frames, FetchError> {
        let transfer = self.transfers.fetch_add(1, Ordering::Relaxed);
        let _ = self.outbox.send(FromWorker::Ask { transfer, ask });
        let mut frames = Transfer { wire: self.clone(), transfer, first: None };
        // As over the network: a refusal is the answer to the call.
        frames.first = frames.wait().transpose()?;
        Ok(Box::new(frames))
    }
}

impl Source for Wire {
    fn update(&mut self, from: RootHash, to: RootHash) -> Result<Frames, FetchError> {
        self.start(Ask::Update { from, to })
    }

    fn objects(&mut self, root: RootHash, batches: Batches) -> Result<Frames, FetchError> {
        self.start(Ask::Objects { root, batches })
    }
}

struct Transfer {
    wire: Wire,
    transfer: u64,
    first: Option<Frame>,
}

impl Transfer {
    fn wait(&self) -> Option<Result<Frame, FetchError>> {
        let _ = self.wire.outbox.send(FromWorker::Wait { transfer: self.transfer });
        match self.wire.inbox.lock().unwrap_or_else(PoisonError::into_inner).recv() {
            Ok(ToWorker::Frame(frame)) => frame,
            _ => std::panic::resume_unwind(Box::new(Killed)),
        }
    }
}

impl Iterator for Transfer {
    type Item = Result<Frame, FetchError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.first.take().map(Ok).or_else(|| self.wait())
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let _ = self.wire.outbox.send(FromWorker::Close { transfer: self.transfer });
    }
}

/// How replicas of a simulation are kept.
pub fn options(keep: usize, grace: Duration, part: PartLimits, clock: &Clock) -> ReplicaOptions {
    ReplicaOptions { keep, grace, part, clock: clock.clone(), ..ReplicaOptions::default() }
}
