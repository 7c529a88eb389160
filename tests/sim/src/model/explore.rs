//! The search.

use std::collections::HashMap;
use std::time::Instant;

use super::world::{AGENTS, Budget, Move, NUMBERS, Node, Origin, World};
use super::{Model, NAMES};

/// A run that has not ended after this many fair steps goes in circles.
const FAIR_MAX: usize = 800;

/// A state with its nodes by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Packed {
    nodes: [u32; AGENTS],
    origin: Origin,
    left: Budget,
    sealed: [u8; NUMBERS],
}

/// The states that were found.
#[derive(Default)]
struct Found {
    nodes: Vec<Node>,
    node_ids: HashMap<Node, u32>,
    worlds: Vec<Packed>,
    index: HashMap<Packed, u32>,
    /// The step that led to a state first, and from where.
    from: Vec<(u32, Option<Move>)>,
    /// The state that follows by itself.
    next: Vec<Option<u32>>,
}

impl Found {
    fn path(&self, mut state: u32) -> String {
        let mut moves = Vec::new();
        while let (before, Some(what)) = self.from[state as usize] {
            moves.push(format!("{what:?}"));
            state = before;
        }
        moves.reverse();
        moves.join("\n")
    }

    fn get(&self, state: u32) -> Option<World> {
        let Packed { nodes, origin, left, sealed } = *self.worlds.get(state as usize)?;
        Some(World { nodes: nodes.map(|node| self.nodes[node as usize]), origin, left, sealed })
    }

    fn node(&mut self, node: Node) -> u32 {
        let next = u32::try_from(self.nodes.len()).expect("fewer states");
        *self.node_ids.entry(node).or_insert_with(|| {
            self.nodes.push(node);
            next
        })
    }

    /// Adds a state, unless it is known. `before`: another state and its number, which may have the same
    /// nodes.
    fn add(&mut self, world: World, before: Option<(&World, u32)>, what: Option<Move>) -> u32 {
        let World { nodes, origin, left, sealed } = world;
        let from = before.map_or(0, |(_, from)| from);
        let ids = before.map(|(before, from)| (before, self.worlds[from as usize].nodes));
        let nodes = std::array::from_fn(|index| match ids {
            Some((before, ids)) if before.nodes[index] == nodes[index] => ids[index],
            _ => self.node(nodes[index]),
        });
        let next = u32::try_from(self.worlds.len()).expect("fewer states");
        let packed = Packed { nodes, origin, left, sealed };
        *self.index.entry(packed).or_insert_with(|| {
            self.worlds.push(packed);
            self.from.push((from, what));
            self.next.push(None);
            next
        })
    }
}

impl Model {
    /// Explores every state, and checks them all. Returns their number.
    ///
    /// # Errors
    /// The promise that was broken, and the steps that led there.
    pub fn explore(&mut self) -> Result<usize, String> {
        let mut found = Found::default();
        found.add(self.first, None, None);
        let mut state = 0;
        while let Some(world) = found.get(state) {
            let fair = self.fair(&world);
            let count = fair.len();
            for (index, what) in fair.into_iter().chain(self.others(&world)).enumerate() {
                let wrong = |model: &Self, wrong: String, after: &World| {
                    let path = found.path(state);
                    format!("{wrong}\n{path}\nthen {what:?}\n{}", model.shown(after))
                };
                let after = match self.apply(&world, what) {
                    Ok(after) => after,
                    Err(error) => return Err(wrong(self, error, &world)),
                };
                if let Err(error) = self.check_step(&world, what, &after, index < count) {
                    return Err(wrong(self, error, &after));
                }
                let known = found.add(after, Some((&world, state)), Some(what));
                if index == 0 && count > 0 {
                    found.next[state as usize] = Some(known);
                }
            }
            let checked = self.check_state(&world);
            let checked = if count == 0 { checked.and_then(|()| self.check_end(&world)) } else { checked };
            checked.map_err(|wrong| format!("{wrong}\n{}\n{}", found.path(state), self.shown(&world)))?;
            state += 1;
        }
        self.check_all_end(&found)?;
        Ok(found.worlds.len())
    }

    fn shown(&self, world: &World) -> String {
        let agents = (0..self.count).map(|index| format!("{}: {:?}", NAMES[index], self.agent(world, index)));
        let agents = agents.collect::<Vec<_>>().join("\n");
        format!("{agents}\n{world:?}\n{:?}", self.get(world.origin.memory))
    }

    /// Every run ends, whatever happened before, once nothing more goes wrong.
    fn check_all_end(&self, found: &Found) -> Result<(), String> {
        let mut ends = vec![false; found.worlds.len()];
        for first in 0..found.worlds.len() {
            let (mut run, mut at) = (Vec::new(), first);
            while !ends[at] {
                run.push(at);
                if run.len() > FAIR_MAX {
                    let state = u32::try_from(at).unwrap_or(0);
                    let shown = found.get(state).map(|world| self.shown(&world)).unwrap_or_default();
                    return Err(format!("no end\n{}\n{shown}", found.path(state)));
                }
                match found.next[at] {
                    Some(next) => at = next as usize,
                    None => break,
                }
            }
            run.into_iter().for_each(|state| ends[state] = true);
        }
        Ok(())
    }
}

/// Seconds since a start, for reports.
pub fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}
