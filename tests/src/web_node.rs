//! A node as configured by the guide: a Debian web server with an agent, and an origin.

use std::path::Path;

use crate::{Agent, Debian, Origin, Scene, instructions, wait};

/// Address of the node's site.
pub const SITE: &str = "http://localhost";
/// Page on which Apache names the generation that it serves.
const PROBE: &str = "http://127.0.0.1:8876/";

/// The node, in its test's namespaces ([`crate::trouble::in_own_machine`]).
pub struct WebNode {
    pub debian: Debian,
    /// Publishes the tree.
    pub origin: Origin,
    /// Keeps the replica.
    pub agent: Agent,
    scene: Scene,
}

impl WebNode {
    /// Starts a Debian web server as installed, and an origin. The agent has joined, but does not run. `fill`
    /// makes the tree.
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

    /// Adds options to the agent's `run`.
    #[must_use]
    pub fn with_agent_options(mut self, options: &[&str]) -> Self {
        self.agent = self.agent.with_options(options);
        self
    }

    /// Directory of the test.
    pub fn scene(&self) -> &Scene {
        &self.scene
    }

    /// Follows a page of the guide below `heading`.
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

    /// Runs a single block of commands of a page, which must not restart the agent.
    #[track_caller]
    pub fn follow_step(&self, page: &str, heading: &str, index: usize) {
        self.debian.follow(&instructions(page, heading)[index]);
    }

    /// Starts the agent as its unit would, with the variables of `/etc/syncd/agent.env`.
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

    /// Waits until Apache reports that it serves generation `number`, or `unknown`.
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
