//! A node as the guide sets it up: a Debian web server, an agent on it, and an origin.

use std::path::Path;

use crate::{Agent, Debian, Origin, Scene, instructions, wait};

/// The site of the node.
pub const SITE: &str = "http://localhost";
/// Apache's answer here says which generation it serves.
const PROBE: &str = "http://127.0.0.1:8876/";

/// The node, in the namespaces of its test ([`crate::trouble::in_own_machine`]).
pub struct WebNode {
    /// The machine.
    pub debian: Debian,
    /// Publishes the tree.
    pub origin: Origin,
    /// Keeps the replica.
    pub agent: Agent,
    scene: Scene,
}

impl WebNode {
    /// A Debian web server as installed, which runs, and an origin; the agent has joined and does not run. `fill` makes
    /// the tree.
    #[track_caller]
    pub fn new(name: &str, fill: impl FnOnce(&Path)) -> Self {
        let scene = Scene::new(name);
        let tree = scene.path("tree");
        fill(&tree);
        let debian = Debian::new(&scene);
        debian.boot(true);
        let origin = Origin::started(&scene, &tree);
        let agent = Agent::new(&scene, "web1").at(debian.root());
        agent.join(origin.address(), &origin.token()).expect_success();
        Self { debian, origin, agent, scene }
    }

    /// Has the agent run with these options as well.
    #[must_use]
    pub fn with_agent_options(mut self, options: &[&str]) -> Self {
        self.agent = self.agent.with_options(options);
        self
    }

    /// The directory of the test.
    pub fn scene(&self) -> &Scene {
        &self.scene
    }

    /// Does what a page says below `heading`.
    #[track_caller]
    pub fn follow(&mut self, page: &str, heading: &str) {
        for block in instructions(page, heading) {
            self.debian.follow(&block);
        }
        if self.debian.agent_is_to_restart() {
            if self.agent.is_running() {
                self.agent.stop();
            }
            self.start_agent();
        }
    }

    /// Does one block of commands of a page alone, which does not restart the agent.
    #[track_caller]
    pub fn follow_step(&self, page: &str, heading: &str, index: usize) {
        self.debian.follow(&instructions(page, heading)[index]);
    }

    /// As its unit would: with the variables of `/etc/syncd/agent.env`.
    #[track_caller]
    pub fn start_agent(&mut self) {
        self.agent.under(&self.debian.environment("/etc/syncd/agent.env"));
        self.agent.start();
        self.origin.wait_connected(&["web1"]);
    }

    /// Status and body of a page of the site.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        self.debian.curl(&format!("{SITE}{path}"))
    }

    /// Waits until Apache says that it serves generation `number`, or `unknown`.
    #[track_caller]
    pub fn wait_served(&self, number: impl ToString) {
        let header = format!("x-syncd-generation: {}", number.to_string());
        wait::until_ok("Apache to serve it", || {
            let (status, head) = self.debian.curl_head(PROBE);
            let is_served = head.lines().any(|line| line.eq_ignore_ascii_case(&header));
            if is_served && status == 410 {
                return Ok(());
            }
            Err(format!("{status} {head} instead of {header}; {:?}", self.agent.try_status()))
        });
    }
}
