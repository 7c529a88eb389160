//! A real HAProxy with the shipped configuration in front of two nodes with real Apaches.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::{env, fs};

use syncd_tests::edits::{remove, write};
use syncd_tests::process::{Daemon, run};
use syncd_tests::{Agent, Apache, DocumentRoot, Origin, Scene, free_port, http, require_program, wait};

use crate::packaged;

/// Addresses of the nodes: all of 127.0.0.0/8 is this machine.
const HOSTS: [&str; 2] = ["127.0.0.11", "127.0.0.12"];
const NAMES: [&str; 2] = ["web1", "web2"];
/// Clients that request a page and its asset in turns.
const CLIENTS: usize = 3;

struct Node {
    apache: Apache,
    agent: Agent,
}

struct HaProxy {
    address: String,
    socket: PathBuf,
    _daemon: Daemon,
}

impl HaProxy {
    fn start(scene: &Scene, site_port: u16, health_port: u16) -> Self {
        let haproxy = require_program("haproxy", "haproxy");
        let address = format!("127.0.0.1:{}", free_port());
        let (path, socket) = (scene.path("haproxy.cfg"), scene.path("haproxy.sock"));
        let mut text =
            fs::read_to_string(packaged("haproxy/haproxy.cfg")).expect("the shipped configuration");
        text = text.replace("bind :80", &format!("bind {address}"));
        text = text.replace("port 8876", &format!("port {health_port}"));
        for (shipped, host) in ["10.0.0.11:80", "10.0.0.12:80"].iter().zip(HOSTS) {
            text = text.replace(shipped, &format!("{host}:{site_port}"));
        }
        let stats = format!("global\n    stats socket {} level admin\n", socket.display());
        fs::write(&path, text.replacen("global\n", &stats, 1)).expect("write the configuration");
        run(Command::new(&haproxy).arg("-c").arg("-f").arg(&path)).expect_success();
        let mut command = Command::new(haproxy);
        command.arg("-db").arg("-f").arg(&path);
        let mut daemon = Daemon::start(&mut command, scene.directory(), "haproxy");
        wait::until("HAProxy to answer", || {
            assert!(daemon.ended().is_none(), "HAProxy ended at once:\n{}", daemon.log());
            http::get(&address, "/").ok().filter(|answer| answer.status == 200)
        });
        Self { address, socket, _daemon: daemon }
    }

    /// Waits until a node of the backend `nodes` is up or down.
    #[track_caller]
    fn wait_node(&self, name: &str, state: &str) {
        wait::until_ok(&format!("{name} to be {state}"), || {
            let stats = self.ask("show stat\n");
            let line = stats.lines().find(|line| line.starts_with(&format!("nodes,{name},")));
            let status = line.and_then(|line| line.split(',').nth(17)).unwrap_or_default();
            if status == state { Ok(()) } else { Err(format!("{name} is {status}")) }
        });
    }

    fn ask(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).expect("connect to HAProxy's socket");
        stream.write_all(command.as_bytes()).expect("ask HAProxy");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read HAProxy's answer");
        answer
    }
}

/// A page that names its asset, both of generation `n`. Pages of all generations are equally long.
fn page(n: usize) -> String {
    format!("<link rel=stylesheet href=/assets/app.{n:06}.css>page {n:06}")
}

fn asset(n: usize) -> String {
    format!("asset {n:06}")
}

/// Writes the tree of generation `n`: nothing of the assets before is left.
fn release(tree: &Path, n: usize) {
    if n > 1 {
        remove(&tree.join(format!("assets/app.{:06}.css", n - 1)));
    }
    write(tree, &format!("assets/app.{n:06}.css"), asset(n));
    write(tree, "index.html", page(n));
}

/// Clients that request the page and then the asset that it names, each on a new connection.
struct Visitors {
    stop: Arc<AtomicBool>,
    /// Sequences that each client has completed.
    done: Arc<[AtomicU64; CLIENTS]>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Visitors {
    fn start(address: &str) -> Self {
        let (stop, done) =
            (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU64::new(0) }; CLIENTS]));
        let visit = |client: usize| {
            let (address, stop, done) = (address.to_owned(), stop.clone(), done.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    visit(&address)?;
                    done[client].fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        Self { threads: (0..CLIENTS).map(visit).collect(), stop, done }
    }

    fn counts(&self) -> Vec<u64> {
        self.done.iter().map(|done| done.load(Ordering::Relaxed)).collect()
    }

    /// Waits until every client has completed a sequence that it began after the call.
    #[track_caller]
    fn wait_round(&self) {
        let before = self.counts();
        wait::until("every client to go on", || {
            // One that has ended has failed.
            let goes_on = |(now, before): (&u64, &u64)| *now >= before + 2;
            let all = self.counts().iter().zip(&before).all(goes_on);
            (all || self.threads.iter().any(JoinHandle::is_finished)).then_some(())
        });
    }

    /// Asserts that no request has failed.
    #[track_caller]
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let results: Vec<_> =
            self.threads.into_iter().map(|thread| thread.join().expect("a client")).collect();
        let failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }
}

fn visit(address: &str) -> Result<(), String> {
    let get = |path: &str| match http::get(address, path) {
        Ok(answer) if answer.status == 200 => {
            String::from_utf8(answer.body).map_err(|_| format!("{path}: no text"))
        }
        Ok(answer) => Err(format!("{path}: {}", answer.head)),
        Err(broken) => Err(format!("{path}: {broken}")),
    };
    let body = get("/")?;
    let number = body.split_once("page ").and_then(|(_, number)| number.parse().ok());
    let number: usize = number.ok_or_else(|| format!("a mix: {body}"))?;
    if body != page(number) {
        return Err(format!("a mix: {body}"));
    }
    let style = get(&format!("/assets/app.{number:06}.css"))?;
    if style == asset(number) { Ok(()) } else { Err(format!("asset of {number}: {style}")) }
}

#[test]
fn rollouts_together_behind_haproxy_fail_no_request_and_nodes_leave_and_return() {
    let scene = Scene::new("haproxy");
    let tree = scene.path("tree");
    release(&tree, 1);
    let together = ["--trigger", "manual", "--rollout", "together"];
    let mut origin = Origin::create(&scene, &tree).with_options(&together);
    origin.start();
    let (site_port, health_port) = (free_port(), free_port());
    let node = |(name, host): (&&str, &str)| {
        let health = format!("{host}:{health_port}");
        let mut agent = Agent::joined(&scene, &origin, name).with_options(&["--health-listen", &health]);
        agent.start();
        let (name, site) = (format!("apache-{name}"), format!("{host}:{site_port}"));
        let apache = Apache::configured_at(&scene, &name, &site, &agent.root, &DocumentRoot::LiveLink);
        Node { apache: apache.with_previous(), agent }
    };
    let mut nodes: Vec<Node> = NAMES.iter().zip(HOSTS).map(node).collect();
    origin.wait_connected(&NAMES);
    origin.commit_live();
    nodes.iter_mut().for_each(|node| node.apache.start());
    let haproxy = HaProxy::start(&scene, site_port, health_port);
    NAMES.iter().for_each(|name| haproxy.wait_node(name, "UP"));

    let visitors = Visitors::start(&haproxy.address);
    let rollouts = env::var("SYNCD_ROLLOUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(15);
    for n in 2..=rollouts + 1 {
        release(&tree, n);
        origin.commit_live();
        // A client asks for the files of the generation before at most.
        visitors.wait_round();
    }
    println!("{rollouts} rollouts, {:?} pages with their assets", visitors.counts());

    // A drained node leaves without a failed request, and comes back.
    nodes[0].agent.cli("drain", &[]).expect_success();
    haproxy.wait_node("web1", "DOWN");
    visitors.wait_round();
    nodes[0].agent.cli("undrain", &[]).expect_success();
    haproxy.wait_node("web1", "UP");
    visitors.wait_round();
    visitors.finish();

    // So does one whose web server is gone, and one whose agent was killed.
    nodes[1].apache.stop();
    haproxy.wait_node("web2", "DOWN");
    (0..4).for_each(|_| visit(&haproxy.address).expect("the other node serves"));
    nodes[1].apache.start();
    haproxy.wait_node("web2", "UP");
    nodes.iter_mut().for_each(|node| node.agent.kill9());
    NAMES.iter().for_each(|name| haproxy.wait_node(name, "DOWN"));
    (0..4).for_each(|_| visit(&haproxy.address).expect("without agents the web servers are asked"));
    nodes[0].agent.start();
    haproxy.wait_node("web1", "UP");
}
