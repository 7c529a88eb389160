//! One state of everything, small enough to be kept by the hundred thousand.

use syncd_agent::session::machine::modelled::Pause;
use syncd_origin::fleet::rollout::machine::Order;
use syncd_shared::CheckOutcome;

use super::generations::Gen;

/// Most nodes of a model.
pub const AGENTS: usize = 3;
/// Most messages to the origin that are on their way.
const UNHEARD: usize = 16;
/// A node with more messages on their way does nothing before the origin hears one.
const LATE: usize = 4;
/// Generation numbers of a model are below this.
pub const NUMBERS: usize = 16;

/// The node's own check, as it was last reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Check {
    pub of: Gen,
    pub outcome: Outcome,
    pub returned_to: Option<u8>,
}

/// [`CheckOutcome`] that can be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    Running,
    Passed,
    Failed,
    FailedBefore,
    FailedOnBoth,
}

impl Outcome {
    pub fn real(self) -> CheckOutcome {
        match self {
            Self::Running => CheckOutcome::Running,
            Self::Passed => CheckOutcome::Passed,
            Self::Failed => CheckOutcome::Failed,
            Self::FailedBefore => CheckOutcome::FailedBefore,
            Self::FailedOnBoth => CheckOutcome::FailedOnBoth,
        }
    }
}

/// The origin's knowledge of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Facts {
    pub linked: Option<Gen>,
    pub staged: Option<Gen>,
    pub waits_for_check: bool,
    pub check: Option<Check>,
    pub has_check: bool,
    /// Bits of roots.
    pub refused: u8,
    /// Orders given on the node.
    pub drained: bool,
    pub pinned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Assignment {
    pub generation: Gen,
    pub activate: bool,
    pub flipped: bool,
}

/// The conversation with one agent, at the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Session {
    /// The newest assignment and orders. The conversation looks at them when it is about to send something.
    pub watched: Option<Assignment>,
    pub standing: (bool, bool),
    /// Those that the conversation has taken up.
    pub assigned: Option<Assignment>,
    pub standing_told: (bool, bool),
    /// Unsent messages.
    pub announce: Option<Assignment>,
    pub activate: Option<(Gen, bool)>,
    /// Root that was reported as staged.
    pub staged: Option<u8>,
    pub accepted: u8,
    pub reported: u8,
    pub goes_back_to: Option<u8>,
}

/// A message to the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Said {
    Staged(Gen),
    Activated(Gen),
    Failed,
    Check(Check),
    Standing(bool, Option<u8>),
    Hangs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Node {
    /// The agent, by number.
    pub agent: u32,
    /// Messages to the origin that it has not heard, oldest first.
    pub unheard: [Option<Said>; UNHEARD],
    pub facts: Facts,
    /// `None`: not connected.
    pub session: Option<Session>,
}

impl Node {
    /// Adds a message, unless [`Self::is_full`].
    pub fn say(&mut self, said: Said) {
        if let Some(free) = self.unheard.iter_mut().find(|place| place.is_none()) {
            *free = Some(said);
        }
    }

    /// Whether the node may go on: with more messages on their way, it waits for the origin.
    pub fn goes_on(&self) -> bool {
        self.unheard[LATE].is_none()
    }

    /// Whether messages pile up.
    pub fn is_full(&self) -> bool {
        self.unheard.iter().all(Option::is_some)
    }

    pub fn hear(&mut self) -> Option<Said> {
        let first = self.unheard[0].take();
        self.unheard.rotate_left(1);
        first
    }

    pub fn disconnect(&mut self) {
        (self.session, self.unheard) = (None, [None; UNHEARD]);
    }
}

/// Faults, and orders of people, that may still come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub origin_crashes: u8,
    pub agent_crashes: u8,
    pub lost_records: u8,
    pub cuts: u8,
    pub failed_checks: u8,
    pub failed_work: u8,
    pub refusing_hooks: u8,
    pub late: u8,
    pub supersedes: u8,
    pub orders: u8,
    pub rollbacks: u8,
    pub drains: u8,
    pub pins: u8,
    pub restores: u8,
    pub automatic: u8,
}

/// A state of a rollout, by number.
pub type Id = u16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin {
    pub up: bool,
    pub newest: Gen,
    pub released: Gen,
    /// Durable: the base of the newest generation's rollout, and whether it is a rollback.
    pub ordered: Option<(Gen, bool)>,
    /// The saved state, the newest one, and the one that assignments follow.
    pub disk: Option<Id>,
    pub memory: Option<Id>,
    pub known: Option<Id>,
    pub hold: bool,
    pub queued: bool,
    /// Orders for nodes, as bits.
    pub drained: u8,
    pub pinned: u8,
    /// A number above the newest one, which a node has shown: this origin was restored.
    pub observed: u8,
    /// The highest number that was ever sealed.
    pub highest: u8,
    /// The number of roots so far.
    pub roots: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct World {
    pub nodes: [Node; AGENTS],
    pub origin: Origin,
    pub left: Budget,
    /// The roots of the generations that were sealed, by number; 0: none.
    pub sealed: [u8; NUMBERS],
}

impl World {
    pub fn note_sealed(&mut self, of: Gen) {
        self.sealed[usize::from(of.number)] = of.root;
    }

    pub fn is_sealed(&self, of: Gen) -> bool {
        self.sealed[usize::from(of.number)] == of.root
    }
}

pub fn has(bits: u8, index: usize) -> bool {
    bits & (1 << index) != 0
}

/// An event of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    Work,
    WorkFails,
    Declines,
    Checked(bool),
    Wakes(Pause),
    Lost,
    Welcome(bool, bool),
    Announce(Assignment),
    Activate(Gen, bool),
    Standing(bool, bool),
    Dies { loses_record: bool },
    Boots,
}

/// One step from a state to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    Start,
    Save,
    Withdraw,
    Asked(bool),
    Resume,
    Automatic,
    /// A commit above a number that a node has shown.
    Past,
    Late,
    Agent(usize, Event),
    Connect(usize),
    /// The origin hears the oldest message of a node.
    Hear(usize),
    /// A node hears what is due for it.
    Tell(usize),
    Cut(usize),
    CrashOrigin {
        written: bool,
    },
    Restore,
    Supersede,
    Now,
    Rollback,
    Order(Order),
    Drain(usize),
    Pin(usize),
}
