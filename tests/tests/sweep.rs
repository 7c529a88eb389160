//! The crash sweep: power cuts and kills at every call by which the real agent changes its disk, on ext4 and
//! xfs.
//!
//! One run of each scenario counts the calls of all threads in order. Each call is then one case: the same
//! scenario on the same image, up to right before that call, and for syncs and renames also right after it. A
//! sample of the cases runs by default, chosen by kind of call and then at random. `SYNCD_SEED=N` repeats the
//! sample, `SYNCD_SWEEP=N` runs N cases on each file system, and `SYNCD_SWEEP=full` runs all of them:
//!
//! ```text
//! SYNCD_SWEEP=full ./tests/run sweep
//! ```
//!
//! A long run uses several lanes, each with its own origin, agent and disk, because a case mostly waits. No
//! case starts while the file named by `SYNCD_PAUSE` exists. `SYNCD_CASES='large update@661@before, recovery
//! before the switch@rename@after'` runs only these cases, several times each, selected by number or by part
//! of the call's label.

#[path = "sweep/uploads.rs"]
mod uploads;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use syncd_tests::edits::{Edits, write};
use syncd_tests::hub::{Errand, Hub};
use syncd_tests::mounts::Mount;
use syncd_tests::node::returns::is_switch;
use syncd_tests::node::{Case, End, Node, RECOVERY_LIMIT, Rights, Scenario, Shown};
use syncd_tests::process::tool;
use syncd_tests::tracer::Point;
use syncd_tests::{Scene, Seeded, assert_none};

/// Number of cases on each file system, unless `SYNCD_SWEEP` is set.
const SHARE: usize = 48;
/// Number of cases of an agent without privileges, likewise.
const USER_SHARE: usize = 20;
/// One case in this number is a kill without a power cut.
const KILL_SHARE: u64 = 8;
/// Number of cases within which a planted bug must be found.
const PLANTED_SHARE: usize = 40;
/// Number of kills while a tree is changed that was live before.
const PREVIOUS_SHARE: usize = 10;
/// Time for other threads to communicate, in some of the cases.
const LINGER: Duration = Duration::from_millis(40);

/// A run with more cases uses several lanes.
const LANE_CASES: usize = 400;
/// Number of lanes of a long run on one file system.
const LANES: usize = 4;
/// Number of times that each case of `SYNCD_CASES` runs.
const REPEATS: usize = 10;

/// Number of cases of each of the origin's scenarios, unless `SYNCD_SWEEP` is set.
const ORIGIN_SHARE: usize = 10;

/// Number of cases from the switch to a generation that fails until the return, unless `SYNCD_SWEEP` is set.
const RETURN_SHARE: usize = 12;

/// Number of cuts without restoring the image.
const CHAIN: usize = 16;
/// Approximate number of calls of an update and the background work after it.
const CHAIN_CALLS: u64 = 400;

/// Number of cases: `usual`, or the value of `SYNCD_SWEEP`; `None`: all.
fn share(usual: usize) -> Option<usize> {
    match std::env::var("SYNCD_SWEEP") {
        Ok(text) if text == "full" => None,
        Ok(text) => Some(text.parse().expect("SYNCD_SWEEP is a number or full")),
        Err(_) => Some(usual),
    }
}

/// One of several lanes that share the calls.
#[derive(Debug, Clone, Copy)]
struct Lane {
    number: usize,
    of: usize,
}

impl Lane {
    /// The only lane.
    const ALL: Self = Self { number: 0, of: 1 };
}

/// Cases of a scenario that `SYNCD_CASES` selects; `None`: it is not set.
fn asked_for(scenario: &str, points: &[Point]) -> Option<Vec<Case>> {
    let list = std::env::var("SYNCD_CASES").ok()?;
    let mut cases = Vec::new();
    for text in list.split(',') {
        let parts: Vec<&str> = text.trim().split('@').collect();
        let [name, which, moment] = parts[..] else {
            panic!("SYNCD_CASES is SCENARIO@CALL@before|after, ...")
        };
        let is_meant = |point: &&Point| match which.parse::<usize>() {
            Ok(number) => point.ordinal == number,
            Err(_) => point.label().contains(which),
        };
        for point in points.iter().filter(|_| name == scenario).filter(is_meant) {
            for turn in 0..REPEATS {
                let linger = if turn % 2 == 0 { Duration::ZERO } else { LINGER };
                let after = moment == "after";
                cases.push(Case { ordinal: point.ordinal, after, end: End::PowerCut, linger });
            }
        }
    }
    Some(cases)
}

/// Waits while other work needs the machine.
fn make_way() {
    let Some(sign) = std::env::var_os("SYNCD_PAUSE") else { return };
    while std::path::Path::new(&sign).exists() {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// All cases of a scenario, by kind of call.
fn cases(points: &[Point], lane: Lane, random: &mut Seeded) -> BTreeMap<String, Vec<Case>> {
    let mut kinds = BTreeMap::<String, Vec<Case>>::new();
    for point in points.iter().filter(|point| point.ordinal % lane.of == lane.number) {
        let mut add = |after| {
            let end = if random.one_in(KILL_SHARE) { End::Kill } else { End::PowerCut };
            let linger = if random.one_in(3) { LINGER } else { Duration::ZERO };
            let case = Case { ordinal: point.ordinal, after, end, linger };
            kinds.entry(point.label()).or_default().push(case);
        };
        add(false);
        if point.call.contains("sync") || point.call.starts_with("rename") {
            add(true);
        }
    }
    kinds
}

/// Chooses `most` of the lane's cases: a kind of call at random, and then one of its cases.
fn choose(points: &[Point], most: Option<usize>, lane: Lane, random: &mut Seeded) -> Vec<Case> {
    let mut kinds = cases(points, lane, random);
    let mut chosen = Vec::new();
    while most.is_none_or(|most| chosen.len() < most) && !kinds.is_empty() {
        let names: Vec<String> = kinds.keys().cloned().collect();
        let Some(name) = random.pick(&names) else { break };
        let Some(cases) = kinds.get_mut(name) else { break };
        chosen.push(cases.swap_remove(random.below(cases.len() as u64) as usize));
        if cases.is_empty() {
            kinds.remove(name);
        }
    }
    chosen
}

/// A scenario's part of a sweep.
struct Part {
    scenario: Scenario,
    points: Vec<Point>,
    cases: Vec<Case>,
}

/// Counts each scenario and chooses the lane's cases.
fn parts(
    node: &mut Node,
    scenarios: Vec<Scenario>,
    share: Option<usize>,
    lane: Lane,
    random: &mut Seeded,
) -> Vec<Part> {
    let each = share.map(|share| share.div_ceil(scenarios.len() * lane.of));
    let mut parts = Vec::new();
    for scenario in scenarios {
        let points = node.count(&scenario);
        let chosen = asked_for(scenario.name, &points).unwrap_or_else(|| choose(&points, each, lane, random));
        parts.push(Part { scenario, points, cases: chosen });
    }
    parts
}

/// Scenarios that start where a power cut ended another one: recovery at the start.
fn recoveries(node: &mut Node, scenarios: &[Scenario]) -> Vec<Scenario> {
    let mut found = Vec::new();
    // A link is switched by the first call, a directory by the second.
    let switch = ["renameat web#/live.next to web#/live", "renameat2 web#/slots/# to web#/live"];
    for (name, from, calls) in [
        ("recovery before the switch", "large update", &switch[..]),
        ("recovery in staging", "large update", &["linkat"]),
        ("recovery in the spares", "small update", &["syncfs"]),
    ] {
        let scenario = scenarios.iter().find(|s| s.name == from).expect("a scenario").clone();
        let points = node.count(&scenario);
        let is_meant = |point: &&Point| calls.iter().any(|call| point.label().starts_with(call));
        let point = points.iter().find(is_meant).unwrap_or_else(|| panic!("{from} has none of {calls:?}"));
        let image = node.crashed(&scenario, point.ordinal, &format!("{}.image", name.replace(' ', "-")));
        found.push(Scenario { name, image: Some(image), ..scenario });
    }
    found
}

/// Results of a sweep.
#[derive(Default)]
struct Tally {
    cases: usize,
    cuts: usize,
    fired: usize,
    covered: BTreeSet<String>,
    recoveries: Vec<Duration>,
    processor: Vec<Duration>,
    complaints: Vec<String>,
}

impl Tally {
    fn take(&mut self, case: &Case, outcome: Result<Shown, String>) {
        self.cases += 1;
        self.cuts += usize::from(case.end == End::PowerCut);
        match outcome {
            Ok(shown) => {
                self.fired += usize::from(shown.point.is_some());
                self.covered.extend(shown.point.as_ref().map(Point::label));
                self.recoveries.push(shown.recovery);
                self.processor.push(shown.processor);
            }
            Err(complaint) => {
                println!("COMPLAINT {complaint}");
                self.complaints.push(complaint);
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.cases += other.cases;
        self.cuts += other.cuts;
        self.fired += other.fired;
        self.covered.extend(other.covered);
        self.recoveries.extend(other.recoveries);
        self.processor.extend(other.processor);
        self.complaints.extend(other.complaints);
    }
}

/// Runs one lane of a sweep.
fn sweep_lane(sweep: Sweep, lane: Lane, seed: u64) -> Tally {
    let mut random = Seeded::new(seed);
    let started = Instant::now();
    let Sweep { file_system, rights, swap } = sweep;
    let scene = Scene::in_memory(&format!("sweep-{file_system:?}-{rights:?}-{swap}-{}", lane.number));
    let mount = file_system.mount(&scene);
    let (mut node, mut scenarios) = Node::with_options(&scene, mount, rights, &["--swap", swap]);
    scenarios.extend(recoveries(&mut node, &scenarios));
    let parts = parts(&mut node, scenarios, sweep.share(), lane, &mut random);
    println!("prepared and counted in {:.1} s", started.elapsed().as_secs_f64());
    let mut tallies: Vec<Tally> = parts.iter().map(|_| Tally::default()).collect();
    let mut order: Vec<(usize, Case)> = parts
        .iter()
        .enumerate()
        .flat_map(|(at, part)| part.cases.iter().map(move |case| (at, *case)))
        .collect();
    // In random order, so that a long run that is stopped early has covered everything.
    random.shuffle(&mut order);
    for (done, (at, case)) in order.iter().enumerate() {
        make_way();
        tallies[*at].take(case, node.run(&parts[*at].scenario, *case));
        if (done + 1).is_multiple_of(100) {
            let cuts: usize = tallies.iter().map(|tally| tally.cuts).sum();
            let each = started.elapsed().as_secs_f64() / (done + 1) as f64;
            println!(
                "{sweep}, lane {}: {} of {} cases so far ({cuts} cuts), {each:.2} s each",
                lane.number,
                done + 1,
                order.len()
            );
        }
    }
    let mut all = Tally::default();
    for (Part { scenario, points, .. }, tally) in parts.iter().zip(tallies) {
        let kinds: BTreeSet<String> = points.iter().map(Point::label).collect();
        println!(
            "{sweep}, {}: {} points of {} kinds counted; {} cases ({} cuts), {} fired, {} kinds covered",
            scenario.name,
            points.len(),
            kinds.len(),
            tally.cases,
            tally.cuts,
            tally.fired,
            tally.covered.len()
        );
        all.add(tally);
    }
    all
}

#[derive(Debug, Clone, Copy)]
enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    fn mount(self, scene: &Scene) -> Mount {
        match self {
            Self::Ext4 => Mount::ext4(&scene.path("disk"), 64),
            Self::Xfs => Mount::xfs(&scene.path("disk"), 320),
        }
    }
}

/// Parameters of a sweep.
#[derive(Debug, Clone, Copy)]
struct Sweep {
    file_system: FileSystem,
    rights: Rights,
    /// Option `--swap` of the agent.
    swap: &'static str,
}

impl Sweep {
    fn share(self) -> Option<usize> {
        share(if self.rights == Rights::User { USER_SHARE } else { SHARE })
    }
}

impl std::fmt::Display for Sweep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} with the rights of {:?}, --swap {}", self.file_system, self.rights, self.swap)
    }
}

fn run(sweep: Sweep) {
    let mut random = Seeded::announced(&format!("power cuts on {sweep}"));
    let started = Instant::now();
    let long =
        sweep.share().is_none_or(|share| share > LANE_CASES) && std::env::var_os("SYNCD_CASES").is_none();
    let of = if long { LANES } else { 1 };
    let mut all = Tally::default();
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..of)
            .map(|number| {
                let seed = random.next_u64();
                scope.spawn(move || sweep_lane(sweep, Lane { number, of }, seed))
            })
            .collect();
        for lane in lanes {
            all.add(lane.join().expect("a lane of the sweep ended by itself"));
        }
    });
    all.recoveries.sort();
    all.processor.sort();
    let at = |part: usize| all.recoveries.get(all.recoveries.len() * part / 100).copied().unwrap_or_default();
    let processor = all.processor.get(all.processor.len() * 95 / 100).copied().unwrap_or_default();
    println!(
        "power cuts on {sweep}: {} cases, {} power cuts, {} fired, in {:.0} s; recovery median {:?}, 95 % {:?}, longest {:?}, 95 % took {processor:?} of processor",
        all.cases,
        all.cuts,
        all.fired,
        started.elapsed().as_secs_f64(),
        at(50),
        at(95),
        all.recoveries.last()
    );
    assert_none(&all.complaints);
    assert!(all.fired * 10 >= all.cases * 9, "the scenarios are not repeatable: {} fired", all.fired);
    // Recovery walks no tree. Elapsed time would depend on the load of the machine.
    assert!(processor < RECOVERY_LIMIT, "recovery took {processor:?} of processor");
}

#[test]
fn no_cut_on_ext4_leaves_a_mix_or_loses_what_was_reported() {
    run(Sweep { file_system: FileSystem::Ext4, rights: Rights::Root, swap: "link" });
}

#[test]
fn no_cut_on_xfs_leaves_a_mix_or_loses_what_was_reported() {
    run(Sweep { file_system: FileSystem::Xfs, rights: Rights::Root, swap: "link" });
}

#[test]
fn no_cut_stops_an_agent_without_privileges_or_costs_what_it_reported() {
    run(Sweep { file_system: FileSystem::Ext4, rights: Rights::User, swap: "link" });
}

#[test]
fn no_cut_of_an_exchange_on_ext4_leaves_a_mix_or_loses_what_was_reported() {
    run(Sweep { file_system: FileSystem::Ext4, rights: Rights::User, swap: "exchange" });
}

#[test]
fn no_cut_of_an_exchange_on_xfs_leaves_a_mix_or_loses_what_was_reported() {
    run(Sweep { file_system: FileSystem::Xfs, rights: Rights::Root, swap: "exchange" });
}

#[test]
fn an_exchange_that_the_record_does_not_announce_is_caught() {
    let mut random = Seeded::announced("exchanges");
    let scene = Scene::in_memory("sweep-exchange");
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let (mut node, mut scenarios) = Node::with_options(&scene, mount, Rights::Root, &["--swap", "exchange"]);
    scenarios.retain(|scenario| scenario.name == "large update");
    for planted in [None, Some("no-coming")] {
        node.planted = planted;
        let parts = parts(&mut node, scenarios.clone(), None, Lane::ALL, &mut random);
        let Part { scenario, points, cases } = &parts[0];
        let is_switch = |point: &&Point| point.call == "renameat2" && point.path.ends_with("web1/live");
        let exchange = points.iter().find(is_switch).expect("a switch").ordinal;
        let near = cases.iter().filter(|case| (exchange - 2..=exchange).contains(&case.ordinal));
        let complaint = near.map(|case| node.run(scenario, *case)).find_map(Result::err);
        assert_eq!(complaint.is_some(), planted.is_some(), "{planted:?}: {complaint:?}");
    }
}

#[test]
fn cuts_one_after_another_leave_one_complete_generation_live() {
    let what = "cuts one after another";
    let mut random = Seeded::announced(what);
    let scene = Scene::in_memory("sweep-chain");
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let (mut node, scenarios) = Node::new(&scene, mount, Rights::User);
    let mut scenario = scenarios.into_iter().find(|s| s.name == "small update").expect("a scenario");
    let mut edits = Edits::new(&node.origin.tree, random.next_u64()).closing();
    let rounds = share(CHAIN).map_or(CHAIN * 10, |share| share.min(CHAIN));
    let mut fired = 0;
    for round in 0..rounds {
        make_way();
        let case = Case {
            ordinal: 1 + random.below(CHAIN_CALLS) as usize,
            after: random.one_in(2),
            end: if random.one_in(KILL_SHARE) { End::Kill } else { End::PowerCut },
            linger: if random.one_in(3) { LINGER } else { Duration::ZERO },
        };
        let shown = node.run(&scenario, case).unwrap_or_else(|complaint| panic!("cut {round}: {complaint}"));
        fired += usize::from(shown.point.is_some());
        // Continues from the resulting state with another change.
        scenario = Scenario { name: "chain", image: None, live: node.newest(), ..scenario };
        edits.round(30);
        node.commit();
    }
    println!("{what}: {rounds} cuts, {fired} before the update and its background work were done");
}

#[test]
fn planted_bugs_are_caught() {
    let mut random = Seeded::announced("planted bugs");
    let scene = Scene::in_memory("sweep-planted");
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let (mut node, mut scenarios) = Node::new(&scene, mount, Rights::Root);
    scenarios.retain(|scenario| scenario.name == "large update");
    for bug in ["no-syncfs", "swap-first", "no-root-sync"] {
        node.planted = Some(bug);
        let parts = parts(&mut node, scenarios.clone(), None, Lane::ALL, &mut random);
        let mut caught = None;
        for Part { scenario, points, cases } in &parts {
            // The relevant calls, from the switch on, in random order.
            let switch = points.iter().find(|p| p.call == "renameat" && p.path.contains("live.next"));
            let switch = switch.expect("a switch").ordinal;
            let near =
                cases.iter().filter(|case| (switch - 2..switch + PLANTED_SHARE).contains(&case.ordinal));
            for (tried, case) in near.take(PLANTED_SHARE).enumerate() {
                if let Err(complaint) = node.run(scenario, *case) {
                    caught = Some((tried + 1, complaint));
                    break;
                }
            }
        }
        node.planted = None;
        let (tried, complaint) = caught.unwrap_or_else(|| panic!("the planted bug {bug} was not caught"));
        println!("{bug}: caught by case {tried}: {complaint}");
    }
}

#[test]
fn a_cut_in_a_trial_or_a_return_neither_keeps_nor_readmits_what_failed() {
    let mut random = Seeded::announced("returns");
    let scene = Scene::in_memory("sweep-returns");
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let (mut node, scenario) = Node::with_check(&scene, mount, Rights::User);
    let points = node.count(&scenario);
    let switches: Vec<usize> =
        points.iter().filter(|point| is_switch(point)).map(|point| point.ordinal).collect();
    let [tried, returned] = switches[..] else { panic!("a switch and a return: {switches:?} of {points:?}") };
    // From the last steps of the switch to the end of the return, and a few of the work around it.
    let (near, far): (Vec<_>, Vec<_>) = points
        .into_iter()
        .partition(|point| (tried.saturating_sub(4)..returned + 4).contains(&point.ordinal));
    let share = share(RETURN_SHARE);
    let mut cases = choose(&near, share, Lane::ALL, &mut random);
    cases.extend(choose(&far, share.map(|share| share / 4), Lane::ALL, &mut random));
    let (mut fired, mut complaints) = (0, Vec::new());
    for case in &cases {
        make_way();
        match node.run_return(&scenario, *case) {
            Ok(shown) => fired += usize::from(shown.point.is_some()),
            Err(complaint) => complaints.push(complaint),
        }
    }
    println!("returns: {} calls from switch to return, {} cases, {fired} fired", near.len(), cases.len());
    assert_none(&complaints);
    assert!(fired * 10 >= cases.len() * 9, "the scenario is not repeatable: {fired} of {}", cases.len());
    node.planted = Some("refused-in-record");
    let at_end = Case { ordinal: usize::MAX, after: false, end: End::Kill, linger: Duration::ZERO };
    let complaint = node.run_return(&scenario, at_end).expect_err("the planted bug");
    println!("refused-in-record: {complaint}");
}

/// Cuts an update right before its switch, reverts one of its changes and builds another update. Returns the
/// oracle's result for what is then live.
fn live_after_a_change_was_taken_back(node: &mut Node, scenario: &Scenario) -> Result<u64, String> {
    let points = node.count(scenario);
    let switch = points.iter().find(|p| p.call == "symlinkat" && p.path.contains("live.next"));
    node.crashed(scenario, switch.expect("a switch").ordinal, "half-patched.image");
    let page = |directory: &std::path::Path| directory.join("index.html").into_os_string();
    let tree = node.origin.tree.clone();
    tool("cp", ["-p".into(), page(&node.agent.live()), page(&tree)]);
    write(&tree, "another.html", "another");
    let number = node.commit();
    node.agent.start();
    node.poll("the next update", |node| match node.complete(0) {
        Ok(live) if live == number => Ok(live),
        other => Err(format!("{other:?}")),
    })
}

#[test]
fn a_tree_that_a_cut_left_half_patched_is_not_taken_for_a_spare() {
    let scene = Scene::in_memory("sweep-row");
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let (mut node, mut scenarios) = Node::new(&scene, mount, Rights::Root);
    scenarios.retain(|scenario| scenario.name == "small update");
    live_after_a_change_was_taken_back(&mut node, &scenarios[0]).expect("nothing is mixed");
    node.agent.kill9();
    node.planted = Some("row-late");
    node.patience = Duration::from_secs(10);
    let newest = node.newest();
    node.settle_at(newest);
    let again = Scenario { image: Some(node.save("again.image")), live: newest, ..scenarios[0].clone() };
    write(&node.origin.tree, "index.html", "once more");
    node.commit();
    let complaint = live_after_a_change_was_taken_back(&mut node, &again).expect_err("the planted bug");
    println!("row-late: {complaint}");
}

#[test]
fn previous_never_names_a_tree_that_is_changed() {
    let mut random = Seeded::announced("previous");
    let scene = Scene::in_memory("sweep-previous");
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let (mut node, mut scenarios) = Node::new(&scene, mount, Rights::Root);
    scenarios.retain(|scenario| scenario.name == "small update");
    let mut scenario = scenarios.remove(0);
    scenario.options.extend(["--keep".into(), "1".into()]);
    for planted in [None, Some("previous-stays")] {
        node.planted = planted;
        let points = node.count(&scenario);
        let in_a_tree = |p: &&Point| p.thread == "background" && p.path.contains("slots/");
        let mut there: Vec<usize> = points.iter().filter(in_a_tree).map(|point| point.ordinal).collect();
        random.shuffle(&mut there);
        // Killed, because after a power cut most changes would be reverted.
        let case = |ordinal| Case { ordinal, after: true, end: End::Kill, linger: Duration::ZERO };
        let chosen = there.into_iter().take(PREVIOUS_SHARE).map(case);
        let complaint = chosen.filter_map(|case| node.run(&scenario, case).err()).next();
        assert_eq!(complaint.is_some(), planted.is_some(), "{planted:?}: {complaint:?}");
        println!("{planted:?}: {complaint:?}");
    }
}

#[test]
fn no_cut_at_the_origin_loses_what_was_answered() {
    let what = "power cuts at the origin";
    let mut random = Seeded::announced(what);
    let scene = Scene::in_memory("sweep-origin");
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let started = Instant::now();
    let mut hub = Hub::new(&scene, mount);
    let mut complaints = Vec::new();
    for errand in [Errand::Commit, Errand::Join, Errand::Collect] {
        let points = hub.count(errand);
        let chosen = choose(&points, share(ORIGIN_SHARE), Lane::ALL, &mut random);
        let (mut fired, mut cuts) = (0, 0);
        for case in &chosen {
            make_way();
            cuts += usize::from(case.end == End::PowerCut);
            match hub.run(errand, *case) {
                Ok(point) => fired += usize::from(point.is_some()),
                Err(complaint) => {
                    println!("COMPLAINT {complaint}");
                    complaints.push(complaint);
                }
            }
        }
        let kinds: BTreeSet<String> = points.iter().map(Point::label).collect();
        println!(
            "{errand:?}: {} points of {} kinds counted; {} cases ({cuts} cuts), {fired} fired",
            points.len(),
            kinds.len(),
            chosen.len()
        );
    }
    println!("{what}: {:.0} s", started.elapsed().as_secs_f64());
    // Dropped before the panic, whose message would otherwise be hidden by the logs.
    drop(hub);
    assert_none(&complaints);
}

#[test]
fn a_commit_that_is_answered_early_is_caught() {
    let mut random = Seeded::announced("planted bug of the origin");
    let scene = Scene::in_memory("sweep-origin-planted");
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let mut hub = Hub::new(&scene, mount);
    hub.planted = Some("answer-early");
    let points = hub.count(Errand::Commit);
    // The last calls of a commit, and the moment after it.
    let late = &points[points.len().saturating_sub(PLANTED_SHARE)..];
    let mut cases =
        vec![Case { ordinal: usize::MAX, after: false, end: End::PowerCut, linger: Duration::ZERO }];
    cases.extend(choose(late, Some(PLANTED_SHARE / 2), Lane::ALL, &mut random));
    let caught = cases
        .iter()
        .enumerate()
        .find_map(|(tried, case)| Some((tried + 1, hub.run(Errand::Commit, *case).err()?)));
    let (tried, complaint) = caught.expect("a commit that is answered early was not caught");
    println!("answer-early: caught by case {tried}: {complaint}");
}
