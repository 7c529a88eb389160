//! Rollouts with the real programs: barriers, steps, checks at the origin, and an origin that is killed.

use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use syncd_tests::edits::{small_site, write};
use syncd_tests::process::run_within;
use syncd_tests::{Agent, Origin, Outcome, Scene, wait};

/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(240);

const POLICIES: &str = "
on-rollout = 'echo $SYNCD_EVENT $SYNCD_GENERATION >> FLAG.told && cat >> FLAG.told'

[rollout.canary]
steps = [ { nodes = 1 }, { rest = true } ]
hold = '10m'
check = 'test ! -e FLAG'

[rollout.step]
steps = [ { nodes = 1 }, { rest = true } ]
hold = '0s'

[rollout.short]
deadline = '3s'

[rollout.asking]
deadline = '3s'
check = 'echo it is raining >&2; exit 1'

[rollout.group]
steps = [ { group = 'eu' }, { rest = true } ]
";

struct Fleet {
    scene: Scene,
    origin: Origin,
    agents: Vec<Agent>,
    config: PathBuf,
}

impl Fleet {
    /// An origin with the policies of this suite, and agents `web1` ... that have the first generation.
    #[track_caller]
    fn new(name: &str, agents: usize, options: &[&str]) -> Self {
        Self::with_agents(name, agents, options, &[])
    }

    /// Likewise, with agents whose check fails on a tree with a file `bad`.
    #[track_caller]
    fn checked(name: &str, agents: usize, options: &[&str]) -> Self {
        let check = "test ! -e $SYNCD_LIVE/bad || { echo 502 Bad Gateway; exit 1; }";
        Self::with_agents(name, agents, options, &["--check", check, "--check-timeout", "10m"])
    }

    #[track_caller]
    fn with_agents(name: &str, agents: usize, options: &[&str], of_agents: &[&str]) -> Self {
        let scene = Scene::new(name);
        let tree = scene.path("tree");
        small_site(&tree, 5);
        let config = scene.path("origin.toml");
        let flag = scene.path("flag");
        std::fs::write(&config, POLICIES.replace("FLAG", flag.to_str().expect("text"))).expect("write");
        let mut all = vec!["--config", config.to_str().expect("text")];
        all.extend(options);
        let mut origin = Origin::create(&scene, &tree).with_options(&all);
        origin.start();
        let started = |number| {
            let mut agent = Agent::joined(&scene, &origin, &format!("web{number}")).with_options(of_agents);
            agent.start();
            agent
        };
        let agents: Vec<_> = (1..=agents).map(started).collect();
        let fleet = Self { scene, origin, agents, config };
        fleet.wait_connected();
        fleet.origin.cli("commit", &["--wait=4m", "--now"]).expect_success();
        fleet
    }

    #[track_caller]
    fn wait_connected(&self) {
        let names: Vec<&str> = self.agents.iter().map(|agent| agent.name.as_str()).collect();
        self.origin.wait_connected(&names);
    }

    /// Changes the tree.
    fn edit(&self, content: &str) {
        write(&self.origin.tree, "page.html", content);
    }

    /// The page that a node serves.
    fn page(&self, agent: usize) -> String {
        let page = self.agents[agent].live().join("page.html");
        std::fs::read_to_string(page).unwrap_or_default()
    }

    /// Starts a command of the origin in the background.
    fn background(&self, subcommand: &str, args: &[&str]) -> JoinHandle<Outcome> {
        let mut command: Command = self.origin.command(subcommand, args);
        std::thread::spawn(move || run_within(&mut command, LONG))
    }

    /// The newest rollout.
    fn rollout(&self) -> Value {
        let outcome = self.origin.cli("rollout", &["status", "--json"]).expect_success();
        serde_json::from_str(&outcome.stdout).expect("JSON")
    }

    /// Waits until the rollout of a generation is in a phase and step.
    #[track_caller]
    fn wait_phase(&self, generation: u64, phase: &str, step: u64) -> Value {
        wait::until_ok("the rollout to get there", || {
            let rollout = self.rollout();
            let is = (rollout["generation"].as_u64(), rollout["phase"].as_str(), rollout["step"].as_u64());
            if is == (Some(generation), Some(phase), Some(step)) {
                Ok(rollout)
            } else {
                Err(rollout.to_string())
            }
        })
    }

    fn status(&self) -> Value {
        let outcome = self.origin.cli("status", &["--json"]).expect_success();
        serde_json::from_str(&outcome.stdout).expect("JSON")
    }

    #[track_caller]
    fn wait_status(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        wait::until_ok(what, || {
            let status = self.status();
            if is_so(&status) { Ok(status) } else { Err(status.to_string()) }
        })
    }

    /// Waits until every node serves this page.
    #[track_caller]
    fn wait_pages(&self, content: &str) {
        wait::until_ok("every node to serve the page", || {
            let pages: Vec<String> = (0..self.agents.len()).map(|agent| self.page(agent)).collect();
            if pages.iter().all(|page| page == content) { Ok(()) } else { Err(format!("{pages:?}")) }
        });
    }

    /// Waits until `--on-rollout` was told of an event. Returns all that it was told.
    #[track_caller]
    fn wait_told(&self, event: &str) -> String {
        let told = self.scene.path("flag.told");
        wait::until_ok("news of the rollout", || {
            let told = std::fs::read_to_string(&told).unwrap_or_default();
            if told.contains(event) && told.ends_with('\n') { Ok(told) } else { Err(told) }
        })
    }

    /// Waits until the check of every node has begun on a generation, and not ended.
    #[track_caller]
    fn wait_trials(&self, generation: u64) {
        let is_tried = |agent: &Value| {
            let check = &agent["check"];
            agent["connected"] == true && check["generation"] == generation && check["outcome"] == "running"
        };
        self.wait_status("every node to be on trial", |status| {
            status["agents"].as_array().is_some_and(|agents| agents.iter().all(is_tried))
        });
    }

    /// Kills an agent, and starts it once the origin has noticed.
    #[track_caller]
    fn kill_and_start(&mut self, number: usize) {
        self.agents[number].kill9();
        let name = self.agents[number].name.clone();
        self.wait_status("the node to be away", |status| agent(status, &name)["connected"] == false);
        self.agents[number].start();
    }

    fn signal(&mut self, agent: usize, signal: Signal) {
        self.agents[agent].daemon().signal(signal);
    }
}

fn agent<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["agents"].as_array().and_then(|all| all.iter().find(|a| a["name"] == name)).expect("the agent")
}

#[test]
fn four_nodes_flip_together_when_the_last_has_staged() {
    let mut fleet = Fleet::new("together", 4, &["--trigger", "manual", "--rollout", "together"]);
    fleet.edit("two");
    fleet.signal(3, Signal::STOP);
    let commit = fleet.background("commit", &["--wait=4m"]);
    let staged = |status: &Value| (1..=3).all(|n| agent(status, &format!("web{n}"))["state"] == "staged");
    let status = fleet.wait_status("three nodes to stage", staged);
    assert_eq!(status["rollout"]["phase"], "staging");
    assert_eq!((0..4).map(|agent| fleet.page(agent)).collect::<String>(), "", "none activates alone");
    fleet.signal(3, Signal::CONT);
    let outcome = commit.join().expect("the commit").expect_success();
    assert!(outcome.stderr.contains("web4 live"), "{outcome:?}");
    fleet.wait_pages("two");
    assert_eq!(fleet.rollout()["phase"], "released");
}

#[test]
fn a_canary_whose_check_fails_is_withdrawn_and_no_other_node_is_touched() {
    let fleet = Fleet::new("canary", 3, &["--trigger", "manual"]);
    fleet.edit("good");
    fleet.origin.cli("commit", &["--rollout", "step", "--wait=4m"]).expect_success();
    fleet.wait_pages("good");
    let before = fleet.rollout();
    assert_eq!((&before["phase"], &before["policy"]), (&"released".into(), &"step".into()));
    fleet.edit("bad");
    let commit = fleet.background("commit", &["--rollout", "canary", "--wait=4m"]);
    let number = wait::until("a canary", || {
        let rollout = fleet.rollout();
        let is_held = rollout["policy"] == "canary" && rollout["phase"] == "holding";
        is_held.then(|| rollout["generation"].as_u64())?
    });
    let pages: Vec<_> = (0..3).map(|agent| fleet.page(agent)).collect();
    assert_eq!(pages, ["bad", "good", "good"]);
    std::fs::write(fleet.scene.path("flag"), "").expect("write");
    let outcome = commit.join().expect("the commit").expect_code(3);
    assert!(outcome.stderr.contains("the check at the origin failed after step 1"), "{outcome:?}");
    fleet.wait_pages("good");
    let status = fleet.wait_status("the withdrawal", |status| status["generation"] == number + 1);
    assert_eq!(status["hold"]["generation"].as_u64(), Some(number + 1));
    let reason = status["hold"]["reason"].as_str().expect("a reason");
    assert!(reason.starts_with(&format!("generation {number} was withdrawn")), "{reason}");
    let told = fleet.wait_told(&format!("failed {number}\n"));
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 2, "a withdrawal is told once: {told}");
    let rollout: Value = serde_json::from_str(lines[1]).expect("JSON");
    assert_eq!((&rollout["phase"], rollout["generation"].as_u64()), (&"failed".into(), Some(number)));
    // Nothing automatic is published any more, until an operator commits.
    fleet.edit("better");
    fleet.origin.cli("commit", &["--now", "--wait=4m"]).expect_success();
    fleet.wait_pages("better");
    assert!(fleet.status()["hold"].is_null());
    // The nodes have a later one, which is no success of the one that was withdrawn.
    fleet.origin.cli("wait", &[&number.to_string()]).expect_code(3);
}

#[test]
fn without_quorum_at_the_deadline_nothing_flips_and_the_missing_node_is_named() {
    let mut fleet = Fleet::new("quorum", 3, &["--trigger", "manual"]);
    fleet.edit("two");
    fleet.signal(1, Signal::STOP);
    let outcome = fleet.origin.cli("commit", &["--rollout", "short", "--wait"]).expect_code(3);
    assert!(outcome.stderr.contains("missing: web2"), "{outcome:?}");
    assert!(outcome.stderr.contains("2 of 3 nodes of step 1 have staged it"), "{outcome:?}");
    let status = fleet.wait_status("the withdrawal", |status| status["generation"] == 3);
    assert!(!status["hold"].is_null());
    assert_eq!((fleet.page(0), fleet.page(2)), (String::new(), String::new()));
    fleet.signal(1, Signal::CONT);
    fleet.origin.cli("commit", &["--rollout", "together", "--wait=4m"]).expect_success();
    fleet.wait_pages("two");
}

#[test]
fn a_check_that_does_not_pass_before_the_flip_ends_the_rollout_at_its_deadline() {
    let fleet = Fleet::new("weather", 1, &["--trigger", "manual"]);
    fleet.edit("two");
    let outcome = fleet.origin.cli("commit", &["--rollout", "asking", "--wait"]).expect_code(3);
    assert!(outcome.stderr.contains("has not passed: exit status: 1: it is raining"), "{outcome:?}");
    assert_eq!(fleet.page(0), "");
}

#[test]
fn an_origin_that_is_killed_in_any_phase_goes_on_with_the_rollout() {
    let mut fleet = Fleet::new("killed", 3, &["--trigger", "manual"]);
    let restart = |fleet: &mut Fleet| {
        fleet.origin.kill9();
        fleet.origin.start();
    };
    // Staging: one node does not answer.
    fleet.edit("two");
    fleet.signal(2, Signal::STOP);
    fleet.origin.cli("commit", &["--rollout", "together"]).expect_success();
    fleet.wait_phase(2, "staging", 1);
    restart(&mut fleet);
    assert_eq!(fleet.page(0), "");
    fleet.signal(2, Signal::CONT);
    fleet.wait_pages("two");
    fleet.wait_phase(2, "released", 1);
    restart(&mut fleet);
    fleet.wait_phase(2, "released", 1);
    // Flipping: the canary is frozen after it has staged, before it activates.
    fleet.edit("three");
    fleet.origin.cli("commit", &["--rollout", "canary"]).expect_success();
    fleet.wait_phase(3, "holding", 1);
    restart(&mut fleet);
    fleet.wait_connected();
    fleet.wait_phase(3, "holding", 1);
    assert_eq!((fleet.page(0), fleet.page(1)), ("three".into(), "two".into()));
    fleet.origin.cli("rollout", &["advance"]).expect_success();
    // Wherever it is now.
    restart(&mut fleet);
    fleet.wait_pages("three");
    fleet.wait_phase(3, "released", 2);
    // Failed: the withdrawal is sealed after the restart, if it was not before.
    fleet.edit("four");
    fleet.origin.cli("commit", &["--rollout", "canary"]).expect_success();
    fleet.wait_phase(4, "holding", 1);
    fleet.origin.cli("rollout", &["abort"]).expect_success();
    restart(&mut fleet);
    fleet.wait_pages("three");
    let status = fleet.wait_status("the withdrawal", |status| status["generation"] == 5);
    assert!(!status["hold"].is_null(), "{status}");
    fleet.wait_told(" 4\n");
}

#[test]
fn automatic_commits_wait_behind_a_rollout_and_an_operators_supersedes_it() {
    let fleet = Fleet::new("queue", 2, &["--settle", "100ms", "--rollout", "canary"]);
    fleet.edit("two");
    fleet.wait_phase(2, "holding", 1);
    for content in ["three", "four"] {
        fleet.edit(content);
    }
    let status = fleet.wait_status("the change to be queued", |status| status["state"] == "waiting");
    let reason = status["reason"].as_str().expect("a reason");
    assert!(reason.contains("changes are published after the rollout of generation 2 (canary)"), "{reason}");
    fleet.origin.cli("rollout", &["advance"]).expect_success();
    fleet.wait_phase(3, "holding", 1);
    assert_eq!((fleet.page(0), fleet.page(1)), ("four".into(), "two".into()), "the newest only");
    // Superseded: the canary's generation is no place to return to.
    fleet.edit("five");
    fleet.origin.cli("commit", &["--now", "--wait=4m"]).expect_success();
    fleet.wait_pages("five");
    fleet.origin.cli("rollback", &["--wait=4m"]).expect_success();
    fleet.wait_pages("two");
    fleet.wait_told("held ");
}

#[test]
fn orders_of_operators_work_in_every_phase_or_say_why_not() {
    let mut fleet = Fleet::new("orders", 2, &["--trigger", "manual"]);
    for order in ["pause", "resume", "advance", "abort"] {
        fleet.origin.cli("rollout", &[order]).expect_code(1).expect_refusal(&["no rollout is running"]);
    }
    fleet.edit("two");
    fleet.signal(0, Signal::STOP);
    fleet.origin.cli("commit", &["--rollout", "canary"]).expect_success();
    fleet.wait_phase(2, "staging", 1);
    fleet.origin.cli("rollout", &["advance"]).expect_code(1).expect_refusal(&["still staging"]);
    fleet.origin.cli("rollout", &["resume"]).expect_code(1).expect_refusal(&["not paused"]);
    fleet.origin.cli("rollout", &["pause"]).expect_success();
    fleet.origin.cli("rollout", &["pause"]).expect_code(1).expect_refusal(&["paused already"]);
    fleet.signal(0, Signal::CONT);
    let staged = |status: &Value| agent(status, "web1")["state"] == "staged";
    fleet.wait_status("the canary to stage", staged);
    assert_eq!(fleet.rollout()["phase"], "staging", "it is paused");
    fleet.origin.kill9();
    fleet.origin.start();
    fleet.wait_connected();
    assert_eq!(fleet.rollout()["paused"], true, "also after a restart");
    fleet.origin.cli("rollout", &["resume"]).expect_success();
    fleet.wait_phase(2, "holding", 1);
    fleet.origin.cli("rollout", &["abort"]).expect_success();
    fleet.wait_pages("");
    assert_eq!(fleet.status()["rollout"]["phase"], "aborted");
    // `--now` for the same tree ends the rollout that runs.
    fleet.origin.cli("commit", &["--rollout", "canary"]).expect_success();
    fleet.wait_phase(4, "holding", 1);
    let outcome = fleet.origin.cli("commit", &["--now", "--wait=4m"]).expect_success();
    assert!(outcome.stderr.contains("nothing changed since generation 4"), "{outcome:?}");
    fleet.wait_pages("two");
}

#[test]
fn drained_nodes_flip_along_and_pinned_ones_stay() {
    let mut fleet = Fleet::new("drained", 3, &["--trigger", "manual", "--rollout", "together"]);
    fleet.origin.cli("drain", &["web2"]).expect_success();
    fleet.origin.cli("pin", &["web3"]).expect_success();
    let status = fleet.status();
    assert_eq!(
        (&agent(&status, "web2")["drained"], &agent(&status, "web3")["pinned"]["by"]),
        (&true.into(), &"origin".into())
    );
    fleet.wait_connected();
    // Nobody waits for a drained node, and nothing is assigned to a pinned one.
    fleet.signal(1, Signal::STOP);
    fleet.edit("two");
    let outcome = fleet.origin.cli("commit", &["--wait=4m"]).expect_success();
    assert!(outcome.stderr.contains("web2 drained: not waited for"), "{outcome:?}");
    assert!(outcome.stderr.contains("web3 pinned: not waited for, at generation 1"), "{outcome:?}");
    assert_eq!((fleet.page(0), fleet.page(2)), ("two".into(), String::new()));
    // Orders are durable.
    fleet.origin.kill9();
    fleet.origin.start();
    fleet.signal(1, Signal::CONT);
    fleet.wait_connected();
    fleet.origin.cli("undrain", &["web2"]).expect_success();
    assert_eq!(fleet.page(1), "two", "undrain waits for it");
    assert_eq!(fleet.page(2), "", "it is pinned still");
    fleet.origin.cli("unpin", &["web3"]).expect_success();
    fleet.wait_pages("two");
}

#[test]
fn groups_are_steps_and_mistakes_are_named() {
    let mut fleet = Fleet::new("groups", 2, &["--trigger", "manual"]);
    fleet.edit("two");
    let commit = |fleet: &Fleet, policy: &str| fleet.origin.cli("commit", &["--rollout", policy]);
    commit(&fleet, "group")
        .expect_code(1)
        .expect_refusal(&["no node is in group eu", "syncd-origin group NODE eu"]);
    commit(&fleet, "grupo").expect_code(1).expect_refusal(&["no rollout policy \"grupo\"", "together"]);
    assert_eq!(fleet.status()["generation"], 1, "nothing was published");
    fleet.origin.cli("group", &["web9", "eu"]).expect_code(1).expect_refusal(&["no agent \"web9\""]);
    fleet.origin.cli("group", &["web2", "a b"]).expect_code(1).expect_refusal(&["group names"]);
    fleet.origin.cli("group", &["web2", "eu"]).expect_success();
    fleet.origin.cli("forget", &["web1"]).expect_code(1).expect_refusal(&["web1 is connected", "revoke"]);
    commit(&fleet, "group").expect_success();
    fleet.wait_phase(2, "holding", 1);
    assert_eq!((fleet.page(0), fleet.page(1)), (String::new(), "two".into()));
    fleet.origin.cli("rollout", &["advance"]).expect_success();
    fleet.wait_pages("two");
    fleet.agents[0].stop();
    fleet.wait_status("web1 to be away", |status| agent(status, "web1")["connected"] == false);
    fleet.origin.cli("forget", &["web1"]).expect_success();
    assert_eq!(fleet.status()["agents"].as_array().map(Vec::len), Some(1));
    // A file with a mistake does not start, and says what is right.
    fleet.origin.stop();
    std::fs::write(&fleet.config, "[rollout.x]\nsteps = [ { nodes = 1 } ]\n").expect("write");
    let mut serve = fleet.origin.serve_command();
    run_within(&mut serve, LONG).expect_code(1).expect_refusal(&["[rollout.x]", "{ rest = true }"]);
}

#[test]
fn a_rollback_without_a_number_returns_to_the_generation_before() {
    let fleet = Fleet::new("rollback", 2, &["--trigger", "manual"]);
    for content in ["two", "three"] {
        fleet.edit(content);
        fleet.origin.cli("commit", &["--wait=4m"]).expect_success();
    }
    let outcome = fleet.origin.cli("rollback", &["--wait=4m"]).expect_success();
    assert!(outcome.stderr.contains("rolled back to the tree of generation 2"), "{outcome:?}");
    fleet.wait_pages("two");
    // Further back, and never to what was rolled back.
    fleet.origin.cli("rollback", &["--wait=4m"]).expect_success();
    fleet.wait_pages("");
    fleet.origin.cli("rollback", &[]).expect_code(1).expect_refusal(&["no generation to return to"]);
}

#[test]
fn a_canary_whose_own_check_fails_returns_by_itself_and_touches_no_other_node() {
    let fleet = Fleet::checked("own-check", 3, &["--trigger", "manual"]);
    fleet.edit("good");
    fleet.origin.cli("commit", &["--rollout", "step", "--wait=4m"]).expect_success();
    write(&fleet.origin.tree, "bad", "x");
    fleet.edit("bad");
    let outcome = fleet.origin.cli("commit", &["--rollout", "step", "--wait=4m"]).expect_code(3);
    assert!(outcome.stderr.contains("the check failed on web1"), "{outcome:?}");
    assert!(outcome.stderr.contains("502 Bad Gateway"), "{outcome:?}");
    let status = fleet.wait_status("the withdrawal", |status| status["generation"] == 4);
    assert_eq!(status["hold"]["generation"], 4, "{status}");
    fleet.wait_pages("good");
    let refused: Vec<_> = fleet.agents.iter().map(|agent| agent.status().refused.len()).collect();
    assert_eq!(refused, [1, 0, 0], "no other node tried it");
    std::fs::remove_file(fleet.origin.tree.join("bad")).expect("mend the tree");
    fleet.edit("better");
    fleet.origin.cli("commit", &["--rollout", "step", "--wait=4m"]).expect_success();
    fleet.wait_pages("better");
}

#[test]
fn a_tree_that_a_canary_refused_rolls_out_once_it_is_accepted() {
    let check = "test ! -e $SYNCD_LIVE/new || test -e $SYNCD_ROOT/../mended || { echo no database; exit 1; }";
    let fleet = Fleet::with_agents("accepted", 2, &["--trigger", "manual"], &["--check", check]);
    fleet.edit("old");
    fleet.origin.cli("commit", &["--rollout", "step", "--wait=4m"]).expect_success();
    write(&fleet.origin.tree, "new", "x");
    fleet.edit("new");
    fleet.origin.cli("commit", &["--rollout", "step", "--wait=4m"]).expect_code(3);
    fleet.wait_status("the withdrawal", |status| status["generation"] == 4);
    fleet.wait_pages("old");
    // The tree was not to blame.
    std::fs::write(fleet.scene.path("mended"), "").expect("mend what the check asks");
    fleet.agents[0].cli("accept", &["3"]).expect_success();
    fleet.wait_status("the canary to be asked anew", |status| {
        let canary = agent(status, "web1");
        canary["connected"] == true && canary["check"]["outcome"] != "failed"
    });
    fleet.origin.cli("commit", &["--rollout", "step", "--wait=4m"]).expect_success();
    fleet.wait_pages("new");
    assert_eq!(fleet.rollout()["phase"], "released");
}

#[test]
fn what_goes_to_all_nodes_at_once_is_withdrawn_when_a_node_returns_from_it() {
    let fleet = Fleet::checked("each", 2, &["--trigger", "manual"]);
    fleet.edit("good");
    fleet.origin.cli("commit", &["--wait=4m"]).expect_success();
    write(&fleet.origin.tree, "bad", "x");
    fleet.edit("bad");
    let outcome = fleet.origin.cli("commit", &["--wait=4m"]).expect_code(3);
    assert!(outcome.stderr.contains("502 Bad Gateway"), "{outcome:?}");
    let status = fleet.wait_status("the withdrawal", |status| status["generation"] == 4);
    let reason = status["hold"]["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("generation 3 was withdrawn"), "{reason}");
    fleet.wait_pages("good");
}

#[test]
fn a_node_that_is_killed_in_its_trial_is_waited_for_and_never_called_live_when_its_check_fails() {
    // In a trial of generation N > 1 the check waits for `goN` beside the replicas.
    let check = "[ $SYNCD_PHASE != trial ] || [ $SYNCD_GENERATION = 1 ] || \
                 until test -e $SYNCD_ROOT/../go$SYNCD_GENERATION; do sleep 0.05; done; \
                 test ! -e $SYNCD_LIVE/bad || { echo 502 Bad Gateway; exit 1; }";
    let options = ["--check", check, "--check-timeout", "10m"];
    let mut fleet = Fleet::with_agents("trial-killed", 2, &["--trigger", "manual"], &options);
    fleet.edit("two");
    let commit = fleet.background("commit", &["--rollout", "together", "--wait=4m"]);
    fleet.wait_trials(2);
    fleet.kill_and_start(0);
    fleet.wait_trials(2);
    assert_eq!(fleet.rollout()["phase"], "flipping", "the check has not ended");
    assert!(!commit.is_finished());
    std::fs::write(fleet.scene.path("go2"), "").expect("end the trial");
    let outcome = commit.join().expect("the commit").expect_success();
    assert!(outcome.stderr.contains("web1 live") && outcome.stderr.contains("web2 live"), "{outcome:?}");
    fleet.wait_phase(2, "released", 1);
    // To every node at once, and bad.
    write(&fleet.origin.tree, "bad", "x");
    fleet.edit("bad");
    let commit = fleet.background("commit", &["--wait=4m"]);
    fleet.wait_trials(3);
    fleet.kill_and_start(0);
    fleet.wait_trials(3);
    assert!(!commit.is_finished());
    std::fs::write(fleet.scene.path("go3"), "").expect("end the trial");
    let outcome = commit.join().expect("the commit").expect_code(3);
    assert!(!outcome.stderr.contains(" live after"), "{outcome:?}");
    assert!(outcome.stderr.contains("502 Bad Gateway"), "{outcome:?}");
    fleet.wait_status("the withdrawal", |status| status["generation"] == 4);
    fleet.wait_pages("two");
}

#[test]
fn a_rollback_ends_the_wait_for_the_generation_that_it_replaces() {
    let mut fleet = Fleet::new("wait-replaced", 2, &["--trigger", "manual"]);
    fleet.edit("two");
    fleet.origin.cli("commit", &["--wait=4m"]).expect_success();
    // In the hold of a canary, and while one of all nodes does not answer.
    for (rollout, number) in [("canary", 3), ("each", 5)] {
        fleet.edit(rollout);
        if rollout == "each" {
            fleet.signal(1, Signal::STOP);
        }
        let commit = fleet.background("commit", &["--rollout", rollout, "--wait=4m"]);
        wait::until("one node to serve it", || (fleet.page(0) == rollout).then_some(()));
        assert_eq!(fleet.page(1), "two");
        fleet.origin.cli("rollback", &[&(number - 1).to_string()]).expect_success();
        let outcome = commit.join().expect("the commit").expect_code(3);
        let replaced = format!("generation {} replaced it by a rollback", number + 1);
        assert!(outcome.stderr.contains(&replaced), "{outcome:?}");
        assert!(!outcome.stderr.contains("web2 live"), "{outcome:?}");
        fleet.signal(1, Signal::CONT);
        fleet.wait_pages("two");
    }
}

#[test]
fn a_restored_origin_holds_a_tree_back_that_a_node_refuses() {
    let mut fleet = Fleet::checked("restored", 1, &["--settle", "100ms"]);
    fleet.edit("good");
    fleet.wait_pages("good");
    let copy = fleet.scene.path("copy");
    fleet.origin.cli("backup", &[copy.to_str().expect("text")]).expect_success();
    // One change, because two could be published one after the other.
    write(&fleet.origin.tree, "bad", "x");
    fleet.wait_status("the withdrawal", |status| !status["hold"].is_null());
    fleet.wait_pages("good");
    fleet.origin.kill9();
    std::fs::remove_dir_all(&fleet.origin.data).expect("lose the data");
    std::fs::rename(&copy, &fleet.origin.data).expect("restore a copy");
    fleet.origin.start();
    let status = fleet.wait_status("the tree to be held back", |status| {
        status["reason"].as_str().is_some_and(|reason| reason.contains("web1"))
    });
    assert_eq!((status["state"].as_str(), fleet.page(0).as_str()), (Some("held"), "good"), "{status}");
}

#[test]
fn nodes_that_die_in_mid_flip_come_back_to_it_and_a_drained_one_is_not_waited_for() {
    let hook = "[ $SYNCD_GENERATION = 1 ] || test -e $SYNCD_ROOT/../go";
    let options = ["--on-activate", hook];
    let mut fleet = Fleet::with_agents("mid-flip", 3, &["--trigger", "manual"], &options);
    fleet.edit("two");
    fleet.origin.cli("commit", &["--rollout", "together"]).expect_success();
    fleet.wait_phase(2, "flipping", 1);
    for agent in &mut fleet.agents {
        agent.kill9();
    }
    fleet.origin.cli("drain", &["web3"]).expect_success();
    std::fs::write(fleet.scene.path("go"), "").expect("mend the hook");
    for agent in &mut fleet.agents[..2] {
        agent.start();
    }
    fleet.wait_phase(2, "released", 1);
    assert_eq!((fleet.page(0), fleet.page(1)), ("two".into(), "two".into()));
    fleet.agents[2].start();
    fleet.wait_connected();
    fleet.origin.cli("undrain", &["web3"]).expect_success();
    fleet.wait_pages("two");
}

#[test]
fn a_rollback_supersedes_a_rollout_that_runs() {
    let fleet = Fleet::new("superseded", 2, &["--trigger", "manual"]);
    fleet.edit("two");
    fleet.origin.cli("commit", &["--wait=4m"]).expect_success();
    fleet.edit("three");
    fleet.origin.cli("commit", &["--rollout", "canary"]).expect_success();
    fleet.wait_phase(3, "holding", 1);
    fleet.origin.cli("rollback", &["--wait=4m"]).expect_success();
    fleet.wait_pages("two");
    let rollout = fleet.wait_phase(4, "released", 1);
    assert_eq!(rollout["kind"], "rollback", "{rollout}");
}

/// Runs `rollback` on a pseudo terminal, and types an answer.
fn rollback_on_a_terminal(fleet: &Fleet, answer: &str) -> Outcome {
    let command = fleet.origin.command("rollback", &["--wait=4m"]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_str().expect("text"))).collect();
    let line = format!("echo {answer} | script -qec \"{}\" /dev/null", words.join(" "));
    run_within(Command::new("sh").args(["-c", &line]), LONG)
}

#[test]
fn a_rollback_on_a_terminal_asks_from_what_to_what() {
    syncd_tests::require_program("script", "bsdutils");
    let fleet = Fleet::new("asked", 1, &["--trigger", "manual"]);
    for content in ["two", "three"] {
        fleet.edit(content);
        fleet.origin.cli("commit", &["--wait=4m"]).expect_success();
    }
    let outcome = rollback_on_a_terminal(&fleet, "n");
    assert!(outcome.stdout.contains("roll back from generation 3"), "{outcome:?}");
    assert!(outcome.stdout.contains("to generation 2"), "{outcome:?}");
    assert_eq!((fleet.status()["generation"].as_u64(), fleet.page(0).as_str()), (Some(3), "three"));
    rollback_on_a_terminal(&fleet, "y").expect_success();
    fleet.wait_pages("two");
}
