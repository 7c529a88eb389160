//! One agent: the real session machine, and the real worker with a real replica on a thread of its own.
//!
//! The thread runs only while the scheduler waits for it. It gets a command or a frame, and runs until it
//! needs another frame or is done. Everything therefore happens in sequence. Staging is still interrupted in
//! the middle, by the events that the scheduler handles before the next frame.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use syncd_agent::clock::Clock;
use syncd_agent::replica::{Replica, ReplicaOptions, Swap};
use syncd_agent::session::worker::{
    Bench, Cancellation, Command, Hooks, OpenSource, ReplicaState, ReplicaWork, Report,
};
use syncd_agent::source::{Batches, FetchError, Frames, Source};
use syncd_shared::RootHash;
use syncd_shared::diff::PartLimits;
use syncd_shared::wire::Frame;

use crate::plant::{Plant, Planted};

/// Message to the thread.
pub enum ToWorker {
    Do(Box<Command>, Cancellation),
    Frame(Option<Result<Frame, FetchError>>),
    /// Continue the activation.
    Go,
    /// The process is killed.
    Die,
}

/// Message from the thread. The thread stops after `Opened`, `Wait`, `Pause` and `Done`.
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
    /// In the middle of an activation: before the switch, and after it.
    Pause,
    Done {
        report: Box<Report>,
        activating: bool,
    },
}

/// Request to the origin.
pub enum Ask {
    Update { from: RootHash, to: RootHash },
    Objects { root: RootHash, batches: Batches },
}

/// The thread, with the channels to and from it.
pub struct Worker {
    to: Sender<ToWorker>,
    from: Receiver<FromWorker>,
    thread: Option<JoinHandle<()>>,
}

/// Deadline of one step, even on a very busy machine.
const STEP: Duration = Duration::from_secs(120);

impl Worker {
    /// Opens and thereby recovers the replica in `root`.
    pub fn start(name: String, root: &Path, options: ReplicaOptions, plant: Option<Plant>) -> Self {
        let (to, inbox) = channel();
        let (outbox, from) = channel();
        let root = root.to_path_buf();
        let thread =
            std::thread::Builder::new().name(name).spawn(move || work(root, options, plant, inbox, outbox));
        Self { to, from, thread: Some(thread.expect("a thread")) }
    }

    pub fn tell(&self, message: ToWorker) {
        // A dead thread is noticed where its answer is expected.
        let _ = self.to.send(message);
    }

    /// The thread's next message; `None`: the thread died, which only a defect causes.
    pub fn hear(&self) -> Option<FromWorker> {
        self.from.recv_timeout(STEP).ok()
    }

    /// Ends the thread at its current point, and tidies up nothing that a killed process would leave.
    pub fn kill(mut self) {
        self.tell(ToWorker::Die);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Payload that unwinds the thread of a killed process.
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
    let opened = Replica::open(&root, options).map_err(|error| format!("{error}: {error:?}"));
    let started = opened.and_then(|mut replica| match replica.started() {
        Ok(()) => Ok(replica),
        Err(error) => Err(format!("{error}: {error:?}")),
    });
    let replica = match started {
        Ok(replica) => Planted::new(replica, root, plant, pause),
        Err(error) => {
            let _ = outbox.send(FromWorker::Opened(Err(error)));
            return;
        }
    };
    let _ = outbox.send(FromWorker::Opened(Ok(Box::new(replica.state()))));
    let wire = Wire { inbox: inbox.clone(), outbox: outbox.clone(), transfers: Arc::default() };
    let (reports, mut reported) = tokio::sync::mpsc::channel(4096);
    let open_source: OpenSource = Box::new(move |_, _| Box::new(wire.clone()) as Box<dyn Source>);
    let mut bench = Bench::new(replica, open_source, Hooks::default(), reports);
    loop {
        // A separate statement, so that the lock is released before the command runs.
        let told = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(ToWorker::Do(command, cancellation)) = told else { return };
        let report = Box::new(bench.perform(*command, &cancellation));
        // A node does this after sending the report. Here nothing may run in parallel with the next step.
        bench.bound();
        // The number of progress reports depends on threads of staging, and reports may be lost in any case.
        let activating =
            std::iter::from_fn(|| reported.try_recv().ok()).any(|r| matches!(r, Report::Activating));
        if outbox.send(FromWorker::Done { report, activating }).is_err() {
            return;
        }
    }
}

/// The origin as seen by the thread.
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
        // As over the network, a refusal is the result of the call.
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

/// Options of the simulated replicas.
pub fn options(
    (keep, grace): (usize, Duration),
    part: PartLimits,
    swap: Swap,
    checks: bool,
    clock: &Clock,
) -> ReplicaOptions {
    ReplicaOptions {
        keep,
        grace,
        checks,
        part,
        swap: Some(swap),
        clock: clock.clone(),
        ..ReplicaOptions::default()
    }
}
