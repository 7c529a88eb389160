//! Real keepalived on two nodes: the address of the site is where `syncd-agent check` says that a node is
//! ready. IPVS is not tested: it needs a module of the kernel that containers do not have.

use std::fs;
use std::path::Path;
use std::process::Command;

use syncd_tests::edits::write;
use syncd_tests::process::{Daemon, tool};
use syncd_tests::{Agent, Origin, Scene, binary, require_program, wait};

use crate::packaged;

const NAMES: [&str; 2] = ["web1", "web2"];
const ADDRESS: &str = "10.0.0.10";

/// Two network namespaces with a link between them, for keepalived alone: the agents stay outside.
struct Namespaces([String; 2]);

impl Namespaces {
    fn new() -> Self {
        require_program("ip", "iproute2");
        let names = NAMES.map(|name| format!("syncd-{}-{name}", std::process::id()));
        names.iter().for_each(|name| _ = ip(&["netns", "add", name]));
        let this = Self(names);
        let [a, b] = &this.0;
        ip(&["-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b]);
        for (name, address) in this.0.iter().zip(["10.0.0.11/24", "10.0.0.12/24"]) {
            ip(&["-n", name, "address", "add", address, "dev", "eth0"]);
            ip(&["-n", name, "link", "set", "eth0", "up"]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
        }
        this
    }

    /// Waits until this node, and no other, has the address of the site.
    #[track_caller]
    fn wait_address(&self, node: usize) {
        wait::until_ok(&format!("{} to have the address", NAMES[node]), || {
            let has = |name: &String| ip(&["-n", name, "-o", "address", "show"]).contains(ADDRESS);
            let has: Vec<bool> = self.0.iter().map(has).collect();
            if has[node] && !has[1 - node] { Ok(()) } else { Err(format!("{has:?}")) }
        });
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

fn ip(arguments: &[&str]) -> String {
    tool("ip", arguments).stdout
}

/// keepalived with the shipped configuration.
fn keepalived(scene: &Scene, namespace: &str, name: &str, priority: u32, root: &Path) -> Daemon {
    let program = require_program("keepalived", "keepalived");
    let text = fs::read_to_string(packaged("keepalived/keepalived.conf")).expect("the shipped configuration");
    let check = format!("{} check --root {}", binary("syncd-agent").display(), root.display());
    let text = text.replace("/usr/bin/syncd-agent check", &check);
    // The test's files may belong to directories that others can write to, such as /tmp.
    let text = text.replace("    enable_script_security\n", "");
    let text = text.replace("priority 110", &format!("priority {priority}"));
    let path = scene.path(&format!("keepalived-{name}.conf"));
    fs::write(&path, text).expect("write the configuration");
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program).args(["--dont-fork", "--log-console", "--vrrp"]);
    command.arg("-f").arg(&path);
    for (option, kind) in [("-p", "pid"), ("-r", "vrrp")] {
        command.arg(option).arg(scene.path(&format!("keepalived-{name}.{kind}")));
    }
    Daemon::start(&mut command, scene.directory(), &format!("keepalived-{name}"))
}

#[test]
fn keepalived_moves_the_address_away_from_drained_and_dead_nodes_and_back() {
    let scene = Scene::new("keepalived");
    let tree = scene.path("tree");
    write(&tree, "index.html", "1");
    let origin = Origin::started(&scene, &tree);
    let mut agents = NAMES.map(|name| Agent::started(&scene, &origin, name));
    origin.wait_connected(&NAMES);
    origin.commit_live();
    let namespaces = Namespaces::new();
    let mut daemons: Vec<Daemon> = Vec::new();
    for ((namespace, agent), (name, priority)) in
        namespaces.0.iter().zip(&agents).zip(NAMES.into_iter().zip([110, 100]))
    {
        daemons.push(keepalived(&scene, namespace, name, priority, &agent.root));
    }
    namespaces.wait_address(0);
    // An order of the origin counts as well as one of the node.
    agents[0].cli("drain", &[]).expect_success();
    namespaces.wait_address(1);
    agents[0].cli("undrain", &[]).expect_success();
    namespaces.wait_address(0);
    origin.cli("drain", &["web1"]).expect_success();
    namespaces.wait_address(1);
    origin.cli("undrain", &["web1"]).expect_success();
    namespaces.wait_address(0);
    // An agent that is killed, and a keepalived that ends with its node.
    agents[0].kill9();
    namespaces.wait_address(1);
    agents[0].start();
    namespaces.wait_address(0);
    assert_eq!(daemons[0].stop(), Some(0));
    namespaces.wait_address(1);
    daemons[1].stop();
}
