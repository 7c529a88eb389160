//! The property: any sequence of edits, commits, rollbacks and restarts of either side, in any order, ends
//! with identical trees.
//!
//! The sequences are random but repeatable: the seed is printed, and `SYNCD_SEED=N` runs it again.

use std::collections::BTreeMap;

use syncd_tests::edits::{Edits, small_site};
use syncd_tests::oracle::Facts;
use syncd_tests::replica::assert_no_litter;
use syncd_tests::{Agent, Origin, Scene, Seeded};

struct World {
    origin: Origin,
    agents: [Agent; 2],
    edits: Edits,
    /// Each sealed generation as each agent should have it, by number.
    sealed: BTreeMap<u64, [Facts; 2]>,
    story: Vec<String>,
    _scene: Scene,
}

impl World {
    fn new(case: u64, random: &mut Seeded) -> Self {
        let scene = Scene::new(&format!("convergence-{case}"));
        let tree = scene.path("tree");
        small_site(&tree, 20 + random.below(120) as usize);
        let origin = Origin::started(&scene, &tree);
        // The second one has no privileges.
        let agents = [Agent::new(&scene, "web1"), Agent::new(&scene, "web2").unprivileged(&scene)];
        let agents = agents.map(|agent| {
            let options: &[&str] = if random.one_in(2) { &["--grace", "200ms", "--keep", "2"] } else { &[] };
            let mut agent = agent.with_options(options);
            agent.join(origin.address(), &origin.token()).expect_success();
            agent.start();
            agent
        });
        let edits = Edits::new(&tree, random.next_u64()).closing();
        Self { origin, agents, edits, sealed: BTreeMap::new(), story: Vec::new(), _scene: scene }
    }

    fn step(&mut self, random: &mut Seeded) {
        let agent = random.below(2) as usize;
        match random.below(10) {
            0..=1 => {
                self.tell("edit");
                self.edits.round(12);
            }
            2..=4 => {
                self.ensure_origin();
                self.edits.round(12);
                self.commit();
            }
            5 => self.rollback(random),
            6 => {
                self.ensure_origin();
                if random.one_in(2) {
                    self.origin.kill9()
                } else {
                    self.origin.stop()
                }
                self.tell("origin down");
            }
            7 => self.ensure_origin(),
            8 if self.agents[agent].is_running() => {
                self.tell(&format!("agent {agent} down"));
                if random.one_in(2) { self.agents[agent].kill9() } else { self.agents[agent].stop() }
            }
            _ if !self.agents[agent].is_running() => {
                self.tell(&format!("agent {agent} up"));
                self.agents[agent].start();
            }
            _ => {
                self.tell(&format!("agent {agent} restarts"));
                self.agents[agent].kill9();
                self.agents[agent].start();
            }
        }
    }

    fn tell(&mut self, what: &str) {
        self.story.push(what.to_string());
    }

    fn ensure_origin(&mut self) {
        if !self.origin.is_running() {
            self.tell("origin up");
            self.origin.start();
        }
    }

    fn commit(&mut self) -> u64 {
        let expected = [0, 1].map(|agent| self.agents[agent].expects(&self.origin.tree));
        let number = self.origin.commit();
        self.tell(&format!("commit {number}"));
        if let Some(older) = self.sealed.insert(number, expected.clone()) {
            assert!(older == expected, "generation {number} never changes; {:?}", self.story);
        }
        number
    }

    fn rollback(&mut self, random: &mut Seeded) {
        let numbers: Vec<u64> = self.sealed.keys().rev().take(6).copied().collect();
        let Some(target) = random.pick(&numbers).copied() else { return };
        self.ensure_origin();
        self.origin.cli("rollback", &[&target.to_string()]).expect_success();
        let number = self.origin.status().generation.expect("a generation");
        self.tell(&format!("rollback to {target} as {number}"));
        let expected = self.sealed[&target].clone();
        self.sealed.entry(number).or_insert(expected);
    }

    /// Starts everything, and asserts that both replicas become the newest generation.
    fn settle(&mut self) {
        self.ensure_origin();
        for agent in &mut self.agents {
            if !agent.is_running() {
                agent.start();
            }
        }
        let Some(newest) = self.origin.status().generation else { return };
        for (index, agent) in self.agents.iter().enumerate() {
            agent.wait_live(newest);
            let expected = &self.sealed[&newest][index];
            let differences = agent.differences(expected, &agent.live()).expect("walk what is live");
            assert!(differences.is_empty(), "generation {newest}: {differences:?}; {:?}", self.story);
        }
    }
}

#[test]
fn any_order_of_edits_commits_rollbacks_and_restarts_ends_identical() {
    const CASES: u64 = 4;
    const STEPS: u64 = 30;
    let mut random = Seeded::announced("convergence");
    for case in 0..CASES {
        let mut world = World::new(case, &mut random);
        for step in 0..STEPS {
            world.step(&mut random);
            if step % 10 == 9 {
                world.settle();
            }
        }
        world.settle();
        world.edits.round(10);
        world.origin.wait_connected(&["web1", "web2"]);
        let last = world.commit();
        println!("case {case}: {}", world.story.join(", "));
        for agent in &world.agents {
            agent.wait_live(last);
            if agent.is_unprivileged() {
                // A kill may have left a mode changed.
                agent.cli("verify", &[]).expect_success();
            }
            agent.assert_live_is(&world.origin.tree);
            assert_no_litter(agent);
        }
    }
}
