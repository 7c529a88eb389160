//! The task that owns the roster and the connections.

mod agent;
mod check_command;
mod rollouts;
mod saving;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use syncd_shared::identity::authority::AuthorityKey;
use syncd_shared::identity::{AgentName, PeerIdentity};
use syncd_shared::{AgentState, GenerationNumber, OrderedStanding, SignedGeneration};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::clock::now_ms;
use crate::fleet::first_sync::FirstSyncLog;
use crate::fleet::records::{RecordChange, RecordError};
use crate::fleet::registry::expiry_ms;
use crate::fleet::rollout::record::Stored;
use crate::fleet::rollout::{Assignment, Publication, RolloutOrder, RolloutView};
use crate::fleet::roster::{Admission, NodeOrder, Roster, TokenView, Undo, not_after_ms};
use crate::fleet::view::FleetView;
use crate::fleet::{EndReason, FleetError, Greeting, Report, agent_view};

use self::agent::{Agent, Connection, Standing, due_hook, note_drift, note_reached};
use self::rollouts::Steering;
use self::saving::{SEEN_PAUSE, WRITE_BEHIND, due, finished};

/// Commands applied before the view is published again.
const BATCH: usize = 256;

pub(super) type Save = Arc<dyn Fn(&[RecordChange]) -> Result<(), RecordError> + Send + Sync>;
type Reply = oneshot::Sender<Result<(), FleetError>>;

/// Answer to [`Command::Attach`].
pub(super) struct Attached {
    /// Number of the connection.
    pub(super) connection: u64,
    pub(super) ended: oneshot::Receiver<EndReason>,
    pub(super) assignment: watch::Receiver<Option<Assignment>>,
    /// Orders that the node must know.
    pub(super) standing: watch::Receiver<OrderedStanding>,
}

pub(super) enum Command {
    AddToken {
        secret_hash: [u8; 32],
        ttl: Duration,
        uses: u32,
        reply: Reply,
    },
    Tokens {
        reply: oneshot::Sender<Vec<TokenView>>,
    },
    RevokeToken {
        id: String,
        reply: Reply,
    },
    CheckJoin {
        secret_hash: [u8; 32],
        name: AgentName,
        reply: Reply,
    },
    CheckRenewal {
        peer: PeerIdentity,
        /// The current one.
        authority: AuthorityKey,
        reply: Reply,
    },
    Revoke {
        name: String,
        reply: Reply,
    },
    Join {
        secret_hash: [u8; 32],
        peer: PeerIdentity,
        group: Option<AgentName>,
        reply: Reply,
    },
    Order {
        name: String,
        order: NodeOrder,
        reply: Reply,
    },
    Forget {
        name: String,
        reply: Reply,
    },
    OrderRollout {
        order: RolloutOrder,
        reply: Reply,
    },
    Renew {
        peer: PeerIdentity,
        new: PeerIdentity,
        reply: Reply,
    },
    Attach {
        peer: PeerIdentity,
        greeting: Box<Greeting>,
        reply: oneshot::Sender<Result<Attached, FleetError>>,
    },
    Report {
        name: AgentName,
        connection: u64,
        report: Report,
    },
    Detach {
        name: AgentName,
        connection: u64,
    },
}

/// The sender of a command whose record must be written, and how to undo the command if that fails.
type Waiting = (Reply, Undo);

pub(super) struct FleetTask {
    roster: Roster,
    agents: BTreeMap<AgentName, Agent>,
    save: Save,
    saving: Option<JoinHandle<Result<(), RecordError>>>,
    /// Records not written yet, and the commands waiting for them.
    unsaved: Vec<RecordChange>,
    waiting: Vec<Waiting>,
    /// Records being written.
    in_flight: (Vec<RecordChange>, Vec<Waiting>),
    observed: mpsc::Sender<SignedGeneration>,
    /// The highest observed generation not yet reported to the committer.
    unreported: Option<SignedGeneration>,
    newest: watch::Receiver<Option<Arc<Publication>>>,
    steering: Steering,
    /// The generation that was assigned last.
    assigned: Option<Arc<SignedGeneration>>,
    /// Whether reports may have changed assignments.
    reassign: bool,
    view: watch::Sender<Arc<FleetView>>,
    admission: watch::Sender<Arc<Admission>>,
    next_connection: u64,
    /// Whether the roster has changes not yet taken over into `agents` and `admission`.
    roster_ahead: bool,
    published: Instant,
    /// Time of the next publication of the view.
    publish_at: Option<Instant>,
    /// Whether writing failed, to be retried with the next tick.
    paused: bool,
}

impl FleetTask {
    pub(super) fn new(
        roster: Roster,
        save: Save,
        observed: mpsc::Sender<SignedGeneration>,
        newest: watch::Receiver<Option<Arc<Publication>>>,
        (stored, shutdown): (Stored, CancellationToken),
    ) -> Self {
        let admission = watch::Sender::new(Arc::new(roster.admission()));
        let mut task = Self {
            roster,
            agents: BTreeMap::new(),
            save,
            saving: None,
            unsaved: Vec::new(),
            waiting: Vec::new(),
            in_flight: Default::default(),
            observed,
            unreported: None,
            newest,
            steering: Steering::new(stored, shutdown),
            assigned: None,
            reassign: false,
            view: watch::Sender::new(Arc::default()),
            admission,
            next_connection: 0,
            roster_ahead: false,
            published: Instant::now(),
            publish_at: None,
            paused: false,
        };
        task.roster_ahead = true;
        task.follow_roster();
        task.publish();
        task
    }

    pub(super) fn view(&self) -> watch::Receiver<Arc<FleetView>> {
        self.view.subscribe()
    }

    pub(super) fn rollout(&self) -> watch::Receiver<Arc<RolloutView>> {
        self.steering.view()
    }

    pub(super) fn admission(&self) -> watch::Receiver<Arc<Admission>> {
        self.admission.subscribe()
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(WRITE_BEHIND);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                // Always in this order, so that a seed of the simulation repeats. Commands may come without a
                // pause and are last. Each of the others is over once it is handled, so that none starves.
                biased;
                () = shutdown.cancelled() => break,
                Ok(()) = self.newest.changed() => self.announced(),
                result = finished(&mut self.saving) => self.saved(result),
                _ = tick.tick() => self.tick(),
                () = due(self.publish_at) => {}
                () = due(self.steering.wake_at()) => self.reassign = true,
                verdict = self.steering.check_ended() => {
                    self.steering.checked(verdict);
                    self.reassign = true;
                }
                count = commands.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        break;
                    }
                    batch.drain(..).for_each(|command| self.apply(command));
                }
            }
            self.follow_roster();
            self.report_observed();
            if std::mem::take(&mut self.reassign) {
                self.steer();
                self.assign(false);
            }
            if !self.paused {
                self.start_saving();
            }
            if self.publish_at.is_some_and(|at| at <= Instant::now()) {
                self.publish();
            }
        }
        self.stop().await;
    }

    /// Writes everything that is not written yet.
    async fn stop(mut self) {
        self.write_behind(true);
        while self.saving.is_some() || !self.unsaved.is_empty() {
            let before = self.unsaved.len();
            self.start_saving();
            let result = finished(&mut self.saving).await;
            let failed = result.is_err();
            self.saved(result);
            if failed && self.unsaved.len() >= before {
                return;
            }
        }
    }

    fn apply(&mut self, command: Command) {
        let now = now_ms();
        let is_sign_of_life = matches!(command, Command::Report { report: Report::Heartbeat, .. });
        self.publish_after(if is_sign_of_life { SEEN_PAUSE } else { self.publish_pause() });
        self.reassign |= !is_sign_of_life && self.steering.is_running();
        self.reassign |= matches!(command, Command::Attach { .. }) && self.steering.is_watching();
        match command {
            Command::AddToken { secret_hash, ttl, uses, reply } => {
                self.roster.add_token(secret_hash, uses, expiry_ms(now, ttl), now);
                self.durable(Ok(()), Undo::Token { secret_hash }, reply);
            }
            Command::Tokens { reply } => drop(reply.send(self.roster.tokens(now))),
            Command::RevokeToken { id, reply } => {
                let revoked = self.roster.revoke_token(&id);
                self.durable(revoked, Undo::Nothing, reply);
            }
            Command::CheckJoin { secret_hash, name, reply } => {
                let checked = self.roster.check_join(&secret_hash, &name, now);
                let _ = reply.send(checked.map_err(FleetError::from));
            }
            Command::CheckRenewal { peer, authority, reply } => {
                let checked = self.roster.check_renewal(&peer, authority, now);
                let _ = reply.send(checked.map_err(FleetError::from));
            }
            Command::Revoke { name, reply } => self.revoke(&name, now, reply),
            Command::Join { secret_hash, peer, group, reply } => {
                let joined = self.roster.join(&secret_hash, &peer, group.as_ref(), now);
                let undo = Undo::Join { secret_hash, name: peer.name, serial: peer.serial };
                self.durable(joined, undo, reply);
            }
            Command::Order { name, order, reply } => {
                let ordered = self.roster.order(&name, order, now);
                self.durable(ordered, Undo::Nothing, reply);
                self.reassign = true;
            }
            Command::Forget { name, reply } => self.forget(&name, reply),
            Command::OrderRollout { order, reply } => self.order_rollout(order, reply),
            Command::Renew { peer, new, reply } => {
                let renewed = self.roster.renew(&peer, &new, now);
                let undo = Undo::Renew { name: new.name, serial: new.serial };
                self.durable(renewed, undo, reply);
            }
            Command::Attach { peer, greeting, reply } => {
                let attached = self.attach(&peer, *greeting, now);
                let _ = reply.send(attached);
            }
            Command::Report { name, connection, report } => self.report(&name, connection, report, now),
            Command::Detach { name, connection } => {
                if let Some(agent) = self.agents.get_mut(&name)
                    && agent.connection.as_ref().is_some_and(|c| c.id == connection)
                {
                    agent.disconnect();
                }
            }
        }
    }

    fn revoke(&mut self, name: &str, now: i64, reply: Reply) {
        let revoked = self.roster.revoke(name, now).map(|name| {
            if let Some(connection) = self.agents.remove(&name).and_then(|a| a.connection) {
                let _ = connection.end.send(EndReason::Revoked);
            }
        });
        self.durable(revoked, Undo::Nothing, reply);
        // At once, so that a disconnected agent cannot return.
        self.follow_roster();
    }

    fn forget(&mut self, name: &str, reply: Reply) {
        let is_connected = self.agents.iter().any(|(n, a)| n.as_str() == name && a.connection.is_some());
        let forgotten = self.roster.forget(name, is_connected).map(|name| drop(self.agents.remove(&name)));
        self.durable(forgotten, Undo::Nothing, reply);
        self.reassign = true;
    }

    fn roster_changed(&mut self) {
        let changes = self.roster.take_changes();
        self.roster_ahead |= !changes.is_empty();
        self.unsaved.extend(changes);
    }

    /// Updates the view and the admission rules from the roster. Once for many changes, because it walks the
    /// whole roster.
    fn follow_roster(&mut self) {
        if !std::mem::take(&mut self.roster_ahead) {
            return;
        }
        self.admission.send_replace(Arc::new(self.roster.admission()));
        let roster = &self.roster;
        self.agents.retain(|name, _| roster.has(name));
        for (name, record) in self.roster.agents() {
            let agent = self.agents.entry(name.clone()).or_insert_with(|| Agent {
                view: agent_view(name, record),
                connection: None,
                notes: Vec::new(),
                cloned: None,
                take_overs: VecDeque::new(),
                written: (record.last_seen_ms, record.told.clone()),
            });
            agent.obey(&record.orders);
            if let Some(newest) = record.certificates.last() {
                agent.view.serial = newest.serial.to_string();
                agent.view.not_after_ms = newest.not_after_ms;
            }
        }
    }

    fn attach(&mut self, peer: &PeerIdentity, greeting: Greeting, now: i64) -> Result<Attached, FleetError> {
        self.roster.admit(peer, now)?;
        self.roster_changed();
        if !self.agents.contains_key(&peer.name) {
            self.follow_roster();
        }
        self.observe(&greeting);
        let newest = self.assigned.clone();
        let Some(agent) = self.agents.get_mut(&peer.name) else { return Err(FleetError::Stopping) };
        agent.displace(&greeting.boot_id, peer.serial, now);
        self.next_connection += 1;
        let (end, ended) = oneshot::channel();
        let (assignment, assigned) = watch::channel(None);
        let (standing, ordered) = watch::channel(agent.view.orders.standing());
        let connection = Connection {
            id: self.next_connection,
            boot_id: greeting.boot_id,
            serial: peer.serial,
            end,
            assignment,
            standing,
            assigned: VecDeque::new(),
            first_sync: FirstSyncLog::default(),
        };
        agent.connection = Some(connection);
        agent.notes = greeting.notes;
        let view = &mut agent.view;
        view.connected = true;
        view.last_seen_ms = now;
        view.generation = greeting.live.as_ref().map(SignedGeneration::number);
        view.root = greeting.live.as_ref().map(SignedGeneration::root_hash);
        (view.staged, view.waits_for_check) = (None, false);
        view.hook = greeting.hook;
        view.check = greeting.check;
        view.has_check = greeting.has_check;
        view.standing = greeting.standing;
        view.refused = greeting.refused;
        view.root_key = greeting.root_key;
        view.state = if greeting.live.is_some() { AgentState::Live } else { AgentState::Empty };
        view.error = None;
        view.needs_operator = false;
        view.progress = None;
        view.version = Some(greeting.version).filter(|version| !version.is_empty());
        view.spare_misses = 0;
        note_drift(view, greeting.drift);
        view.fork = greeting.fork;
        view.not_after_ms = view.not_after_ms.max(not_after_ms(peer));
        let generation = view.generation.map_or(0, GenerationNumber::get);
        tracing::info!(agent = %view.name, generation, "agent connected");
        if let Some(newest) = newest {
            let first = self.steering.assignment(&agent.node(), &newest);
            agent.assign(first, false);
        }
        let connection = self.next_connection;
        Ok(Attached { connection, ended, assignment: assigned, standing: ordered })
    }

    /// Checks for a generation above the announced one, or another one with the same number. Either means
    /// that this origin was restored from a backup.
    fn observe(&mut self, greeting: &Greeting) {
        let ours = self.newest.borrow().as_ref().map(|newest| newest.generation.clone());
        // The number of a refused generation is taken as well.
        for shown in [&greeting.live, &greeting.accepted].into_iter().flatten() {
            let unknown = |known: Option<&SignedGeneration>| {
                known.is_none_or(|known| {
                    (shown.number(), shown.root_hash()) != (known.number(), known.root_hash())
                        && shown.number() >= known.number()
                })
            };
            if unknown(ours.as_deref()) && unknown(self.unreported.as_ref()) {
                self.unreported = Some(shown.clone());
            }
        }
    }

    /// Passes an unknown generation to the committer. The next command or tick retries if it is busy.
    fn report_observed(&mut self) {
        if self.unreported.is_none() {
            return;
        }
        let observed = self.observed.clone();
        let Ok(permit) = observed.try_reserve() else { return };
        // The view first: the committer looks there for nodes that refuse the generation.
        self.publish();
        if let Some(generation) = self.unreported.take() {
            permit.send(generation);
        }
    }

    fn report(&mut self, name: &AgentName, connection: u64, report: Report, now: i64) {
        let Some(agent) = self.agents.get_mut(name) else { return };
        let Some(connection) = agent.connection.as_mut().filter(|current| current.id == connection) else {
            return;
        };
        let view = &mut agent.view;
        view.last_seen_ms = now;
        let before = Standing::of(view);
        match report {
            Report::Heartbeat => {}
            Report::Progress { state, progress } => {
                if view.generation.is_none() && connection.first_sync.is_due(&progress, Instant::now()) {
                    tracing::info!(agent = %view.name, "first sync of {progress}");
                }
                view.state = state;
                view.staged = view.staged.filter(|(staged, _)| staged.get() == progress.generation);
                view.progress = Some(progress);
                if state != AgentState::Failed {
                    view.error = None;
                    view.needs_operator = false;
                }
            }
            Report::Staged { generation, root } => {
                note_reached(view, AgentState::Staged);
                (view.staged, view.waits_for_check) = (Some((generation, root)), false);
            }
            Report::Activated { generation, root, spare_misses, hook_due } => {
                note_reached(view, AgentState::Live);
                view.staged = None;
                view.hook = due_hook(view.hook.take(), generation, hook_due);
                view.generation = Some(generation);
                view.root = Some(root);
                view.fork = view.fork.filter(|fork| generation.get() <= fork.generation);
                // The agent counts since its start, not since its last report.
                view.spare_misses = spare_misses;
                self.reassign |= view.has_failed_check();
            }
            Report::Hook(hook) => view.hook = Some(hook),
            Report::Check(check) => {
                view.note_check(check);
                self.reassign = true;
            }
            Report::Standing(standing) => {
                view.standing = standing;
                self.reassign = true;
            }
            Report::Drift(drift) => note_drift(view, drift),
            Report::Failed { reason, needs_operator } => {
                view.state = AgentState::Failed;
                view.staged = None;
                view.error = Some(reason);
                view.needs_operator = needs_operator;
            }
        }
        let assigned = view.generation.and_then(|number| connection.assigned(number));
        before.log_change(view, assigned);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use syncd_shared::ed25519::SigningKey;
    use syncd_shared::identity::Serial;
    use syncd_shared::{Generation, RootEntry, TreeId};
    use time::OffsetDateTime;

    use super::*;
    use crate::fleet::rollout::Plan;
    use crate::fleet::roster::{AGENTS, TOKENS};

    type Written = BTreeMap<(&'static str, Vec<u8>), Vec<u8>>;

    /// A disk that can be broken, and what lies on it.
    #[derive(Default)]
    struct Disk {
        broken: AtomicBool,
        written: std::sync::Mutex<Written>,
    }

    impl Disk {
        fn save(&self, changes: &[RecordChange]) -> Result<(), RecordError> {
            if self.broken.load(Ordering::SeqCst) {
                return Err(RecordError::Interrupted);
            }
            let mut written = self.written.lock().unwrap();
            for RecordChange { namespace, name, value } in changes {
                match value {
                    Some(value) => drop(written.insert((namespace, name.clone()), value.clone())),
                    None => drop(written.remove(&(namespace, name.clone()))),
                }
            }
            Ok(())
        }
    }

    fn peer(serial: u8) -> PeerIdentity {
        let not_before = OffsetDateTime::now_utc();
        PeerIdentity {
            name: "web1".parse().unwrap(),
            serial: Serial::from_bytes([serial; 16]),
            fingerprint: [serial; 32],
            not_before,
            not_after: not_before + time::Duration::days(30),
            issuer: AuthorityKey([0; 20]),
        }
    }

    #[tokio::test]
    async fn a_join_that_could_not_be_written_leaves_its_token_and_its_name() {
        let disk = Arc::new(Disk::default());
        let saving = disk.clone();
        let (observed, _observed) = mpsc::channel(1);
        let save: Save = Arc::new(move |changes| saving.save(changes));
        let (_announced, newest) = watch::channel(None);
        let task = FleetTask::new(Roster::default(), save, observed, newest, Default::default());
        let (mut view, stop) = (task.view(), CancellationToken::new());
        let (commands, receiver) = mpsc::channel(8);
        let task = tokio::spawn(task.run(receiver, stop.clone()));
        let ask = async |command: Box<dyn FnOnce(Reply) -> Command>| {
            let (reply, answer) = oneshot::channel();
            commands.send(command(reply)).await.ok().unwrap();
            answer.await.unwrap()
        };
        let join = |serial| {
            Box::new(move |reply| Command::Join {
                secret_hash: [1; 32],
                peer: peer(serial),
                group: None,
                reply,
            })
        };
        let ttl = Duration::from_secs(60);
        ask(Box::new(move |reply| Command::AddToken { secret_hash: [1; 32], ttl, uses: 1, reply }))
            .await
            .unwrap();
        disk.broken.store(true, Ordering::SeqCst);
        for serial in [1, 2] {
            assert!(
                matches!(ask(join(serial)).await, Err(FleetError::Save(_))),
                "the same token and name again"
            );
        }
        let gone = view.wait_for(|view| view.agents.is_empty());
        drop(tokio::time::timeout(Duration::from_secs(20), gone).await.expect("nobody has joined").unwrap());
        disk.broken.store(false, Ordering::SeqCst);
        ask(join(3)).await.unwrap();
        disk.broken.store(true, Ordering::SeqCst);
        let revoked = ask(Box::new(|reply| Command::Revoke { name: "web1".into(), reply })).await;
        assert!(matches!(revoked, Err(FleetError::NotDurable(_))), "it is in force, and the answer says so");
        stop.cancel();
        task.await.unwrap();
        let written = disk.written.lock().unwrap().clone();
        let kinds: Vec<_> = written.keys().map(|(namespace, _)| *namespace).collect();
        assert_eq!(kinds, [AGENTS, TOKENS]);
        let agent = String::from_utf8(written.values().next().unwrap().clone()).unwrap();
        assert!(agent.contains(&peer(3).serial.to_string()), "{agent}");
    }

    /// A seed of the simulation repeats only if the order of what is ready is fixed.
    #[tokio::test]
    async fn a_generation_is_taken_up_before_the_commands_that_came_with_it() {
        for _ in 0..30 {
            let mut roster = Roster::default();
            let now = now_ms();
            roster.add_token([1; 32], 1, expiry_ms(now, Duration::from_secs(60)), now);
            roster.join(&[1; 32], &peer(1), None, now).unwrap();
            let (observed, _observed) = mpsc::channel(1);
            let (announced, newest) = watch::channel(None);
            let save: Save = Arc::new(|_| Ok(()));
            let task = FleetTask::new(roster, save, observed, newest, Default::default());
            let generation = Generation {
                tree_id: TreeId::from_bytes([1; 16]),
                epoch: 1,
                number: GenerationNumber::new(1).unwrap(),
                trust: 1,
                root: RootEntry::empty(),
                parent: None,
                created_ms: 0,
                label: String::new(),
            };
            let generation = Arc::new(generation.sign(&SigningKey::from_bytes(&[3; 32])));
            let plan = Plan::unwatched();
            announced.send(Some(Arc::new(Publication { generation, plan }))).unwrap();
            let (commands, receiver) = mpsc::channel(8);
            let (reply, answer) = oneshot::channel();
            let greeting = Box::default();
            commands.try_send(Command::Attach { peer: peer(1), greeting, reply }).ok().unwrap();
            let stop = CancellationToken::new();
            let task = tokio::spawn(task.run(receiver, stop.clone()));
            let attached = answer.await.unwrap().unwrap();
            assert!(attached.assignment.borrow().is_some());
            stop.cancel();
            task.await.unwrap();
        }
    }
}
