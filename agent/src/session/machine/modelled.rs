//! An agent as a value, for a search through every order of events (`syncd-sim --model`).
//!
//! The machine and the decisions are the real ones. The worker, the record and time are as small as they can
//! be: a command ends when the search says so, a crash leaves what is durable, and a pause ends when the
//! search says so. So two agents that can't be told apart by what they do next have the same [`Agent::key`].

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_proto::v1::origin_message::Message as FromOrigin;
use syncd_shared::{CheckStatus, GenerationNumber, NodeStanding, RootHash, SignedGeneration};

use super::link::{Link, Up};
use super::schedule::Job;
use super::{Machine, Trust};
use crate::backoff::Backoff;
use crate::check::Phase;
use crate::replica::decide::{Standing, decided};
use crate::session::event::{Action, Event};
use crate::session::worker::{Command, Decision, Failure, Outcome, ReplicaState, Report};
use crate::state::decisions::{Decisions, Named};

/// Name of a generation.
pub type Name = (u64, RootHash);

/// A bug, so that the search is seen to find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// A crash forgets what was accepted.
    ForgetsAccepted,
    /// A refusal is lost with the record.
    ForgetsRefused,
    /// A generation passes without its check.
    PassesUntried,
    /// A tree that is staged anew is not reported anew.
    StagesOnce,
    /// An order to activate never says that others flip.
    NeverBehind,
}

/// An event of an agent.
#[derive(Debug, Clone)]
pub enum Happens {
    /// The command of the worker ends well.
    Work,
    /// It fails.
    WorkFails,
    /// The hook before the activation refuses.
    Declines,
    /// The check ends.
    Checked(bool),
    /// A pause ends.
    Wakes(Pause),
    /// The connection breaks, or can't be made.
    Lost,
    Hears(FromOrigin),
    /// A person gives an order on the node.
    Order(Decision),
    /// The process dies. The record may be lost with it.
    Dies {
        loses_record: bool,
    },
    Boots,
}

/// A pause that the machine waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pause {
    Redial,
    Retry,
    Return,
    Decide,
    Check,
}

/// A message of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Said {
    Staged(Name),
    Activated(Name),
    Failed,
    Check(CheckReport),
    Standing {
        drained: bool,
        pinned: Option<u64>,
    },
    /// It hangs up.
    Hangs,
}

/// A report on the node's check, without its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CheckReport {
    pub of: Name,
    pub outcome: i32,
    pub returned_to: Option<u64>,
}

/// The hello of a dial.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Greeting {
    pub live: Option<Name>,
    pub accepted: Option<Name>,
    pub refused: Vec<RootHash>,
    pub check: Option<CheckReport>,
    pub has_check: bool,
    pub drained: bool,
    pub pinned: Option<u64>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Agent {
    trust: Trust,
    has_check: bool,
    plant: Option<Plant>,
    /// `None`: the process is dead.
    machine: Option<Machine>,
    live: Option<SignedGeneration>,
    accepted: Option<SignedGeneration>,
    held: Vec<SignedGeneration>,
    decisions: Decisions,
    command: Option<Command>,
    is_cancelled: bool,
    staged: Option<SignedGeneration>,
    check: Option<(u64, Phase)>,
    greeting: Option<Greeting>,
    /// Roots that have passed here, for the search.
    passed: BTreeSet<RootHash>,
    /// Roots that were refused here, for the search.
    refused: BTreeSet<RootHash>,
}

fn now() -> Instant {
    static NOW: OnceLock<Instant> = OnceLock::new();
    *NOW.get_or_init(Instant::now)
}

/// Later than any pause.
fn never() -> Instant {
    now() + Duration::from_secs(1 << 30)
}

fn name(generation: &SignedGeneration) -> Name {
    (generation.number().get(), generation.root_hash())
}

fn failure() -> Failure {
    Failure { retry: Some(v1::RetryClass::Retry), reason: "a fault".into() }
}

fn report(check: &v1::CheckReport) -> Option<CheckReport> {
    let CheckStatus { generation, root, outcome: _, returned_to, .. } =
        CheckStatus::from_report(check).ok()?;
    Some(CheckReport { of: (generation, root), outcome: check.outcome, returned_to })
}

impl Agent {
    /// An agent that is running and not connected, with a live generation that has passed.
    pub fn new(trust: Trust, live: &SignedGeneration, has_check: bool, plant: Option<Plant>) -> Self {
        let decisions = Decisions { good: Some(Named::of(live)), ..Decisions::default() };
        let mut agent = Self {
            trust,
            has_check,
            plant,
            machine: None,
            live: Some(live.clone()),
            accepted: Some(live.clone()),
            held: Vec::new(),
            decisions,
            command: None,
            is_cancelled: false,
            staged: None,
            check: None,
            greeting: None,
            passed: BTreeSet::from([live.root_hash()]),
            refused: BTreeSet::new(),
        };
        agent.happens(Happens::Boots);
        agent
    }

    pub fn is_running(&self) -> bool {
        self.machine.is_some()
    }

    pub fn live(&self) -> Option<Name> {
        self.live.as_ref().map(name)
    }

    pub fn accepted(&self) -> u64 {
        self.accepted.as_ref().map_or(0, |accepted| accepted.number().get())
    }

    pub fn good(&self) -> Option<RootHash> {
        self.decisions.good.map(|good| good.root)
    }

    pub fn refuses(&self, root: &RootHash) -> bool {
        self.decisions.refused.iter().any(|refusal| refusal.generation.root == *root)
    }

    pub fn has_passed(&self, root: &RootHash) -> bool {
        self.passed.contains(root)
    }

    /// Whether the root was ever refused here.
    pub fn has_refused(&self, root: &RootHash) -> bool {
        self.refused.contains(root)
    }

    pub fn is_pinned(&self) -> bool {
        self.decisions.is_pinned()
    }

    /// Whether the node is ready for balancers, as `/readyz` says.
    pub fn is_ready(&self) -> bool {
        let is_behind = self.machine.as_ref().is_none_or(Machine::is_behind);
        self.live.is_some() && !self.decisions.is_drained() && !is_behind
    }

    /// Whether the node takes part in a flip right now: the worker switches, or will once it has recorded a
    /// decision.
    pub fn is_switching(&self) -> bool {
        let target = self.machine.as_ref().and_then(|machine| machine.target.as_ref());
        let flips_along = target.is_some_and(|target| target.flips_along) && self.works();
        let command = self.command.as_ref();
        flips_along
            || command.is_some_and(|command| match command {
                Command::Activate | Command::Return(_) => true,
                Command::Update { activate, .. } => *activate,
                _ => false,
            })
    }

    pub fn is_connected(&self) -> bool {
        self.machine.as_ref().is_some_and(Machine::is_connected)
    }

    /// The hello of a dial that was not answered yet.
    pub fn greeting(&self) -> Option<&Greeting> {
        self.greeting.as_ref()
    }

    pub fn works(&self) -> bool {
        self.command.is_some()
    }

    /// Whether the worker's command may fail.
    pub fn may_fail(&self) -> bool {
        let command = self.command.as_ref();
        command.is_some_and(|command| !matches!(command, Command::Decide(_))) && !self.is_cancelled
    }

    /// Whether the hook before an activation is about to be asked.
    pub fn may_decline(&self) -> bool {
        let root = self.live.as_ref().map(SignedGeneration::root_hash);
        let differs = |target: &SignedGeneration| Some(target.root_hash()) != root;
        match &self.command {
            Some(Command::Activate) => self.staged.as_ref().is_some_and(differs),
            Some(Command::Update { activate: true, generation, .. }) => {
                differs(generation) && !self.is_cancelled
            }
            _ => false,
        }
    }

    pub fn is_checking(&self) -> bool {
        self.check.is_some()
    }

    /// Pauses that may end.
    pub fn pauses(&self) -> Vec<Pause> {
        let Some(machine) = &self.machine else { return Vec::new() };
        let all = [
            (Pause::Redial, matches!(machine.link, Link::Down { .. })),
            (Pause::Retry, machine.retry_at.is_some()),
            (Pause::Return, machine.return_at.is_some()),
            (Pause::Decide, machine.decide_at.is_some()),
            (Pause::Check, machine.checks.retry_at.is_some()),
        ];
        all.into_iter().filter_map(|(pause, is_on)| is_on.then_some(pause)).collect()
    }

    /// Has something happen. Returns what the agent sends.
    pub fn happens(&mut self, what: Happens) -> Vec<Said> {
        let mut said = Vec::new();
        match what {
            Happens::Work => self.end_command(Self::perform, &mut said),
            Happens::WorkFails => {
                let outcome = |agent: &mut Self, _| {
                    agent.staged = None;
                    Outcome::Failed(failure())
                };
                self.end_command(outcome, &mut said);
            }
            Happens::Declines => {
                let outcome = |agent: &mut Self, command| {
                    if let Command::Update { generation, .. } = command {
                        agent.staged = Some(*generation);
                    }
                    Outcome::Declined(failure())
                };
                self.end_command(outcome, &mut said);
            }
            Happens::Checked(passes) => {
                if let Some((run, _)) = self.check.take() {
                    let result = if passes { Ok(()) } else { Err("it fails".to_owned()) };
                    self.apply(Event::Checked(run, result), &mut said);
                }
            }
            Happens::Wakes(pause) => {
                self.end_pause(pause);
                self.apply(Event::Tick, &mut said);
            }
            Happens::Lost => {
                self.greeting = None;
                self.apply(Event::Lost("cut".into()), &mut said);
            }
            Happens::Hears(message) => {
                if matches!(message, FromOrigin::Welcome(_)) {
                    self.greeting = None;
                }
                self.apply(Event::Message(v1::OriginMessage { message: Some(message) }), &mut said);
            }
            Happens::Order(decision) => self.apply(Event::Order(decision), &mut said),
            Happens::Dies { loses_record } => self.die(loses_record),
            Happens::Boots => self.boot(&mut said),
        }
        said
    }

    fn die(&mut self, loses_record: bool) {
        (self.machine, self.command, self.staged) = (None, None, None);
        (self.check, self.greeting, self.is_cancelled) = (None, None, false);
        if self.plant == Some(Plant::ForgetsAccepted) {
            self.accepted.clone_from(&self.live);
        }
        if !loses_record {
            return;
        }
        // As in a recovery, the highest of the signed copies counts as accepted. The live tree is known
        // again, and the one to return to.
        let copies = self.held.iter().chain(&self.live);
        self.accepted = copies.max_by_key(|copy| copy.number()).cloned();
        let mut decisions = Decisions { refused: self.decisions.refused.clone(), ..Decisions::default() };
        if self.plant == Some(Plant::ForgetsRefused) {
            decisions.refused.clear();
        }
        let back = self.live.as_ref().and_then(|live| decisions.refusal(live)?.back);
        self.held.retain(|held| back == Some(Named::of(held)));
        decisions.good = back.filter(|_| !self.held.is_empty());
        self.decisions = decisions;
    }

    fn boot(&mut self, said: &mut Vec<Said>) {
        self.decisions = self.decisions.started(self.live.as_ref(), self.has_check);
        let machine = Machine::new(self.trust.clone(), self.state(), now()).checked(self.has_check);
        self.machine = Some(machine);
        self.apply(Event::Tick, said);
    }

    fn state(&self) -> ReplicaState {
        let mut generations: Vec<GenerationNumber> =
            self.held.iter().chain(&self.live).map(SignedGeneration::number).collect();
        generations.sort_unstable();
        ReplicaState {
            live: self.live.clone(),
            accepted: self.accepted.clone(),
            held: self.held.clone(),
            generations,
            decisions: self.decisions.clone(),
            ..ReplicaState::default()
        }
    }

    /// Does the work of the worker, and nothing fails.
    fn perform(&mut self, command: Command) -> Outcome {
        match command {
            Command::Update { .. } | Command::Return(_) if self.is_cancelled => {
                self.staged = None;
                Outcome::Failed(Failure::superseded())
            }
            Command::Update { generation, activate, .. } => {
                self.staged = None;
                if generation.may_follow(self.accepted.as_ref()).is_err() {
                    return Outcome::Failed(Failure { retry: Some(v1::RetryClass::Operator), ..failure() });
                }
                if activate {
                    return self.switch(*generation, self.has_check);
                }
                self.staged = Some(*generation);
                Outcome::Staged
            }
            Command::Activate => match self.staged.take() {
                Some(staged) if staged.may_follow(self.accepted.as_ref()).is_ok() => {
                    self.switch(staged, self.has_check)
                }
                _ => Outcome::Failed(failure()),
            },
            Command::Return(generation) => {
                self.staged = None;
                self.switch(*generation, false)
            }
            Command::Decide(decision) => self.decide(decision),
            Command::Maintain => Outcome::Maintained(Default::default()),
            Command::Verify => Outcome::Verified(Default::default()),
        }
    }

    fn switch(&mut self, to: SignedGeneration, on_trial: bool) -> Outcome {
        let on_trial = on_trial && self.plant != Some(Plant::PassesUntried);
        if self.live.as_ref().is_some_and(|live| live.root_hash() == to.root_hash()) {
            self.decisions = self.decisions.renamed(&to);
        } else {
            self.decisions = self.decisions.switched(&to, on_trial);
            self.held.retain(|held| held.root_hash() != to.root_hash());
            self.held.extend(self.live.take());
            self.held.sort_by_key(|held| std::cmp::Reverse(held.number()));
        }
        if self.accepted.as_ref().is_none_or(|accepted| accepted.number() <= to.number()) {
            self.accepted = Some(to.clone());
        }
        self.live = Some(to);
        self.pass_unchecked();
        Outcome::Activated
    }

    fn pass_unchecked(&mut self) {
        let is_planted = self.plant == Some(Plant::PassesUntried);
        if (!self.has_check || is_planted) && self.decisions.passes_unchecked(self.live.as_ref()) {
            self.decisions = self.decisions.passed(self.live.as_ref());
            self.passed.extend(self.good().filter(|_| !is_planted));
        }
    }

    fn decide(&mut self, decision: Decision) -> Outcome {
        let has_passed = matches!(decision, Decision::Pass(_));
        if let Decision::Refuse(named, _) = &decision {
            self.refused.insert(named.root);
        }
        let standing = Standing {
            live: self.live.as_ref(),
            held: self.held.iter().chain(&self.live).collect(),
            has_check: self.has_check,
            now_ms: 0,
        };
        match decided(&self.decisions, decision, &standing) {
            Ok(decisions) => {
                self.decisions = decisions;
                self.passed.extend(self.good().filter(|_| has_passed));
                Outcome::Decided
            }
            Err(error) => Outcome::Failed(Failure::new(v1::RetryClass::Retry, &error)),
        }
    }

    fn end_command(&mut self, perform: impl FnOnce(&mut Self, Command) -> Outcome, said: &mut Vec<Said>) {
        let Some(command) = self.command.take() else { return };
        let outcome = perform(self, command);
        self.is_cancelled = false;
        let state = Box::new(self.state());
        self.apply(Event::Report(Report::Done(outcome, state)), said);
    }

    fn apply(&mut self, event: Event, said: &mut Vec<Said>) {
        let Some(machine) = &mut self.machine else { return };
        for action in machine.apply(event, now()) {
            match action {
                Action::Dial(hello) => self.greeting = Some(greeting(&hello, machine)),
                Action::Hang => {
                    self.greeting = None;
                    said.push(Said::Hangs);
                }
                Action::Send(message) => said.extend(spoken(message)),
                Action::Start(command) => self.command = Some(*command),
                Action::Cancel => self.is_cancelled = true,
                Action::Check(run, _, phase) => self.check = Some((run, phase)),
                Action::StopCheck => self.check = None,
                _ => {}
            }
        }
        machine.forget_times();
        machine.plant(self.plant);
        if let Some((run, _)) = &mut self.check {
            *run = 1;
        }
    }

    fn end_pause(&mut self, pause: Pause) {
        let Some(machine) = &mut self.machine else { return };
        match pause {
            Pause::Redial => {
                if let Link::Down { redial_at } = &mut machine.link {
                    *redial_at = now();
                }
            }
            Pause::Retry => machine.retry_at = Some(now()),
            Pause::Return => machine.return_at = Some(now()),
            Pause::Decide => machine.decide_at = Some(now()),
            Pause::Check => machine.checks.retry_at = Some(now()),
        }
    }

    /// Agents with one key do the same from now on.
    pub fn key(&self) -> Vec<u8> {
        let mut key = Key(Vec::with_capacity(256));
        let generation = |key: &mut Key, of: &Option<SignedGeneration>| key.name(of.as_ref().map(name));
        [&self.live, &self.accepted, &self.staged].into_iter().for_each(|of| generation(&mut key, of));
        key.list(&self.held, |key, held| key.name(Some(name(held))));
        let Decisions { good, trial, refused, node, ordered } = &self.decisions;
        key.named(*good);
        key.named(trial.map(|trial| trial.target));
        key.number(trial.map_or(0, |trial| trial.starts_left.into()));
        key.list(refused, |key, refusal| {
            key.named(Some(refusal.generation));
            key.named(refusal.back);
            key.number(refusal.announced.unwrap_or(0));
        });
        key.standing(node);
        key.flags(&[ordered.drained, ordered.pinned, self.is_cancelled, self.machine.is_some()]);
        key.command(self.command.as_ref());
        key.number(self.check.map_or(0, |(_, phase)| 1 + phase as u64));
        key.list(&self.passed.iter().collect::<Vec<_>>(), |key, root| key.root(Some(**root)));
        key.list(&self.refused.iter().collect::<Vec<_>>(), |key, root| key.root(Some(**root)));
        key.flags(&[self.greeting.is_some()]);
        if let Some(greeting) = &self.greeting {
            key.name(greeting.live);
            key.report(greeting.check);
            key.list(&greeting.refused, |key, root| key.root(Some(*root)));
            key.flags(&[greeting.drained]);
            key.number(greeting.pinned.unwrap_or(0));
        }
        if let Some(machine) = &self.machine {
            machine.add_to(&mut key);
        }
        key.0
    }
}

fn greeting(hello: &v1::Hello, machine: &Machine) -> Greeting {
    let state = machine.replica();
    let standing = state.decisions.node;
    Greeting {
        live: state.live.as_ref().map(name),
        accepted: state.accepted.as_ref().map(name),
        refused: state.decisions.refused.iter().map(|refusal| refusal.generation.root).collect(),
        check: hello.check.as_ref().and_then(report),
        has_check: hello.has_check,
        drained: standing.drained,
        pinned: standing.pinned.map(|pin| pin.generation),
    }
}

fn spoken(message: ToOrigin) -> Option<Said> {
    let root = |root: &[u8]| RootHash::from_bytes(root.try_into().expect("32 bytes of a hash"));
    Some(match message {
        ToOrigin::Staged(staged) => Said::Staged((staged.generation, root(&staged.root))),
        ToOrigin::Activated(activated) => Said::Activated((activated.generation, root(&activated.root))),
        ToOrigin::Failed(_) => Said::Failed,
        ToOrigin::Check(check) => Said::Check(report(&check)?),
        ToOrigin::Standing(standing) => {
            let NodeStanding { drained, pinned } = NodeStanding::from(&standing);
            Said::Standing { drained, pinned: pinned.map(|pin| pin.generation) }
        }
        _ => return None,
    })
}

/// Bytes that tell agents apart.
struct Key(Vec<u8>);

impl Key {
    fn number(&mut self, number: u64) {
        self.0.push(u8::try_from(number).expect("small numbers"));
    }

    fn flags(&mut self, flags: &[bool]) {
        self.0.extend(flags.iter().map(|flag| u8::from(*flag)));
    }

    fn root(&mut self, root: Option<RootHash>) {
        self.0.extend(root.map_or([0; 4], |root| {
            let bytes = root.as_bytes();
            [bytes[0], bytes[1], bytes[2], bytes[3]]
        }));
    }

    fn name(&mut self, name: Option<Name>) {
        self.number(name.map_or(0, |(number, _)| number));
        self.root(name.map(|(_, root)| root));
    }

    fn named(&mut self, named: Option<Named>) {
        self.name(named.map(|named| (named.number, named.root)));
    }

    fn list<T>(&mut self, list: &[T], each: impl Fn(&mut Self, &T)) {
        self.number(list.len() as u64);
        list.iter().for_each(|item| each(self, item));
    }

    fn standing(&mut self, standing: &NodeStanding) {
        self.number(standing.pinned.map_or(0, |pin| pin.generation));
        self.flags(&[standing.drained]);
    }

    fn report(&mut self, report: Option<CheckReport>) {
        self.name(report.map(|report| report.of));
        self.number(report.map_or(0, |report| u64::try_from(report.outcome).unwrap_or(0)));
        self.number(report.and_then(|report| report.returned_to).unwrap_or(0));
    }

    fn decision(&mut self, decision: &Decision) {
        let (kind, named, number, flags) = match decision {
            Decision::Pass(named) => (1, Some(*named), 0, [false; 2]),
            Decision::Refuse(named, _) => (2, Some(*named), 0, [false; 2]),
            Decision::Stay(named) => (3, Some(*named), 0, [false; 2]),
            Decision::Announced(named, number) => (4, Some(*named), *number, [false; 2]),
            Decision::Accept(number) => (5, None, *number, [false; 2]),
            Decision::Drain(drained) => (6, None, 0, [*drained, false]),
            Decision::Pin(number) => (7, None, number.unwrap_or(0), [false; 2]),
            Decision::Unpin => (8, None, 0, [false; 2]),
            Decision::Ordered(ordered) => (9, None, 0, [ordered.drained, ordered.pinned]),
        };
        self.number(kind);
        self.named(named);
        self.number(number);
        self.flags(&flags);
    }

    fn command(&mut self, command: Option<&Command>) {
        let (kind, of, activate) = match command {
            None => (0, None, false),
            Some(Command::Update { generation, activate, .. }) => (1, Some(generation), *activate),
            Some(Command::Activate) => (2, None, false),
            Some(Command::Return(generation)) => (3, Some(generation), false),
            Some(Command::Decide(_)) => (4, None, false),
            Some(Command::Maintain) => (5, None, false),
            Some(Command::Verify) => (6, None, false),
        };
        self.number(kind);
        self.name(of.map(|of| name(of)));
        self.flags(&[activate]);
        if let Some(Command::Decide(decision)) = command {
            self.decision(decision);
        }
    }

    fn job(&mut self, job: Option<&Job>) {
        let (kind, of) = match job {
            None => (0, None),
            Some(Job::Update { number, root }) => (1, Some((number.get(), *root))),
            Some(Job::Activate) => (2, None),
            Some(Job::Return) => (3, None),
            Some(Job::Decide { is_order, .. }) => (4 + u64::from(*is_order), None),
            Some(Job::Maintain) => (6, None),
            Some(Job::Verify) => (7, None),
        };
        self.number(kind);
        self.name(of);
        if let Some(Job::Decide { decision, .. }) = job {
            self.decision(decision);
        }
    }
}

impl Machine {
    /// Makes all times alike, and leaves out maintenance, heartbeats, progress, and the growth of pauses.
    fn forget_times(&mut self) {
        let still = |pause: &mut Backoff| {
            pause.reset();
            *pause = pause.clone().seeded(0);
        };
        [&mut self.redial, &mut self.retry, &mut self.retry_operator, &mut self.checks.retry]
            .into_iter()
            .for_each(still);
        for at in [&mut self.retry_at, &mut self.return_at, &mut self.decide_at, &mut self.checks.retry_at] {
            *at = at.map(|_| never());
        }
        (self.maintain_at, self.tell_at) = (None, None);
        match &mut self.link {
            Link::Down { redial_at } => *redial_at = never(),
            Link::Greeting { since } => *since = now(),
            Link::Up(Up { since, next_heartbeat, heard, sequence, .. }) => {
                (*since, *next_heartbeat, *heard, *sequence) = (now(), never(), never(), 0);
            }
        }
        self.checks.runs = 0;
        if let Some((run, ..)) = &mut self.checks.running {
            *run = 1;
        }
    }

    fn plant(&mut self, plant: Option<Plant>) {
        match plant {
            Some(Plant::StagesOnce) => self.said_staged = self.said_staged.or(self.staged),
            Some(Plant::NeverBehind) => {
                if let Some(target) = &mut self.target {
                    (target.flips_along, target.flipped) = (false, false);
                }
            }
            _ => {}
        }
    }

    fn add_to(&self, key: &mut Key) {
        let pair = |(number, root): (GenerationNumber, RootHash)| (number.get(), root);
        let told = |report: &Option<v1::CheckReport>| report.as_ref().and_then(self::report);
        key.number(match self.link {
            Link::Down { .. } => 0,
            Link::Greeting { .. } => 1,
            Link::Up(_) => 2,
        });
        [self.shown, self.staged, self.said_staged].into_iter().for_each(|of| key.name(of.map(pair)));
        key.flags(&[self.target.is_some()]);
        if let Some(target) = &self.target {
            key.name(Some(name(&target.generation)));
            key.flags(&[target.activate, target.flipped, target.flips_along]);
        }
        let checks = &self.checks;
        key.number(checks.running.map_or(0, |(_, phase, _)| 1 + phase as u64));
        key.named(checks.running.map(|(.., named)| named));
        key.root(checks.cleared.map(|(root, _)| root));
        key.name(checks.cleared.map(|(_, staged)| pair(staged)));
        key.root(checks.doubted);
        key.named(checks.returned.as_ref().map(|(refusal, _)| refusal.generation));
        key.root(checks.returned.as_ref().map(|(_, root)| *root));
        key.report(told(&checks.status.as_ref().map(CheckStatus::to_report)));
        key.report(told(&checks.told));
        key.list(&self.decisions_due.iter().collect::<Vec<_>>(), |key, due| key.decision(due));
        key.list(&self.orders_due.iter().collect::<Vec<_>>(), |key, due| key.decision(due));
        key.standing(&self.standing_told);
        key.job(self.job.as_ref());
        key.flags(&[
            checks.retry_at.is_some(),
            self.decide_at.is_some(),
            self.return_at.is_some(),
            self.retry_at.is_some(),
            self.cancelled,
            self.activating,
            self.verify_wanted,
            self.work_error.is_some(),
            self.fork.is_some(),
        ]);
    }
}
