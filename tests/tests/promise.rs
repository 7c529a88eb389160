//! The promise: when the origin is lost, with its tree and its data, the nodes continue to serve, through
//! restarts, and converge once an origin is back.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use syncd_tests::edits::{Edits, small_site, write};
use syncd_tests::oracle::{assert_same, fingerprint};
use syncd_tests::process::tool;
use syncd_tests::replica::assert_no_litter;
use syncd_tests::{Agent, Apache, DocumentRoot, Origin, Scene, wait};

struct Site {
    origin: Origin,
    agents: [Agent; 2],
    servers: [Apache; 2],
    scene: Scene,
}

fn copy(from: &Path, to: &Path) {
    tool("cp", [OsString::from("-a"), from.into(), to.into()]);
}

impl Site {
    fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let tree = scene.path("tree");
        small_site(&tree, 120);
        write(&tree, "index.html", "generation one");
        fs::set_permissions(tree.join("index.html"), std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .expect("chmod");
        let origin = Origin::started(&scene, &tree);
        let agents = ["web1", "web2"].map(|name| Agent::started(&scene, &origin, name));
        origin.wait_connected(&["web1", "web2"]);
        let first = origin.commit_live();
        let servers = [0, 1].map(|i| {
            agents[i].wait_live(first);
            let name = format!("apache{i}");
            let mut apache = Apache::configured(&scene, &name, &agents[i].root, &DocumentRoot::LiveLink);
            apache.start();
            apache
        });
        Self { origin, agents, servers, scene }
    }

    fn publish(&self, text: &str) -> u64 {
        write(&self.origin.tree, "index.html", text);
        self.origin.commit_live()
    }

    fn assert_serving(&self, text: &str) {
        for server in &self.servers {
            assert_eq!(String::from_utf8_lossy(&server.get("/index.html").body), text);
        }
    }

    /// Copies DATA and the tree while the origin is stopped.
    fn back_up(&mut self, name: &str) {
        self.origin.stop();
        let directory = self.scene.new_directory(name);
        copy(&self.origin.data, &directory.join("data"));
        copy(&self.origin.tree, &directory.join("tree"));
        self.origin.start();
        self.origin.wait_connected(&["web1", "web2"]);
    }

    /// Kills the origin and removes everything of it.
    fn lose_the_origin(&mut self) {
        self.origin.kill9();
        tool("rm", [OsString::from("-rf"), self.origin.data.clone().into(), self.origin.tree.clone().into()]);
    }

    fn restore(&mut self, data: &Path, tree: &Path) {
        copy(data, &self.origin.data);
        copy(tree, &self.origin.tree);
        self.origin.start();
    }

    fn assert_converged(&self, number: u64) {
        for agent in &self.agents {
            agent.wait_live(number);
            assert_same(&self.origin.tree, &agent.live());
            assert_no_litter(agent);
        }
    }
}

#[test]
fn nodes_serve_without_the_origin_through_restarts_and_converge_when_it_is_back() {
    let mut site = Site::new("promise");
    let number = site.publish("generation two");
    site.back_up("backup");
    site.lose_the_origin();
    site.assert_serving("generation two");

    let before: Vec<String> = site.agents.iter().map(|agent| fingerprint(&agent.live())).collect();
    for round in 0..2 {
        for agent in &mut site.agents {
            if round == 0 {
                agent.restart()
            } else {
                agent.kill9()
            }
            if !agent.is_running() {
                agent.start();
            }
        }
        for server in &mut site.servers {
            server.restart();
        }
        site.assert_serving("generation two");
    }
    for (agent, before) in site.agents.iter().zip(before) {
        assert_eq!(agent.wait_live(number), number);
        assert_eq!(fingerprint(&agent.live()), before, "nothing changed on {}", agent.name);
        let status = agent.status();
        assert!(!status.connected, "{status:?}");
    }

    let backup = site.scene.path("backup");
    site.restore(&backup.join("data"), &backup.join("tree"));
    site.origin.wait_connected(&["web1", "web2"]);
    site.assert_serving("generation two");
    let next = site.publish("generation three");
    assert!(next > number);
    site.assert_converged(next);
    site.assert_serving("generation three");
}

#[test]
fn an_origin_restored_from_before_the_agents_never_reuses_a_number() {
    let mut site = Site::new("restored");
    site.publish("generation two");
    site.back_up("backup");
    let newest = [3, 4, 5].map(|n| site.publish(&format!("generation {n}")))[2];
    site.lose_the_origin();

    // Data and tree are older, so agents keep their generation until an operator commits.
    let backup = site.scene.path("backup");
    site.restore(&backup.join("data"), &backup.join("tree"));
    site.origin.wait_connected(&["web1", "web2"]);
    wait::until_ok("the origin to know that it is behind", || {
        let status = site.origin.status();
        if status.state == "waiting" { Ok(()) } else { Err(format!("{status:?}")) }
    });
    site.assert_serving("generation 5");
    for agent in &site.agents {
        assert_eq!(agent.wait_live(newest), newest);
    }
    let healed = site.origin.commit_live();
    assert!(healed > newest, "{healed} is past {newest}");
    site.assert_converged(healed);
    site.assert_serving("generation two");
    let next = site.publish("after the restore");
    assert!(next > healed);
    site.assert_converged(next);
}

#[test]
fn an_origin_restored_from_before_the_agents_adopts_the_generation_that_its_tree_gives() {
    let mut site = Site::new("adopted");
    site.publish("generation two");
    site.back_up("backup");
    let newest = [3, 4].map(|n| site.publish(&format!("generation {n}")))[1];
    // The tree survived on its own volume, but the data did not.
    let survivor = site.scene.path("survivor");
    copy(&site.origin.tree, &survivor);
    site.lose_the_origin();
    let backup = site.scene.path("backup");
    site.restore(&backup.join("data"), &survivor);
    site.origin.wait_connected(&["web1", "web2"]);
    let outcome = site.origin.commit_live();
    assert!(outcome >= newest, "{outcome} is not below {newest}");
    let adopted = site.origin.status();
    assert_eq!((adopted.generation, adopted.state.as_str()), (Some(newest), "ready"), "{adopted:?}");
    site.assert_converged(newest);
    site.assert_serving("generation 4");
}

#[test]
fn an_agent_that_missed_generations_goes_to_the_newest() {
    let mut site = Site::new("missed");
    site.agents[0].stop();
    let mut edits = Edits::new(&site.origin.tree, 9);
    let newest = (0..5)
        .map(|_| {
            edits.round(6);
            site.origin.commit_live()
        })
        .last()
        .expect("generations");
    site.agents[0].start();
    site.assert_converged(newest);
}
