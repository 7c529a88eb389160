//! An origin whose DATA is on a file system of its own and whose power is cut at chosen calls, with an oracle
//! for the state afterwards.
//!
//! Like [`crate::node`], but for the origin: its calls are counted in one run of a scenario, and then cut one
//! by one. The oracle checks that whatever a command answered before the cut is still there. The newest
//! generation must be the one before, or the one that was being sealed, with the root of the tree. Older
//! generations are unchanged, `check` finds every byte, the next commit works, and no token admits two
//! agents.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::edits::{remove, small_site, write};
use crate::faults::{self, Failed, Failing};
use crate::mounts::Mount;
use crate::node::Case;
use crate::node::End;
use crate::process::{Outcome, run};
use crate::tracer::{Point, Policy, Traced, Verdict};
use crate::{Origin, OriginStatus, Scene, Seeded};

/// Time without a change after which the origin counts as idle.
const CALM: Duration = Duration::from_millis(900);
const PATIENCE: Duration = Duration::from_secs(40);

/// Work that the origin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// Scan and seal.
    Commit,
    /// Make a token, and join an agent with it.
    Join,
    /// Collect garbage, without a command.
    Collect,
}

/// Results of a scenario's commands.
#[derive(Debug, Clone, Default)]
pub struct Answered {
    /// Generation returned by `commit`.
    pub sealed: Option<u64>,
    /// Token returned by `token`.
    pub token: Option<String>,
    /// Whether `join` reported success.
    pub joined: bool,
    /// Reasons why commands failed.
    pub refusals: Vec<String>,
}

pub struct Hub {
    pub origin: Origin,
    pub mount: Mount,
    /// Bug with which the origin is started.
    pub planted: Option<&'static str>,
    image: PathBuf,
    /// Roots of all generations of the image, by number, and of the current tree, by the number that it will
    /// get.
    roots: BTreeMap<u64, String>,
    elsewhere: PathBuf,
    agents: u32,
}

impl Hub {
    /// Makes a disk with four generations, and a tree that differs from the last.
    #[track_caller]
    pub fn new(scene: &Scene, mount: Mount) -> Self {
        let tree = scene.path("tree");
        small_site(&tree, 30);
        let mut origin = Origin::create_named(scene, "disk/data", &tree);
        origin.start();
        let mut random = Seeded::new(9);
        let mut roots = BTreeMap::new();
        for number in 1..=4_u64 {
            write(&tree, "large.bin", random.bytes(400_000));
            write(&tree, "index.html", format!("generation {number}"));
            assert_eq!(origin.commit(), number);
            roots.insert(number, origin.status().root.expect("a root"));
        }
        origin.stop();
        let image = mount.save("hub.image");
        // Final state of the tree, and its root.
        for number in 0..60 {
            write(&tree, &format!("new/{}/page-{number}.html", number % 5), format!("page {number}"));
        }
        write(&tree, "large.bin", random.bytes(500_000));
        remove(&tree.join("section-11"));
        std::fs::rename(tree.join("section-10"), tree.join("renamed")).expect("rename");
        origin.start();
        assert_eq!(origin.commit(), 5);
        roots.insert(5, origin.status().root.expect("a root"));
        origin.stop();
        let elsewhere = scene.new_directory("agents");
        Self { origin, mount, planted: None, image, roots, elsewhere, agents: 0 }
    }

    fn newest_of_image(&self) -> u64 {
        4
    }

    /// Starts `serve` under the tracer on the restored image.
    #[track_caller]
    pub fn trace(&mut self, errand: Errand, policy: Policy) -> Traced {
        self.mount.restore(&self.image);
        let mut command = self.origin.serve_command();
        if errand == Errand::Collect {
            command.env("SYNCD_HASTY", "1");
        }
        if let Some(planted) = self.planted {
            command.env("SYNCD_PLANTED", planted);
        }
        Traced::start(&command, self.mount.directory(), policy)
    }

    /// Counts the calls of a scenario.
    #[track_caller]
    pub fn count(&mut self, errand: Errand) -> Vec<Point> {
        let mut traced = self.trace(errand, Box::new(|_| Verdict::Pass));
        let (frozen, answered) = self.ask(errand, &mut traced, Duration::ZERO, false);
        assert!(!frozen && traced.ended().is_none(), "{errand:?} ended by itself: {answered:?}");
        traced.kill();
        traced.points()
    }

    /// Runs the commands until they are done or the origin is frozen. Then cuts the power if asked to, and
    /// kills the origin.
    fn ask(&mut self, errand: Errand, traced: &mut Traced, linger: Duration, cut: bool) -> (bool, Answered) {
        self.agents += 1;
        let name = format!("web{}", self.agents);
        let client = Client { data: self.origin.data.clone(), root: self.elsewhere.join(&name), name };
        let gone = Arc::new(AtomicBool::new(false));
        let client_gone = gone.clone();
        let asked = std::thread::spawn(move || client.ask(errand, &client_gone));
        let frozen = traced
            .wait(PATIENCE, |traced| asked.is_finished() && traced.idle().is_some_and(|idle| idle > CALM));
        std::thread::sleep(linger);
        if cut {
            self.mount.cut_power();
        }
        if frozen || cut {
            traced.kill();
        }
        if frozen || cut || traced.ended().is_some() {
            gone.store(true, Ordering::Relaxed);
        }
        (frozen, asked.join().expect("the commands end"))
    }

    /// Runs one case. Returns the call at which it ended. Err: the oracle's complaint.
    pub fn run(&mut self, errand: Errand, case: Case) -> Result<Option<Point>, String> {
        let policy = move |point: &Point| match (point.ordinal == case.ordinal, case.after) {
            (false, _) => Verdict::Pass,
            (true, false) => Verdict::FreezeBefore,
            (true, true) => Verdict::FreezeAfter,
        };
        let cut = case.end == End::PowerCut;
        let mut traced = self.trace(errand, Box::new(policy));
        let (frozen, answered) = self.ask(errand, &mut traced, case.linger, cut);
        traced.kill();
        let point = if frozen { traced.points().into_iter().nth(case.ordinal - 1) } else { None };
        if cut {
            self.mount.power_up();
        }
        let judged = self.judge(errand, &answered);
        if self.origin.is_running() {
            self.origin.kill9();
        }
        judged.map(|()| point.clone()).map_err(|complaint| {
            let at = point.map_or("at its end".to_owned(), |p| format!("at {} {}", p.ordinal, p.label()));
            format!("{errand:?}, {case:?} {at}: {complaint} ({answered:?})")
        })
    }

    /// Runs an errand while a call fails. The errand must be refused with a clear message, or succeed. Once
    /// the fault has ended the next one must succeed, without a restart if the origin still runs. Returns the
    /// number of failed calls. Err: the rule that was broken.
    pub fn fail(&mut self, errand: Errand, failing: Failing) -> Result<usize, String> {
        let (lasting, failed) = (Arc::new(AtomicBool::new(true)), Failed::default());
        let log = Traced::log_of(self.mount.directory());
        let _ = std::fs::remove_file(&log);
        let mut traced = self.trace(errand, faults::policy(failing, lasting.clone(), failed.clone()));
        let (_, mut answered) = self.ask(errand, &mut traced, Duration::ZERO, false);
        lasting.store(false, Ordering::Relaxed);
        let said = answered.refusals.join("\n") + &std::fs::read_to_string(&log).unwrap_or_default();
        let outcome = self.healed(errand, failing, &traced, &mut answered, &said);
        traced.kill();
        let failed = failed.lock().map(|failed| failed.clone()).unwrap_or_default();
        let outcome = outcome.and_then(|()| self.judge(errand, &answered));
        if self.origin.is_running() {
            self.origin.kill9();
        }
        let first = failed.first().map(Point::label).unwrap_or_default();
        outcome.map_err(|complaint| {
            format!("{errand:?}, {failing:?} at {first}: {complaint} ({answered:?}) {said}")
        })?;
        Ok(failed.len())
    }

    fn healed(
        &mut self,
        errand: Errand,
        failing: Failing,
        traced: &Traced,
        answered: &mut Answered,
        said: &str,
    ) -> Result<(), String> {
        let ended = traced.ended();
        let is_done = match errand {
            Errand::Commit => answered.sealed.is_some(),
            Errand::Join => answered.joined,
            Errand::Collect => ended.is_none() && self.is_collected()?,
        };
        if !is_done && !said.contains(failing.fault.words()) {
            return Err("it was not said why".into());
        }
        match ended {
            Some(status) if status.code() == Some(1) => return Ok(()),
            Some(status) => return Err(format!("the origin ended with {status}")),
            None => {}
        }
        match errand {
            Errand::Commit => answered.sealed = Some(self.commit_again()?),
            Errand::Join => self.join_again()?,
            // The next collection is half an hour away, also in debug builds; until then other commands must
            // work.
            Errand::Collect => drop(self.commit_again()?),
        }
        Ok(())
    }

    /// Whether all generations that a hasty origin does not keep are gone.
    fn is_collected(&self) -> Result<bool, String> {
        let history = self.origin.cli("history", &["--json"]);
        if history.code != Some(0) {
            return Err(format!("history: {history:?}"));
        }
        Ok(self.roots.get(&1).is_none_or(|root| !history.stdout.contains(root.as_str())))
    }

    fn commit_again(&self) -> Result<u64, String> {
        let again = self.origin.cli("commit", &[]);
        match again.stdout.trim().parse::<u64>() {
            Ok(number) if number == self.newest_of_image() + 1 => Ok(number),
            _ => Err(format!("the commit after the fault: {again:?}")),
        }
    }

    fn join_again(&mut self) -> Result<(), String> {
        self.agents += 1;
        let name = format!("after{}", self.agents);
        let token = self.origin.cli("token", &[]);
        let address = self.origin.status().grpc_address.ok_or("the origin does not listen")?;
        let joined = join(&address, token.stdout.trim(), &name, &self.elsewhere.join(&name));
        if joined.code == Some(0) {
            Ok(())
        } else {
            Err(format!("the join after the fault: {token:?}, {joined:?}"))
        }
    }

    /// Runs the oracle. The origin must be stopped.
    pub fn judge(&mut self, errand: Errand, answered: &Answered) -> Result<(), String> {
        self.origin.start();
        let status = self.origin.status();
        let before = self.newest_of_image();
        let newest = status.generation.ok_or("no generation is left")?;
        if newest != before && !(errand != Errand::Join && newest == before + 1) {
            return Err(format!("generation {newest} follows {before}"));
        }
        if answered.sealed.is_some_and(|sealed| sealed > newest) {
            return Err(format!("commit answered {:?}, there is {newest}", answered.sealed));
        }
        self.has_root(&status, newest)?;
        if errand == Errand::Join {
            self.judge_token(answered)?;
        }
        let next = self.origin.cli("commit", &[]);
        let number = next.stdout.trim().parse::<u64>().map_err(|_| format!("the next commit: {next:?}"))?;
        if number != before + 1 {
            return Err(format!("the next commit is {number}"));
        }
        self.has_root(&self.origin.status(), number)?;
        let history = self.origin.cli("history", &["--json"]).stdout;
        for number in self.retained(errand) {
            let root = self.roots.get(&number).expect("a known generation");
            if !history.contains(root.as_str()) {
                return Err(format!("generation {number} is lost: {history}"));
            }
        }
        self.origin.kill9();
        let check = self.origin.cli("check", &[]);
        if check.code != Some(0) {
            return Err(format!("check: {check:?}"));
        }
        Ok(())
    }

    fn retained(&self, errand: Errand) -> std::ops::RangeInclusive<u64> {
        if errand == Errand::Collect { 3..=5 } else { 1..=5 }
    }

    fn has_root(&self, status: &OriginStatus, number: u64) -> Result<(), String> {
        let expected = self.roots.get(&number);
        if status.root.as_ref() == expected {
            Ok(())
        } else {
            Err(format!("generation {number} has another root"))
        }
    }

    fn judge_token(&mut self, answered: &Answered) -> Result<(), String> {
        let Some(token) = &answered.token else { return Ok(()) };
        self.agents += 1;
        let name = format!("again{}", self.agents);
        let root = self.elsewhere.join(&name);
        let again = join(self.origin.address(), token, &name, &root);
        match (answered.joined, again.code) {
            (true, Some(0)) => Err("the token of an agent that joined let in another".into()),
            (_, Some(0 | 1)) => Ok(()),
            _ => Err(format!("{again:?}")),
        }
    }
}

fn join(address: &str, token: &str, name: &str, root: &Path) -> Outcome {
    let mut command = Command::new(crate::binary("syncd-agent"));
    command.args(["join", address, "--token", token, "--name", name, "--root"]).arg(root);
    crate::origin::clean_environment(&mut command);
    run(&mut command)
}

/// Sends requests to the origin from another thread.
struct Client {
    data: PathBuf,
    root: PathBuf,
    name: String,
}

impl Client {
    fn cli(&self, subcommand: &str, args: &[&str]) -> Outcome {
        let mut command = Command::new(crate::binary("syncd-origin"));
        command.arg(subcommand).arg("--data").arg(&self.data).args(args);
        crate::origin::clean_environment(&mut command);
        run(&mut command)
    }

    fn ask(&self, errand: Errand, gone: &AtomicBool) -> Answered {
        let mut answered = Answered::default();
        // Earlier a command would open DATA itself.
        let started = Instant::now();
        let status: Option<OriginStatus> = loop {
            if started.elapsed() > PATIENCE || gone.load(Ordering::Relaxed) {
                break None;
            }
            if UnixStream::connect(self.data.join("admin.sock")).is_ok() {
                let outcome = self.cli("status", &["--json"]);
                let status = serde_json::from_str::<OriginStatus>(&outcome.stdout).ok();
                // A held origin gives the reason in its answers.
                let answers = |status: &OriginStatus| ["ready", "held"].contains(&status.state.as_str());
                if outcome.code != Some(0) {
                    answered.refusals.push(outcome.stderr);
                    break None;
                }
                if status.as_ref().is_some_and(answers) {
                    break status;
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let Some(status) = status else { return answered };
        let mut refused = |outcome: &Outcome| {
            if outcome.code != Some(0) {
                answered.refusals.push(outcome.stderr.clone());
            }
        };
        match errand {
            Errand::Commit => {
                let outcome = self.cli("commit", &[]);
                refused(&outcome);
                answered.sealed = outcome.stdout.trim().parse().ok();
            }
            Errand::Join => {
                let outcome = self.cli("token", &[]);
                refused(&outcome);
                answered.token = (outcome.code == Some(0)).then(|| outcome.stdout.trim().to_owned());
                if let (Some(token), Some(address)) = (&answered.token, &status.grpc_address) {
                    let outcome = join(address, token, &self.name, &self.root);
                    refused(&outcome);
                    answered.joined = outcome.code == Some(0);
                }
            }
            Errand::Collect => {}
        }
        answered
    }
}
