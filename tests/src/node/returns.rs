//! A generation whose check fails: cuts at any call of its trial and of the return.

use super::{CHECKED, Case, End, Node, Scenario, Shown};
use crate::AgentStatus;
use crate::Scene;
use crate::mounts::Mount;
use crate::node::Rights;
use crate::tracer::Point;

impl Node {
    /// Generations 1 to 4 have passed, and the check will fail for the newest.
    #[track_caller]
    pub fn with_check(scene: &Scene, mount: Mount, rights: Rights) -> (Self, Scenario) {
        let (mut node, scenarios) = Self::with_options(scene, mount, rights, &["--check", CHECKED]);
        let small = scenarios.into_iter().find(|scenario| scenario.name == "small update");
        let mut scenario = small.expect("a scenario");
        node.mount.restore(scenario.image.as_ref().expect("an image"));
        node.origin_answers(false);
        node.agent.start();
        node.poll("generation 4 to pass", |node| {
            let status = node.agent.cli("status", &["--json"]);
            let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap_or_default();
            let check = &status["check"];
            if check["outcome"] == "passed" { Ok(()) } else { Err(format!("{check}")) }
        })
        .unwrap_or_else(|complaint| panic!("{complaint}"));
        // The origin does not withdraw what fails on a drained node.
        node.agent.cli("drain", &[]).expect_success();
        scenario.image = Some(node.save("passed.image"));
        node.origin_answers(true);
        (node, Scenario { name: "return", returns: true, ..scenario })
    }

    /// Runs the scenario up to the case's call, ends it there, and judges what is left.
    pub fn run_return(&mut self, scenario: &Scenario, case: Case) -> Result<Shown, String> {
        let (point, made) = self.cut_at(scenario, case);
        // To the generation that fails, and back.
        let has_returned = made.iter().filter(|point| is_switch(point)).count() >= 2;
        if case.end == End::PowerCut {
            self.mount.power_up();
        }
        let shown = self.judge_return(scenario, point.clone(), has_returned);
        if self.agent.is_running() {
            self.agent.kill9();
        }
        self.origin_answers(true);
        shown.map_err(|complaint| {
            let at = point.map_or("at its end".to_owned(), |p| format!("at {} {}", p.ordinal, p.label()));
            format!("return, {case:?} {at}: {complaint}")
        })
    }

    fn judge_return(
        &mut self,
        scenario: &Scenario,
        point: Option<Point>,
        has_returned: bool,
    ) -> Result<Shown, String> {
        let (good, failed) = (scenario.live, self.newest());
        let live = self.complete(good)?;
        self.previous_is_whole()?;
        if has_returned {
            let list = self.agent.root.join("state/refused");
            let list = std::fs::read_to_string(&list).map_err(|error| format!("state/refused: {error}"))?;
            if !list.contains(&format!("\"number\":{failed}")) {
                return Err(format!("it returned, and the refusal is not durable: {list}"));
            }
        }
        // The agent returns without an origin.
        let (first, recovery) = self.recover()?;
        let processor = crate::process::processor_time(self.agent.daemon().pid());
        let was_tried = live == failed || first.generation == Some(failed);
        self.poll("the return", |node| {
            let status = node.status().ok_or("no status")?;
            let is_back = status.generation == Some(good) && (!was_tried || refuses(&status, failed));
            if is_back { Ok(()) } else { Err(format!("{status:?}")) }
        })?;
        self.has_generations()?;
        // With the origin, it is tried once where it was not, and never again.
        self.origin_answers(true);
        self.poll("the refusal", |node| {
            let status = node.status().ok_or("no status")?;
            let is_over = status.connected
                && refuses(&status, failed)
                && status.error.as_ref().is_none_or(|error| error.contains("is refused"));
            if is_over { node.settled(&status, good) } else { Err(format!("{status:?}")) }
        })?;
        let end = self.complete(good)?;
        if end != good {
            return Err(format!("generation {end} is live again"));
        }
        self.verifies()?;
        Ok(Shown { point, live, recovery, processor })
    }
}

/// Whether `live` is switched by this call.
pub fn is_switch(point: &Point) -> bool {
    point.call == "renameat" && point.path.contains("web1/live.next")
}

fn refuses(status: &AgentStatus, number: u64) -> bool {
    status.refused.iter().any(|refused| refused.generation == number)
}
