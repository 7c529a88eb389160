//! The cost rule: system calls show work in proportion to what changed.

use std::ffi::OsString;
use std::fs;

use syncd_tests::edits::{small_site, write};
use syncd_tests::oracle::assert_same;
use syncd_tests::strace::{Strace, below, lines};
use syncd_tests::{Agent, Origin, Scene, require_program, wait};

/// Calls that read files or name them.
const FILES: &str = "%file,getdents64,statx,read,pread64";

fn site(name: &str, files: usize) -> (Scene, Origin) {
    let scene = Scene::new(name);
    let tree = scene.path("tree");
    small_site(&tree, files);
    let origin = Origin::started(&scene, &tree);
    (scene, origin)
}

#[test]
fn commit_of_nothing_walks_nothing() {
    let (scene, mut origin) = site("commit-nothing", 400);
    origin.commit();
    // The watch may still report files read for the first generation.
    origin.commit();
    let pid = origin.daemon().pid();
    let trace = Strace::attach(&scene, pid, "commit-nothing", FILES);
    assert_eq!(origin.commit(), 1);
    let tree = origin.tree.clone();
    let touched = below(trace.finish(), &tree);
    assert!(touched.is_empty(), "{} calls below the tree, like {:?}", touched.len(), touched.first());
}

#[test]
fn one_changed_file_touches_its_directory_only() {
    let (scene, mut origin) = site("one-file", 600);
    let mut agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    origin.commit_live();
    for round in 0..3 {
        write(&origin.tree, "index.html", format!("warm {round}"));
        origin.commit_live();
        wait::until("a spare", || agent.try_status().filter(|status| status.spares >= 1));
    }
    let pid = origin.daemon().pid();
    let at_origin = Strace::attach(&scene, pid, "one-file-origin", FILES);
    let live = agent.live();
    write(&origin.tree, "section-1/page-1.html", "one changed file");
    let number = origin.commit_live();
    let touched = below(at_origin.finish(), &origin.tree);
    let elsewhere: Vec<&String> = touched
        .iter()
        .filter(|line| (0..12).filter(|n| *n != 1).any(|n| line.contains(&format!("section-{n}/"))))
        .collect();
    assert!(elsewhere.is_empty(), "{} calls elsewhere, like {:?}", elsewhere.len(), elsewhere.first());
    assert!(agent.daemon().ended().is_none());
    assert_eq!(agent.live_generation(), Some(number));
    assert_same(&origin.tree, &live);
}

#[test]
fn one_changed_file_costs_the_same_in_a_crowded_directory() {
    let scene = Scene::new("crowded");
    let tree = scene.path("tree");
    small_site(&tree, 30);
    for (directory, files) in [("few", 5), ("crowd", 5000)] {
        (0..files).for_each(|number| write(&tree, &format!("{directory}/{number}.html"), "one of them"));
    }
    let mut origin = Origin::started(&scene, &tree);
    let calls = ["few", "crowd"].map(|directory| {
        origin.commit();
        // Files that were too recent are read again by then, not while calls are counted.
        std::thread::sleep(std::time::Duration::from_millis(2500));
        origin.commit();
        let trace = Strace::attach(&scene, origin.daemon().pid(), directory, FILES);
        write(&origin.tree, &format!("{directory}/3.html"), "changed");
        origin.commit();
        let calls = below(trace.finish(), &origin.tree);
        assert!(!calls.iter().any(|call| call.contains("getdents64")), "{directory}: {calls:#?}");
        calls.len()
    });
    assert!((1..40).contains(&calls[0]) && calls[0].abs_diff(calls[1]) <= 2, "{calls:?}");
}

#[test]
fn a_restart_on_an_unchanged_tree_reads_no_file_content() {
    let (scene, mut origin) = site("restart", 300);
    origin.commit();
    // Files that changed right before the last scan are read again, because their times cannot be trusted.
    // The clock has to advance before they are read once more.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    origin.stop();
    origin.start();
    origin.commit();
    origin.stop();
    let trace = scene.path("restart.trace");
    let strace = require_program("strace", "strace");
    let words = ["-D", "-f", "-s", "200", "-e", "trace=open,openat,openat2", "-o"].map(OsString::from);
    let prefix: Vec<OsString> =
        [strace.into_os_string()].into_iter().chain(words).chain([trace.clone().into()]).collect();
    origin.under(&prefix);
    origin.start();
    assert_eq!(origin.commit(), 1);
    let tree = origin.tree.clone();
    origin.stop();
    let opened: Vec<String> = below(lines(&trace), &tree)
        .into_iter()
        .filter(|line| !line.contains("O_DIRECTORY") && line.contains(".html"))
        .collect();
    assert!(opened.is_empty(), "{} files opened, like {:?}", opened.len(), opened.first());
}

/// Calls with which an agent waits for the disk until one changed file of a settled replica is live.
fn syncs_of_one_changed_file(name: &str) -> Vec<String> {
    let (scene, origin) = site(name, 600);
    let mut agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    for round in 0..4 {
        write(&origin.tree, "section-1/page-1.html", format!("warm {round}"));
        agent.wait_live(origin.commit_live());
    }
    wait::until("both spares", || agent.try_status().filter(|status| status.spares >= 2));
    let trace = Strace::attach(&scene, agent.daemon().pid(), name, "fsync,fdatasync,syncfs,renameat");
    write(&origin.tree, "section-1/page-1.html", "one changed file");
    origin.commit_live();
    let root = agent.root.display().to_string();
    let calls: Vec<String> = trace.finish().into_iter().filter(|call| call.contains(&root)).collect();
    let switch = calls.iter().position(|call| call.contains("\"live.next\"")).expect("a switch");
    let end = calls[switch..].iter().position(|call| call.contains("sync(")).expect("a sync") + switch;
    let begin =
        calls[..switch].iter().rposition(|call| call.contains("page-1.html")).expect("the file's sync");
    // A thread writes the copy of the signed record meanwhile.
    let own = calls[begin..=end].iter().filter(|call| call.contains("sync(") && !call.contains("/signed"));
    own.map(ToString::to_string).collect()
}

#[test]
fn one_changed_file_waits_for_the_disk_a_few_times() {
    let syncs = syncs_of_one_changed_file("syncs");
    let listed = syncs.join("\n");
    println!("{} syncs:\n{listed}", syncs.len());
    // The file, its directory, the root of the tree, the record, and ROOT.
    assert_eq!(syncs.len(), 5, "{listed}");
    assert!(!listed.contains("syncfs"), "{listed}");
}

/// Bytes that a process passed to the kernel so far, and its calls that did.
fn written(pid: u32) -> [u64; 2] {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).expect("read what a process wrote");
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a counter");
        line.trim().parse::<u64>().expect("a number")
    };
    [value("wchar:"), value("syscw:")]
}

/// Names whose cost is measured.
const NAMES: u64 = 8;

/// Bytes written and calls of origin and agent for one name added to a directory of so many, with what the
/// background does meanwhile.
fn cost_of_a_name(files: usize) -> [u64; 2] {
    let scene = Scene::new(&format!("wide-{files}"));
    let tree = scene.path("tree");
    small_site(&tree, 30);
    (0..files).for_each(|number| write(&tree, &format!("wide/{number:06}.html"), format!("page {number}")));
    let mut origin = Origin::started(&scene, &tree);
    let mut agent = Agent::started(&scene, &origin, "web1");
    origin.wait_connected(&["web1"]);
    for round in 0..4 {
        write(&tree, &format!("wide/warm-{round}.html"), "warm");
        agent.wait_live(origin.commit_live());
    }
    wait::until("both spares", || agent.try_status().filter(|status| status.spares >= 2));
    // Files that were too recent are read again by then, not while bytes are counted.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    agent.wait_live(origin.commit_live());
    let pids = [origin.daemon().pid(), agent.daemon().pid()];
    let before = pids.map(written);
    for name in 0..NAMES {
        write(&tree, &format!("wide/{:03}-one.html", name * 97), format!("the page {name}"));
        agent.wait_live(origin.commit_live());
    }
    let after = pids.map(written);
    let cost =
        [0, 1].map(|at| (0..2).map(|pid: usize| after[pid][at] - before[pid][at]).sum::<u64>() / NAMES);
    println!("one name in {files} files: {} bytes written by {} calls", cost[0], cost[1]);
    cost
}

#[test]
fn one_name_costs_the_same_in_a_wide_directory() {
    let [few, many] = [1_000, 20_000].map(cost_of_a_name);
    for (at, what) in ["bytes written", "calls"].into_iter().enumerate() {
        assert!(2 * many[at] <= 3 * few[at], "{what}: {} in a wide directory, else {}", many[at], few[at]);
    }
    assert!(many[0] < 1_000_000, "{} bytes written", many[0]);
}
