//! Collected directories beside a repository: uploads that no commit contains.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use syncd_tests::edits::write;
use syncd_tests::process::run;
use syncd_tests::{Agent, Origin, Scene, binary, wait};

use super::{Repository, git, published};

const PATH: &str = "wp-content/uploads";

/// A work tree whose commits are pushed to a bare repository, and two nodes.
struct Cluster {
    repository: Repository,
    remote: PathBuf,
    config: PathBuf,
    origin: Origin,
    nodes: Vec<Agent>,
    scene: Scene,
}

impl Cluster {
    /// Nodes that have the first commit, with these files besides the site's own.
    #[track_caller]
    fn new(name: &str, files: &[&str]) -> Self {
        let scene = Scene::new(name);
        let remote = scene.path("site.git");
        git(scene.directory(), &["init", "-q", "--bare", "-b", "main", "site.git"]);
        let mut repository = Repository::create(&scene, "work");
        for path in [&["index.html", "wp-content/index.php"], files].concat() {
            write(&repository.path, path, path);
        }
        let first = repository.commit("first");
        let config = scene.path("origin.toml");
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let table = format!("[collect.uploads]\npath = '{PATH}'\nowner = '{user}:{group}'\n");
        fs::write(&config, table).expect("write the configuration");
        let options = ["--trigger", "git", "--git-ref", "main", "--config", &config.display().to_string()];
        let mut origin = Origin::create(&scene, &remote).with_options(&options);
        origin.start();
        let mut this = Self { repository, remote, config, origin, nodes: Vec::new(), scene };
        this.push(&first);
        for name in ["web1", "web2"] {
            this.nodes.push(Agent::started(&this.scene, &this.origin, name));
        }
        this.wait_live();
        this
    }

    /// Pushes the branch, also one that does not continue the last one, and waits for it on the nodes.
    #[track_caller]
    fn push(&self, commit: &str) {
        self.repository.git(&["push", "-q", "--force", &self.remote.display().to_string(), "main"]);
        published(&self.origin, commit);
        self.wait_live();
    }

    #[track_caller]
    fn commit(&mut self, path: &str) {
        write(&self.repository.path, path, path);
        let commit = self.repository.commit(path);
        self.push(&commit);
        for node in &self.nodes {
            assert_eq!(fs::read_to_string(node.live().join(path)).expect("a file of the commit"), path);
        }
    }

    #[track_caller]
    fn wait_live(&self) {
        let number = self.origin.status().generation.expect("a generation");
        self.nodes.iter().for_each(|node| assert!(node.wait_live(number) >= number));
    }

    /// Writes a file on one node and waits until both have it.
    #[track_caller]
    fn upload(&self, node: usize, path: &str) {
        write(&self.nodes[node].live().join(PATH), path, path);
        self.arrives(path);
    }

    #[track_caller]
    fn arrives(&self, path: &str) {
        for node in &self.nodes {
            let at = node.live().join(PATH).join(path);
            wait::until_ok("an upload", || match fs::read_to_string(&at) {
                Ok(text) if text == path => Ok(()),
                other => Err(format!("{} {other:?} {}", at.display(), node.cli("status", &[]).stdout)),
            });
        }
    }

    /// Waits for `old.jpg`, which the first commit has among the uploads.
    #[track_caller]
    fn arrives_from_git(&self) {
        let path = format!("{PATH}/old.jpg");
        let has = |node: &Agent| fs::read_to_string(node.live().join(&path)).is_ok_and(|text| text == path);
        wait::until("the upload of the commit", || self.nodes.iter().all(has).then_some(()));
    }

    #[track_caller]
    fn assert_links(&self) {
        for node in &self.nodes {
            let entry = node.live().join(PATH).symlink_metadata().expect("an entry");
            assert!(entry.is_symlink(), "{entry:?}");
        }
    }
}

#[test]
fn uploads_stay_and_travel_through_pushes_and_forced_pushes() {
    let mut cluster = Cluster::new("git-uploads", &[]);
    let first = cluster.repository.git(&["rev-parse", "HEAD"]);
    cluster.assert_links();
    cluster.upload(0, "2026/11/first.jpg");

    cluster.commit("wp-content/plugins/new.php");
    cluster.commit("about.html");
    cluster.upload(1, "2026/11/second.jpg");

    // Content in the place of the uploads is not published, and neither is its removal.
    write(&cluster.repository.path, "wp-content/uploads/in-git.jpg", "in git");
    cluster.commit("wp-content/beside.php");
    cluster.repository.git(&["rm", "-q", "-r", PATH]);
    cluster.commit("wp-content/afterwards.php");
    cluster.assert_links();
    for node in &cluster.nodes {
        assert!(!node.live().join(PATH).join("in-git.jpg").exists());
    }
    let log = cluster.origin.daemon().log();
    assert!(log.contains("in the place of a collected directory"), "{log}");

    cluster.repository.git(&["reset", "-q", "--hard", &first]);
    cluster.commit("forced.html");
    assert!(!cluster.nodes[0].live().join("wp-content/plugins").exists());
    cluster.assert_links();
    cluster.arrives("2026/11/first.jpg");
    cluster.upload(0, "2026/11/third.jpg");

    let root = cluster.origin.status().root;
    cluster.origin.stop();
    cluster.origin.start();
    assert_eq!(cluster.origin.status().root, root, "the same commit with the same table");
    cluster.upload(1, "2026/11/fourth.jpg");
}

#[test]
fn uploads_of_a_repository_stay_on_the_nodes_until_they_are_adopted() {
    let mut cluster = Cluster::new("git-adopt", &["wp-content/uploads/old.jpg"]);
    // The first commit came after the start of the origin, when there was nothing to lose.
    cluster.assert_links();
    let (config, remote) = (cluster.config.clone(), cluster.remote.display().to_string());
    let table = fs::read_to_string(&config).expect("the configuration");
    fs::write(&config, "").expect("write the configuration");
    cluster.origin.stop();
    cluster.origin.start();
    wait::until("the files of the commit", || {
        cluster.nodes[0].live().join(PATH).symlink_metadata().is_ok_and(|found| found.is_dir()).then_some(())
    });

    let check = |table: &str| {
        fs::write(&config, table).expect("write the configuration");
        let mut command = Command::new(binary("syncd-origin"));
        command.args(["config", "check", "--config"]).arg(&config);
        command.args(["--", "--trigger", "git", "--git-ref", "main", "--tree", &remote]);
        run(&mut command)
    };
    let refused = check(&table.replace(PATH, "nowhere/uploads"));
    let expected = "nowhere is no directory in main of the repository";
    assert!(refused.code != Some(0) && refused.stderr.contains(expected), "{refused:?}");
    let noted = check(&table).expect_success();
    assert!(noted.stderr.contains("the tree has files in wp-content/uploads"), "{noted:?}");

    cluster.origin.stop();
    cluster.origin.start();
    let status = cluster.origin.cli("status", &[]).expect_success().stdout;
    assert!(status.contains("syncd-origin collected adopt uploads"), "{status}");
    // A node asks an origin that collected nothing again only after a minute, or when it starts.
    cluster.nodes.iter_mut().for_each(Agent::restart);
    cluster.commit("about.html");
    assert!(cluster.nodes[1].live().join(PATH).symlink_metadata().expect("an entry").is_dir());
    cluster.arrives_from_git();

    let refused = cluster.origin.cli("collected", &["adopt", "uploads"]);
    let archive = format!("git -C {remote} archive main {PATH} | tar -x -C ");
    assert!(refused.code != Some(0) && refused.stderr.contains(&archive), "{refused:?}");
    let checkout = cluster.scene.new_directory("checkout");
    let script = format!("{archive}{}", checkout.display());
    run(Command::new("sh").args(["-c", &script])).expect_success();
    let uploads = checkout.join(PATH).display().to_string();
    cluster.origin.cli("collected", &["adopt", "uploads", &uploads]).expect_success();
    cluster.origin.stop();
    cluster.origin.start();
    wait::until("the link", || {
        let linked = |node: &Agent| node.live().join(PATH).is_symlink();
        cluster.nodes.iter().all(linked).then_some(())
    });
    cluster.arrives_from_git();
}
