//! Life of a node: its process starts, receives, decides, sends, and is killed.

use std::collections::BTreeMap;

use syncd_agent::replica::Swap;
use syncd_agent::session::event::{Action, Event as Heard};
use syncd_agent::session::machine::{Machine, Trust};
use syncd_agent::session::worker::{Cancellation, Command, Outcome, Report};
use syncd_origin::serve::converse;
use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::node::{FromWorker, ToWorker, Worker, options};
use crate::world::{Control, Event, Running, Violation, World};

impl World {
    /// Starts the node's process, which recovers the replica without an origin.
    pub async fn start_node(&mut self, n: usize) -> Result<(), Violation> {
        let now = Instant::now().into_std();
        let seed = self.random.next_u64();
        let node = &mut self.nodes[n];
        if node.running.is_some() {
            return Ok(());
        }
        node.life += 1;
        node.clock.set(now);
        // Each start may change it. Planted bugs know links.
        let is_exchanged = self.plant.is_none() && seed.is_multiple_of(3);
        let swap = if is_exchanged { Swap::Exchange } else { Swap::Link };
        let options = options((self.keep, self.grace), self.part, swap, self.rolls, &node.clock);
        let worker = Worker::start(format!("node-{n}"), &node.root, options, self.plant);
        let state = match worker.hear() {
            Some(FromWorker::Opened(Ok(state))) => *state,
            Some(FromWorker::Opened(Err(error))) => {
                return Err(self.violation(format!("node {n}: the replica does not open: {error}")));
            }
            _ => return Err(self.violation(format!("node {n}: the replica's thread died at its start"))),
        };
        let boot_id = format!("boot-{}", node.boots);
        let trust = Trust { keys: self.keys.clone(), boot_id };
        let machine = Machine::new(trust, state, now).seeded(seed).checked(self.rolls);
        node.running = Some(Running { machine, worker, command: None, transfers: BTreeMap::new() });
        let live = self.nodes[n]
            .running
            .as_ref()
            .and_then(|r| r.machine.replica().live.as_ref().map(|l| l.number()));
        self.note(format!("node {n} starts with {live:?}"));
        self.check_node(n)?;
        self.apply(n, Heard::Tick).await
    }

    /// Kills the node's process at its current point.
    pub fn kill_node(&mut self, n: usize) {
        self.hang_up(n);
        let node = &mut self.nodes[n];
        node.life += 1;
        node.unreported = false;
        if let Some(running) = node.running.take() {
            for transfer in running.transfers.into_values() {
                transfer.answer.abort();
            }
            running.worker.kill();
        }
    }

    /// Closes the agent's connection. The origin notices unless nothing passes.
    pub fn hang_up(&mut self, n: usize) {
        self.sequence += 1;
        self.nodes[n].connections = self.sequence;
        let Some(control) = self.nodes[n].control.take() else { return };
        if self.nodes[n].partitioned_until > self.now_ms() {
            self.count("half-open connections");
            self.abandoned.push(control);
        }
    }

    /// Lets the session machine decide, and performs its actions.
    pub async fn apply(&mut self, n: usize, heard: Heard) -> Result<(), Violation> {
        let now = Instant::now().into_std();
        self.nodes[n].clock.set(now);
        let Some(running) = &mut self.nodes[n].running else { return Ok(()) };
        for action in running.machine.apply(heard, now) {
            self.act(n, action).await?;
        }
        let now_ms = self.now_ms();
        let Some(running) = &self.nodes[n].running else { return Ok(()) };
        if let Some(deadline) = running.machine.deadline() {
            let wait = deadline.saturating_duration_since(now).as_millis() as u64 + 1;
            let at_ms = now_ms + wait;
            let pending = self.nodes[n].tick_ms;
            if pending <= now_ms || at_ms < pending {
                self.nodes[n].tick_ms = at_ms;
                self.at(at_ms, Event::Tick { node: n, at_ms });
            }
        }
        Ok(())
    }

    async fn act(&mut self, n: usize, action: Action) -> Result<(), Violation> {
        match action {
            Action::Dial(hello) => {
                self.hang_up(n);
                let connection = self.nodes[n].connections;
                let delay = 3 * self.latency();
                // Nothing answers through a partition.
                if self.nodes[n].partitioned_until <= self.now_ms() {
                    self.note(format!("node {n} dials"));
                    self.after(delay, Event::Dialled { node: n, connection, hello });
                }
            }
            Action::Hang => {
                self.note(format!("node {n} hangs up"));
                self.hang_up(n);
            }
            Action::Check(run, live, phase) => self.start_check(n, run, live.root_hash(), phase),
            // The machine knows which run it waits for. Nobody gives orders on a node.
            Action::StopCheck | Action::Ordered(_) => {}
            Action::Send(message) => self.say(n, message)?,
            Action::Start(command) => self.command(n, *command).await?,
            Action::Cancel => {
                self.note(format!("node {n} cancels"));
                self.count("commands cancelled");
                if let Some(cancellation) = self.nodes[n].running.as_ref().and_then(|r| r.command.as_ref()) {
                    cancellation.cancel();
                }
            }
            Action::Follow(_) => {
                return Err(self.violation(format!("node {n} follows another trust document")));
            }
            Action::Verified(Ok(verified)) => {
                self.note(format!("node {n} verified, {} drifted", verified.drifted));
            }
            Action::Verified(Err(_)) | Action::Verifying(_) | Action::RetryHook | Action::Stopped => {}
        }
        Ok(())
    }

    fn say(&mut self, n: usize, message: ToOrigin) -> Result<(), Violation> {
        self.note(format!("node {n} says {}", crate::lies::name_of_agents(&message)));
        if let ToOrigin::Activated(activated) = &message {
            self.check_report(n, activated)?;
        }
        let message = v1::AgentMessage { message: Some(message) };
        let Some(control) = self.nodes[n].control.as_ref() else { return Ok(()) };
        let (connection, not_before) = (control.connection, control.up_ms);
        let lies = self.temper.lies > 0 && self.random.one_in(4 * self.temper.lies);
        let messages = if lies {
            self.count("lies to the origin");
            let newest = self.sealed.last().map_or(1, |(number, _)| *number);
            crate::lies::to_origin(&message, &self.nodes[n].said, newest, &mut self.random)
        } else {
            vec![message.clone()]
        };
        self.nodes[n].said.push(message);
        let mut at = not_before;
        for message in messages {
            at = self.arrival(n, at);
            self.at(at, Event::ToOrigin { node: n, connection, message: Box::new(message) });
        }
        if let Some(control) = &mut self.nodes[n].control {
            control.up_ms = at;
        }
        Ok(())
    }

    /// Accepts a connection, or refuses it.
    pub fn dialled(&mut self, n: usize, connection: u64, hello: v1::Hello) {
        if self.nodes[n].connections != connection || self.nodes[n].partitioned_until > self.now_ms() {
            return;
        }
        let Some(origin) = &self.origin else {
            let delay = self.latency();
            return self.after(delay, Event::Lost { node: n, connection });
        };
        let (to_session, incoming) = mpsc::channel(64);
        let (outgoing, from_session) = mpsc::channel(8);
        let (services, peer) = (origin.services.clone(), self.nodes[n].peer.clone());
        let session =
            tokio::spawn(
                async move { converse(&services, peer, ReceiverStream::new(incoming), &outgoing).await },
            );
        let message = v1::AgentMessage { message: Some(ToOrigin::Hello(hello)) };
        // The channel has room for it.
        let _ = to_session.try_send(Ok(message));
        let now = self.now_ms();
        let control =
            Control { connection, to_session, from_session, session, up_ms: now, down_ms: now, ended: false };
        self.nodes[n].control = Some(control);
    }

    async fn command(&mut self, n: usize, command: Command) -> Result<(), Violation> {
        let name = match &command {
            Command::Update { generation, inline, .. } => {
                format!(
                    "update to {}, {} frames at hand",
                    generation.number(),
                    inline.as_ref().map_or(0, |i| i.frames.len())
                )
            }
            Command::Activate => "activate".to_owned(),
            Command::Return(generation) => format!("return to {}", generation.number()),
            Command::Decide(decision) => format!("decide {decision:?}"),
            Command::Maintain => "maintain".to_owned(),
            Command::Verify => "verify".to_owned(),
        };
        self.note(format!("node {n} starts {name}"));
        self.nodes[n].intact_update = false;
        let cancellation = Cancellation::default();
        if let Some(running) = &mut self.nodes[n].running {
            running.command = Some(cancellation.clone());
            running.worker.tell(ToWorker::Do(Box::new(command), cancellation));
        }
        self.drive(n).await
    }

    /// Runs the worker's thread until it waits for a frame or is done.
    pub async fn drive(&mut self, n: usize) -> Result<(), Violation> {
        let life = self.nodes[n].life;
        loop {
            let heard = self.nodes[n].running.as_ref().map(|running| running.worker.hear());
            match heard {
                None => return Ok(()),
                Some(Some(FromWorker::Ask { transfer, ask })) => self.open_transfer(n, transfer, ask)?,
                Some(Some(FromWorker::Close { transfer })) => self.close_transfer(n, transfer),
                Some(Some(FromWorker::Wait { transfer })) => {
                    if self.is_tampered(n, transfer) {
                        let frame = self.next_frame(n, transfer).await?;
                        self.hand_over(n, frame);
                        continue;
                    }
                    let since = self.now_ms();
                    let at = self.arrival(n, since);
                    self.at(at, Event::Frame { node: n, life, transfer, since });
                    return Ok(());
                }
                Some(Some(FromWorker::Pause)) => {
                    let delay = self.latency();
                    if !self.nodes[n].unreported {
                        let report = Box::new(Report::Activating);
                        self.at(self.now_ms(), Event::Report { node: n, life, report });
                    }
                    self.nodes[n].unreported = true;
                    self.after(delay, Event::Go { node: n, life });
                    return Ok(());
                }
                Some(Some(FromWorker::Done { report, activating })) => {
                    let delay = self.latency();
                    let activating = activating && !self.nodes[n].unreported;
                    self.nodes[n].unreported = true;
                    if activating {
                        let report = Box::new(Report::Activating);
                        self.after(delay, Event::Report { node: n, life, report });
                    }
                    self.after(delay + 1 + self.temper.latency_ms, Event::Report { node: n, life, report });
                    return Ok(());
                }
                Some(Some(FromWorker::Opened(_)) | None) => {
                    return Err(self.violation(format!("node {n}: the replica's thread died or hangs")));
                }
            }
        }
    }

    pub fn resume(&self, n: usize) {
        if let Some(running) = &self.nodes[n].running {
            running.worker.tell(ToWorker::Go);
        }
    }

    pub async fn reported(&mut self, n: usize, life: u64, report: Report) -> Result<(), Violation> {
        if self.nodes[n].life != life {
            return Ok(());
        }
        if let Report::Done(outcome, state) = &report {
            let text = match outcome {
                Outcome::Staged => "staged".to_owned(),
                Outcome::Activated => "activated".to_owned(),
                Outcome::Decided => "decided".to_owned(),
                Outcome::Maintained(maintenance) => format!("maintained, again in {:?}", maintenance.again),
                Outcome::Verified(verified) => format!("verified {} files", verified.files),
                Outcome::Failed(failure) => format!("failed, {:?}", failure.retry),
                Outcome::Declined(failure) => format!("declined, {:?}", failure.retry),
            };
            let live = state.live.as_ref().map(|l| l.number().get());
            self.note(format!("node {n} {text}; live {live:?}, {} spares", state.spares));
            if let Outcome::Failed(failure) | Outcome::Declined(failure) = outcome {
                // Not part of the trace, because it contains paths and errors of this machine.
                if let Some(log) = &mut self.log {
                    log.push(format!("         ({})\n", failure.reason));
                }
                if failure.retry.is_some() {
                    self.count("updates failed");
                }
            }
            if matches!(outcome, Outcome::Activated) {
                self.count("activations");
            }
        }
        let done = matches!(report, Report::Done(..));
        if done {
            self.nodes[n].unreported = false;
        }
        self.apply(n, Heard::Report(report)).await?;
        if done { self.check_node(n) } else { Ok(()) }
    }
}
