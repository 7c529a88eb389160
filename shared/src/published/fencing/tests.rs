//! Walks through every order of events of a small world: two origins, one store, two agents.
//!
//! The store creates an object for one writer. A request may be answered, may take effect without an answer,
//! or may take effect later, or never. Origins crash and start again; the second one is a promoted standby
//! that lags behind, or a copy of the first one's data.

use std::collections::{BTreeSet, HashSet, VecDeque};

use super::*;

/// Numbers in the world. An origin that reaches the last one rests.
const NUMBERS: usize = 4;
const CONTENTS: u8 = 3;

type Content = u8;
type Cell = (Author, Content);

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Origin {
    fence: Fence,
    /// The generation that is offered.
    content: Option<Content>,
    /// A request was answered by something else than success: the object must be read back.
    must_read: bool,
    /// The last generation that it has: durable, and announced to agents.
    last: Option<(u32, u64, Content)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct World {
    cells: [Option<Cell>; NUMBERS],
    /// Requests that were given up and may still take effect.
    late: BTreeSet<(u64, Cell)>,
    origins: [Option<Origin>; 2],
    /// The last generation that each agent accepted.
    agents: [Option<(u32, u64, Content)>; 2],
    /// Generations that an origin reported as committed.
    acknowledged: BTreeSet<(u64, Content)>,
    contents: Content,
    lost_left: u8,
    crashes_left: u8,
    given_up_left: u8,
    nonces: u8,
    /// A deposed origin has created a generation.
    overtaken: bool,
}

/// How the second origin comes to be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Second {
    Promoted,
    Copy,
}

/// A planted bug, which the invariants must notice.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bug {
    None,
    /// Another content gets the number of one that was given up, and is not compared with what is there.
    NotCompared,
    /// A foreign nonce counts as the own, and nothing is compared.
    NoNonce,
    /// A promoted origin writes the number after the jump first, so nothing deposes the other one.
    NoClaim,
}

fn nonce(n: u8) -> Nonce {
    [n; 16]
}

impl World {
    fn new() -> Self {
        let fence = Fence::started(Author { epoch: 1, nonce: nonce(1) }, Vec::new(), 0);
        let first = Origin { fence, content: None, must_read: false, last: None };
        Self {
            cells: [None; NUMBERS],
            late: BTreeSet::new(),
            origins: [Some(first), None],
            agents: [None; 2],
            acknowledged: BTreeSet::new(),
            contents: 0,
            lost_left: 2,
            crashes_left: 1,
            given_up_left: 1,
            nonces: 1,
            overtaken: false,
        }
    }

    fn cell(&self, number: u64) -> Option<Cell> {
        self.cells[number as usize - 1]
    }

    fn create(&mut self, number: u64, cell: Cell) -> bool {
        let is_free = self.cell(number).is_none();
        if is_free {
            self.overtaken |= self.cells.iter().flatten().any(|(author, _)| author.epoch > cell.0.epoch);
            self.cells[number as usize - 1] = Some(cell);
        }
        is_free
    }

    fn draw(&mut self) -> Nonce {
        self.nonces += 1;
        nonce(self.nonces)
    }

    fn decided(&mut self, which: usize, number: u64, verdict: Verdict) {
        let cell = self.cell(number);
        let origin = self.origins[which].as_mut().unwrap();
        origin.must_read = false;
        match verdict {
            Verdict::Retry => {}
            Verdict::Committed => {
                // Without a bug, a content is offered.
                let content = origin.content.take().unwrap_or(CONTENTS + 1);
                origin.last = Some((origin.fence.author().epoch, number, content));
                self.acknowledged.insert((number, content));
            }
            Verdict::Skipped => {
                // The generation there is in the log like any other.
                let (author, content) = cell.unwrap();
                origin.last = Some((author.epoch, number, content));
            }
            Verdict::Held(_) => origin.content = None,
        }
    }

    /// Every world that one event makes of this one.
    fn next(&self, second: Second, bug: Bug) -> Vec<World> {
        let mut out = Vec::new();
        for which in 0..2 {
            self.origin_events(which, bug, &mut out);
            self.announcements(which, &mut out);
        }
        for (number, cell) in &self.late {
            let mut lands = self.clone();
            lands.late.remove(&(*number, *cell));
            let mut vanishes = lands.clone();
            lands.create(*number, *cell);
            vanishes.lost_left = self.lost_left;
            out.extend([lands, vanishes]);
        }
        if self.origins[1].is_none() {
            self.second_starts(second, bug, &mut out);
        }
        out
    }

    fn origin_events(&self, which: usize, bug: Bug, out: &mut Vec<World>) {
        let Some(origin) = &self.origins[which] else { return };
        if self.crashes_left > 0 {
            let mut crashed = self.clone();
            crashed.crashes_left -= 1;
            let drawn = crashed.draw();
            crashed.origins[which] = Some(restarted(origin, drawn));
            out.push(crashed);
        }
        if origin.content.is_some() && self.given_up_left > 0 {
            // The content is given up. Its request may still take effect.
            let mut given_up = self.clone();
            given_up.given_up_left -= 1;
            given_up.origins[which].as_mut().unwrap().content = None;
            out.push(given_up);
        }
        if origin.must_read {
            let mut read = self.clone();
            let fence = &mut read.origins[which].as_mut().unwrap().fence;
            let number = fence.offer().unwrap();
            let mut author = self.cell(number).map(|(author, _)| author);
            if bug == Bug::NoNonce && author.is_some_and(|a| a.epoch == fence.author().epoch) {
                author = Some(fence.author());
            }
            let is_same = self.cell(number).map(|(_, content)| content) == origin.content;
            let verdict = fence.found(author, is_same || matches!(bug, Bug::NotCompared | Bug::NoNonce));
            read.decided(which, number, verdict);
            out.push(read);
        } else if origin.fence.held().is_none() {
            self.requests(which, out);
        }
    }

    /// An origin sends its request: every fate of it.
    fn requests(&self, which: usize, out: &mut Vec<World>) {
        let mut sent = self.clone();
        let origin = sent.origins[which].as_mut().unwrap();
        let number = origin.fence.offer().unwrap();
        if number > NUMBERS as u64 || (origin.content.is_none() && self.contents == CONTENTS) {
            return;
        }
        let content = *origin.content.get_or_insert_with(|| {
            sent.contents += 1;
            sent.contents
        });
        let cell = (origin.fence.author(), content);
        let mut answered = sent.clone();
        if answered.create(number, cell) {
            let verdict = answered.origins[which].as_mut().unwrap().fence.created();
            answered.decided(which, number, verdict);
        } else {
            answered.origins[which].as_mut().unwrap().must_read = true;
        }
        out.push(answered);
        if sent.lost_left > 0 {
            sent.lost_left -= 1;
            sent.origins[which].as_mut().unwrap().must_read = true;
            let mut late = sent.clone();
            late.late.insert((number, cell));
            sent.create(number, cell);
            out.extend([sent, late]);
        }
    }

    fn announcements(&self, which: usize, out: &mut Vec<World>) {
        let Some(offered) = self.origins[which].as_ref().and_then(|origin| origin.last) else { return };
        for agent in 0..2 {
            let may_follow =
                self.agents[agent].is_none_or(|accepted| offered.0 >= accepted.0 && offered.1 > accepted.1);
            if may_follow {
                let mut taken = self.clone();
                taken.agents[agent] = Some(offered);
                // They differ in nothing else.
                taken.agents.sort();
                out.push(taken);
            }
        }
    }

    fn second_starts(&self, second: Second, bug: Bug, out: &mut Vec<World>) {
        let first = self.origins[0].as_ref().unwrap();
        let mut started = self.clone();
        let drawn = started.draw();
        if second == Second::Copy {
            started.origins[1] = Some(restarted(first, drawn));
            return out.push(started);
        }
        // The standby may lag behind by any number of generations.
        for known in 0..=self.cells.iter().flatten().count() as u64 {
            let mut promoted = started.clone();
            let own = Author { epoch: 2, nonce: drawn };
            let last = if bug == Bug::NoClaim { known + 1 } else { known };
            let last_known = known.checked_sub(1).and_then(|at| self.cells[at as usize]);
            promoted.origins[1] = Some(Origin {
                fence: Fence::promoted(own, Vec::new(), last, 2),
                content: None,
                must_read: false,
                last: last_known.map(|(author, content)| (author.epoch, known, content)),
            });
            out.push(promoted);
        }
    }

    fn violation(&self) -> Option<String> {
        for (number, content) in &self.acknowledged {
            if self.cell(*number).map(|(_, content)| content) != Some(*content) {
                return Some(format!("{number} was acknowledged, and the store has another"));
            }
        }
        if let [Some(a), Some(b)] = self.agents
            && a.1 == b.1
            && a != b
        {
            return Some(format!("agents disagree about {}", a.1));
        }
        self.overtaken.then(|| "a deposed origin has created a generation".to_owned())
    }
}

fn restarted(origin: &Origin, nonce: Nonce) -> Origin {
    let mut earlier = origin.fence.earlier.clone();
    earlier.push(origin.fence.own.nonce);
    let own = Author { nonce, ..origin.fence.own };
    let last = origin.last.map_or(0, |(_, number, _)| number);
    let fence = Fence { step: origin.fence.step, ..Fence::started(own, earlier, last) };
    // A hold is durable.
    let fence = Fence { held: origin.fence.held, ..fence };
    Origin { fence, content: None, must_read: false, last: origin.last }
}

/// Visits every world. Returns how many there are, and whether both origins wrote and one was held in some.
fn explore(second: Second, bug: Bug) -> Result<(usize, bool), Box<(String, World)>> {
    let first = World::new();
    let (mut seen, mut queue) = (HashSet::from([first.clone()]), VecDeque::from([first]));
    let mut held = false;
    while let Some(world) = queue.pop_front() {
        for next in world.next(second, bug) {
            if let Some(violation) = next.violation() {
                return Err(Box::new((violation, next)));
            }
            held |= next.origins.iter().flatten().any(|origin| origin.fence.held().is_some());
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    Ok((seen.len(), held))
}

#[test]
fn no_order_of_events_forks_the_log_after_a_promotion() {
    let (worlds, held) = explore(Second::Promoted, Bug::None).unwrap();
    assert!(held && worlds > 10_000, "{worlds} worlds, held: {held}");
}

#[test]
fn no_order_of_events_forks_the_log_of_two_origins_from_one_backup() {
    let (worlds, held) = explore(Second::Copy, Bug::None).unwrap();
    assert!(held && worlds > 10_000, "{worlds} worlds, held: {held}");
}

#[test]
fn the_walk_notices_planted_bugs() {
    for (second, bug) in
        [(Second::Promoted, Bug::NotCompared), (Second::Copy, Bug::NoNonce), (Second::Promoted, Bug::NoClaim)]
    {
        assert!(explore(second, bug).is_err(), "{second:?}, {bug:?}");
    }
}

#[test]
fn a_promoted_origin_claims_the_next_number_and_then_jumps() {
    let mut fence = Fence::promoted(Author { epoch: 2, nonce: nonce(9) }, Vec::new(), 7, PROMOTION_JUMP);
    assert_eq!(fence.offer(), Ok(8));
    assert_eq!(fence.found(Some(Author { epoch: 1, nonce: nonce(1) }), false), Verdict::Skipped);
    assert_eq!(fence.offer(), Ok(9));
    assert_eq!(fence.created(), Verdict::Committed);
    assert_eq!(fence.offer(), Ok(9 + PROMOTION_JUMP));
    let deposed = fence.found(Some(Author { epoch: 3, nonce: nonce(2) }), false);
    assert_eq!(deposed, Verdict::Held(Reason::Deposed { epoch: 3 }));
    assert_eq!(fence.offer(), Err(Reason::Deposed { epoch: 3 }));
}

#[test]
fn a_promoted_origin_that_died_before_it_knew_of_its_claim_skips_it() {
    let own = Author { epoch: 2, nonce: nonce(9) };
    let mut fence = Fence::promoted(own, vec![nonce(8)], 7, PROMOTION_JUMP);
    assert_eq!(fence.offer(), Ok(8));
    assert_eq!(fence.found(Some(Author { epoch: 2, nonce: nonce(8) }), false), Verdict::Skipped);
    assert_eq!(fence.offer(), Ok(9));
}
