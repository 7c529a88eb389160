//! The merge, checked in every order of events: a breadth-first search over all states of two nodes and an
//! origin with one path. Messages are late or lost, nodes crash between any two steps, journals are lost.

use std::collections::{HashSet, VecDeque};

use super::{Action, Answer, Around, Chain, Change, FileState, Row, State, Verdict, Version, VersionNumber};
use crate::directory::Timestamp;
use crate::hash::ContentHash;

/// A file with the `content`-th content.
pub(super) fn file(content: u32) -> State {
    let mut hash = [0; 32];
    hash[..4].copy_from_slice(&content.to_le_bytes());
    let content = ContentHash::from_bytes(hash);
    State::File(FileState { content, size: 1, mode: 0o644, mtime: Timestamp::default() })
}

/// The events that may still happen by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Bounds {
    /// For each node.
    writes: [u8; 2],
    removals: [u8; 2],
    lost_journals: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Flight {
    Request(Change),
    Answer(Answer),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Node {
    local: State,
    row: Row,
    flight: Option<Flight>,
    /// In place, and not in the journal yet.
    placed: Option<Version>,
    /// Whether a session is open and all versions are learned.
    is_caught_up: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    chain: Chain,
    losers: Vec<ContentHash>,
    nodes: [Node; 2],
    bounds: Bounds,
    /// Contents written so far: each write makes a new one.
    contents: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Write(usize),
    Remove(usize),
    /// Opens a session and learns everything.
    Connect(usize),
    /// Loses the session with what is in flight.
    Cut(usize),
    Crash(usize),
    LoseJournal(usize),
    /// A version is announced.
    Learn(usize),
    /// The node looks at the path and acts.
    Act(usize),
    /// The node records what it has placed.
    Record(usize),
    /// The origin judges a change.
    Judge(usize),
    /// The answer arrives.
    Answer(usize),
}

const STEPS: [fn(usize) -> Step; 11] = [
    Step::Write,
    Step::Remove,
    Step::Connect,
    Step::Cut,
    Step::Crash,
    Step::LoseJournal,
    Step::Learn,
    Step::Act,
    Step::Record,
    Step::Judge,
    Step::Answer,
];

impl World {
    fn new(bounds: Bounds) -> Self {
        let chain = Chain::default();
        Self { chain, losers: Vec::new(), nodes: Default::default(), bounds, contents: 0 }
    }

    /// The world after a step; `None` if the step cannot happen.
    fn after(&self, step: Step) -> Option<World> {
        let mut world = self.clone();
        world.step(step).then_some(world)
    }

    /// Returns whether anything happened. Panics where a promise is broken.
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Write(n) => self.write(n),
            Step::Remove(n) => self.remove(n),
            Step::Connect(n) => self.connect(n),
            Step::Cut(n) => self.cut(n),
            Step::Crash(n) => self.crash(n),
            Step::LoseJournal(n) => self.lose_journal(n),
            Step::Learn(n) => self.learn(n),
            Step::Act(n) => self.act(n),
            Step::Record(n) => self.record(n),
            Step::Judge(n) => self.judge(n),
            Step::Answer(n) => self.answer(n),
        }
    }

    fn write(&mut self, n: usize) -> bool {
        let Some(left) = self.bounds.writes[n].checked_sub(1) else { return false };
        self.bounds.writes[n] = left;
        self.contents += 1;
        self.nodes[n].local = file(self.contents);
        true
    }

    fn remove(&mut self, n: usize) -> bool {
        let Some(left) = self.bounds.removals[n].checked_sub(1) else { return false };
        self.bounds.removals[n] = left;
        self.nodes[n].local = State::Absent;
        true
    }

    fn connect(&mut self, n: usize) -> bool {
        if self.nodes[n].is_caught_up {
            return false;
        }
        self.learn(n);
        self.nodes[n].row.caught_up();
        self.nodes[n].is_caught_up = true;
        true
    }

    fn cut(&mut self, n: usize) -> bool {
        let node = &mut self.nodes[n];
        let had_flight = node.flight.take().is_some();
        std::mem::take(&mut node.is_caught_up) || had_flight
    }

    fn crash(&mut self, n: usize) -> bool {
        let had_placed = self.nodes[n].placed.take().is_some();
        self.cut(n) || had_placed
    }

    fn lose_journal(&mut self, n: usize) -> bool {
        let Some(left) = self.bounds.lost_journals.checked_sub(1) else { return false };
        self.bounds.lost_journals = left;
        self.nodes[n].row = Row::default();
        self.crash(n);
        true
    }

    fn learn(&mut self, n: usize) -> bool {
        let current = self.chain.current();
        let newest = self.nodes[n].row.newest().unwrap_or_default();
        if newest.number >= current.number {
            return false;
        }
        self.nodes[n].row.learn(current);
        true
    }

    fn act(&mut self, n: usize) -> bool {
        let node = &mut self.nodes[n];
        if node.flight.is_some() || node.placed.is_some() {
            return false;
        }
        match node.row.next(&node.local) {
            Action::Nothing => return false,
            Action::Send(_) if !node.is_caught_up => return false,
            Action::Send(change) => {
                node.row.sends(change.state);
                node.flight = Some(Flight::Request(change));
            }
            Action::Record(version) => node.row.stands_at(version),
            Action::Place(version) => {
                let given_up = node.local.content();
                (node.local, node.placed) = (version.state, Some(version));
                assert!(given_up.is_none_or(|content| self.has(content)), "an accepted write is lost");
            }
        }
        true
    }

    fn record(&mut self, n: usize) -> bool {
        let node = &mut self.nodes[n];
        let Some(version) = node.placed.take() else { return false };
        node.row.stands_at(version);
        true
    }

    fn judge(&mut self, n: usize) -> bool {
        let Some(Flight::Request(change)) = self.nodes[n].flight.clone() else { return false };
        let verdict = self.chain.judge(&change, Around::Clear);
        match verdict {
            Verdict::Take => self.take(change.state),
            Verdict::Conflict => self.losers.extend(change.state.content()),
            Verdict::Same | Verdict::Old => {}
        }
        self.losers.sort_unstable();
        self.losers.dedup();
        assert!(change.state.content().is_none_or(|content| self.has(content)), "an answered write is lost");
        let current = self.chain.current();
        self.nodes[n].flight = Some(Flight::Answer(Answer { verdict, current }));
        true
    }

    fn take(&mut self, state: State) {
        let is_back = state.content().is_some_and(|content| self.chain.has_seen(content));
        assert!(!is_back, "what was replaced or removed has returned");
        let number = VersionNumber::new(self.chain.current().number.get() + 1);
        self.chain.take(Version { number, state }, 0);
    }

    fn answer(&mut self, n: usize) -> bool {
        let Some(Flight::Answer(answer)) = self.nodes[n].flight.clone() else { return false };
        self.nodes[n].flight = None;
        self.nodes[n].row.answered(&answer);
        true
    }

    /// Whether the origin has the content.
    fn has(&self, content: ContentHash) -> bool {
        self.chain.has_seen(content) || self.losers.contains(&content)
    }

    /// Lets everything come to rest.
    fn settled(&self) -> World {
        let mut world = self.clone();
        let order = [Step::Record, Step::Judge, Step::Answer, Step::Connect, Step::Learn, Step::Act];
        for _ in 0..30 {
            let steps = order.iter().flat_map(|step| [step(0), step(1)]);
            if steps.filter(|step| world.step(*step)).count() == 0 {
                return world;
            }
        }
        panic!("no rest from {self:?}");
    }

    fn check(&self) {
        let settled = self.settled();
        for node in &settled.nodes {
            assert_eq!(node.local, settled.chain.current().state, "the nodes differ at rest, from {self:?}");
        }
    }
}

/// Visits every state that can be reached, and returns their number.
fn explore(bounds: Bounds, mut check: impl FnMut(&World)) -> usize {
    let first = World::new(bounds);
    let mut seen = HashSet::from([first.clone()]);
    let mut queue = VecDeque::from([first]);
    while let Some(world) = queue.pop_front() {
        world.check();
        check(&world);
        let steps = STEPS.iter().flat_map(|step| [step(0), step(1)]);
        for next in steps.filter_map(|step| world.after(step)) {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    seen.len()
}

/// No accepted write is lost, what was removed stays so, every loser is kept, and the nodes end equal: see
/// the assertions in the steps.
#[test]
fn two_writers_lose_nothing_in_any_order() {
    let mut conflicts = 0;
    let bounds = Bounds { writes: [2, 1], removals: [0, 1], lost_journals: 0 };
    let states = explore(bounds, |world| conflicts += world.losers.len());
    assert!(states > 10_000 && conflicts > 0, "{states} states, {conflicts} conflicts");
}

#[test]
fn a_lost_journal_loses_nothing_in_any_order() {
    let bounds = Bounds { writes: [1, 1], removals: [1, 0], lost_journals: 1 };
    let states = explore(bounds, |_| {});
    assert!(states > 10_000, "{states} states");
}

/// Answers that are lost never make a node conflict with itself.
#[test]
fn a_single_writer_never_conflicts() {
    let bounds = Bounds { writes: [2, 0], removals: [1, 0], lost_journals: 0 };
    let states = explore(bounds, |world| assert!(world.losers.is_empty(), "{world:?}"));
    assert!(states > 1_000, "{states} states");
}
