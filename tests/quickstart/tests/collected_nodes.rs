//! Collected directories, from one node to another through a real origin, in one process. No option or key
//! reaches them yet; once one does, this becomes a suite over the programs.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use syncd_agent::join::{self, JoinOptions};
use syncd_agent::service::RunOptions;
use syncd_origin::collected::{CollectedOptions, Collection};
use syncd_origin::service::{MtimePolicy, ServeOptions, SymlinkPolicy, Trigger};
use syncd_shared::TreePath;

/// Deadline that only a defect exceeds.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(20);

struct World {
    temp: tempfile::TempDir,
    address: SocketAddr,
    origin: Option<syncd_origin::service::Running>,
    agents: Vec<Option<syncd_agent::service::Running>>,
}

fn collected() -> CollectedOptions {
    CollectedOptions {
        name: "uploads".parse().expect("a name"),
        path: TreePath::from_bytes(b"wp-content/uploads").expect("a path"),
        owner: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        deny: vec!["*.php".into()],
        ignore: Vec::new(),
        max_bytes: 1 << 30,
        node_max_bytes: None,
        losers_max_bytes: 1 << 30,
        rate: None,
    }
}

impl World {
    async fn of(nodes: usize) -> Self {
        let temp = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(temp.path().join("tree/wp-content")).expect("a tree");
        fs::write(temp.path().join("tree/wp-content/index.php"), "1").expect("a file");
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut world = Self { temp, address, origin: None, agents: Vec::new() };
        syncd_origin::service::init(&world.data()).expect("an origin");
        world.start_origin().await;
        for node in 0..nodes {
            world.join(node).await;
            world.agents.push(None);
            world.start_agent(node).await;
        }
        world
    }

    fn data(&self) -> PathBuf {
        self.temp.path().join("origin")
    }

    fn root(&self, node: usize) -> PathBuf {
        self.temp.path().join(format!("web{node}"))
    }

    /// As a web server and its visitors see the directory.
    fn uploads(&self, node: usize) -> PathBuf {
        self.root(node).join("live/wp-content/uploads")
    }

    async fn start_origin(&mut self) {
        let options = ServeOptions {
            git: None,
            hold_while: None,
            tree: self.temp.path().join("tree"),
            data: self.data(),
            listen: self.address,
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            http_required: true,
            page_listen: None,
            trigger: Trigger::Settle {
                quiet: Duration::from_millis(100),
                max: Duration::from_secs(30),
                busy_after: Duration::from_secs(300),
            },
            poll: Duration::from_secs(10),
            mtime: MtimePolicy::Tree,
            symlinks: SymlinkPolicy::Verbatim,
            retention: Default::default(),
            policies: Default::default(),
            bwlimit: None,
            publish: None,
            purge: None,
            on_rollout: None,
            collected: vec![collected()],
            admin_group: None,
        };
        let origin = syncd_origin::service::start(options).await.expect("the origin starts");
        self.address = origin.grpc_address();
        self.origin = Some(origin);
    }

    async fn stop_origin(&mut self) {
        self.origin.take().expect("it runs").stop().await;
    }

    async fn join(&self, node: usize) {
        let origin = self.origin.as_ref().expect("it runs");
        let token = origin.fleet().create_token(Duration::from_secs(300), 1).await.expect("a token");
        let joined = join::join(JoinOptions {
            address: self.address.to_string(),
            root: self.root(node),
            token,
            name: Some(format!("web{node}").parse().expect("a name")),
            rename: false,
            group: None,
            adopt: None,
        });
        joined.await.expect("the node joins");
    }

    /// Starts an agent, and waits until its collected directory is linked.
    async fn start_agent(&mut self, node: usize) {
        let options = RunOptions {
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            http_required: true,
            ..RunOptions::new(self.root(node))
        };
        let agent = syncd_agent::service::start(options).await.expect("the agent starts");
        self.agents[node] = Some(agent);
        let uploads = self.uploads(node);
        until("the link", || uploads.is_dir()).await;
    }

    async fn stop_agent(&mut self, node: usize) {
        self.agents[node].take().expect("it runs").stop().await;
    }

    /// Waits until a file is the same on both nodes.
    async fn arrives(&self, path: &str, content: &str) {
        for node in 0..self.agents.len() {
            let at = self.uploads(node).join(path);
            let what = format!("{path} on node {node}");
            until(&what, || fs::read(&at).is_ok_and(|bytes| bytes == content.as_bytes())).await;
        }
    }

    async fn vanishes(&self, path: &str) {
        for node in 0..self.agents.len() {
            let at = self.uploads(node).join(path);
            until(&format!("no {path} on node {node}"), || at.symlink_metadata().is_err()).await;
        }
    }

    /// Stops everything. The files stay until what is returned is dropped.
    async fn stop(mut self) -> tempfile::TempDir {
        for agent in self.agents.drain(..).flatten() {
            agent.stop().await;
        }
        if let Some(origin) = self.origin.take() {
            origin.stop().await;
        }
        self.temp
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(LOOK).await;
    }
}

fn write(at: &Path, content: &str) {
    fs::create_dir_all(at.parent().expect("a parent")).expect("directories");
    fs::write(at, content).expect("a file");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_visitors_write_on_one_node_is_on_the_other() {
    let mut world = World::of(2).await;
    let [first, second] = [world.uploads(0), world.uploads(1)];
    write(&first.join("hello.jpg"), "hello");
    world.arrives("hello.jpg", "hello").await;
    let time = |at: &Path| fs::metadata(at).expect("metadata").modified().expect("a time");
    assert_eq!(time(&first.join("hello.jpg")), time(&second.join("hello.jpg")));

    write(&second.join("hello.jpg"), "hello, edited");
    world.arrives("hello.jpg", "hello, edited").await;
    write(&second.join("2026/11/deep.jpg"), "deep");
    world.arrives("2026/11/deep.jpg", "deep").await;
    fs::rename(second.join("2026"), second.join("2027")).expect("a rename");
    world.arrives("2027/11/deep.jpg", "deep").await;
    world.vanishes("2026").await;
    fs::remove_dir_all(first.join("2027")).expect("a removal");
    world.vanishes("2027").await;
    fs::remove_file(second.join("hello.jpg")).expect("a removal");
    world.vanishes("hello.jpg").await;

    // Large enough for many pieces.
    let large = "0123456789abcdef".repeat(100_000);
    write(&first.join("large.bin"), &large);
    world.arrives("large.bin", &large).await;
    // Not taken: code, and symlinks.
    write(&first.join("shell.php"), "<?php");
    std::os::unix::fs::symlink("/etc/passwd", first.join("link")).expect("a link");
    write(&first.join("last.jpg"), "last");
    world.arrives("last.jpg", "last").await;
    assert!(!second.join("shell.php").exists() && second.join("link").symlink_metadata().is_err());
    assert!(first.join("shell.php").exists(), "it stays on its node");

    // A node that joins late gets everything that there is.
    world.join(2).await;
    world.agents.push(None);
    world.start_agent(2).await;
    world.arrives("large.bin", &large).await;
    world.vanishes("hello.jpg").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_their_origin_go_on_and_end_equal() {
    let mut world = World::of(2).await;
    let [first, second] = [world.uploads(0), world.uploads(1)];
    write(&first.join("shared.jpg"), "before");
    write(&first.join("doomed.jpg"), "doomed");
    world.arrives("shared.jpg", "before").await;
    world.arrives("doomed.jpg", "doomed").await;
    world.stop_origin().await;
    write(&first.join("shared.jpg"), "of the first");
    write(&second.join("shared.jpg"), "of the second");
    write(&first.join("only-first.jpg"), "1");
    write(&second.join("only-second.jpg"), "2");
    fs::remove_file(first.join("doomed.jpg")).expect("a removal");
    world.stop_agent(1).await;
    world.start_origin().await;
    world.start_agent(1).await;
    world.arrives("only-first.jpg", "1").await;
    world.arrives("only-second.jpg", "2").await;
    world.vanishes("doomed.jpg").await;
    let same = || fs::read(first.join("shared.jpg")).ok() == fs::read(second.join("shared.jpg")).ok();
    until("one content", same).await;
    // Whichever change arrived first stays, and the other one is kept.
    let data = world.data();
    let winner = fs::read_to_string(first.join("shared.jpg")).expect("a file");
    let _temp = world.stop().await;
    let collection = Collection::open(&data, vec![collected()]).expect("the index");
    let losers = collection.losers(&collected().name).expect("losers");
    let [(_, loser)] = &losers[..] else { panic!("{losers:?}") };
    let loser_node = if winner == "of the first" { "web1" } else { "web0" };
    assert_eq!((loser.node.as_str(), loser.path.to_string()), (loser_node, "shared.jpg".to_owned()));
    assert!(collection.contents().has(&loser.file.content, loser.file.size));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_journal_brings_back_nothing() {
    let mut world = World::of(2).await;
    let [first, second] = [world.uploads(0), world.uploads(1)];
    for name in ["stays.jpg", "removed.jpg", "edited.jpg"] {
        write(&first.join(name), name);
        world.arrives(name, name).await;
    }
    world.stop_agent(1).await;
    fs::remove_file(world.root(1).join("state/collected.redb")).expect("the journal");
    fs::remove_file(second.join("stays.jpg")).expect("a removal that nobody knows");
    write(&second.join("new.jpg"), "new");
    fs::remove_file(first.join("removed.jpg")).expect("a removal");
    write(&first.join("edited.jpg"), "edited");
    write(&first.join("marker.jpg"), "marker");
    world.start_agent(1).await;
    world.arrives("marker.jpg", "marker").await;
    world.arrives("edited.jpg", "edited").await;
    world.arrives("new.jpg", "new").await;
    world.arrives("stays.jpg", "stays.jpg").await;
    world.vanishes("removed.jpg").await;
    world.stop().await;
}
