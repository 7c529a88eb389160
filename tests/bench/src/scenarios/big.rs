//! Large files: 1 % scattered edits, an insertion near the front, a database. From `commit` to live, and the bytes that
//! travel, beside rsync; how much the origin reads.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use syncd_tests::Seeded;
use syncd_tests::corpora::Corpus;
use syncd_tests::oracle::assert_same;

use crate::bench::Bench;
use crate::peers::durable;
use crate::peers::rsync::{PLAIN, RsyncDaemon};
use crate::peers::run as run_tool;
use crate::report::Report;
use crate::site::{Site, on_fresh_disk};
use crate::wire::Wire;

const OWN: &str = "syncd, commit to live";
const INSERTED_AT: usize = 10_000;
const INSERTED_BYTES: usize = 1000;

type Make = fn(&Path, u64);
type Change = fn(&Path, &mut Seeded);

pub fn measure(bench: &Bench) -> Report {
    let mut report = bench.report("big", "Large files, each changed a little", &[]);
    let mebibytes = if bench.quick { 16 } else { bench.big_mib };
    let kinds: [(&str, Make, Change); 3] =
        [("scattered", noise, scatter), ("insertion", text, insert), ("database", database, update_rows)];
    for (name, make, change) in kinds {
        report.note(format!("{name}: one file of {mebibytes} MiB"));
        kind(bench, &mut report, name, |file| make(file, mebibytes), change);
        let (time, wire) = (format!("{name}: time"), format!("{name}: wire"));
        report.target_ratio(&format!("wire of {name}, times rsync -a"), 1.1, &wire, OWN, "rsync -a");
        report.ratio(&time, OWN, &durable("rsync -a"));
        let read = report.median(&format!("{name}: read by the origin"), "syncd-origin, times the file");
        report.target(&format!("{name}: the origin reads the file once"), "x", 1.05, read);
        let agent = report.median(&format!("{name}: peak memory"), "syncd-agent");
        report.target(&format!("peak memory of the agent, {name}"), "MiB", 96.0, agent);
    }
    report
}

fn kind(bench: &Bench, report: &mut Report, name: &str, make: impl FnOnce(&Path), change: Change) {
    let mut site = Site::stopped("big", |tree| {
        fs::create_dir(tree).expect("create a tree");
        make(&tree.join("big"));
    });
    site.origin.start();
    site.origin.commit();
    site.join_all(&["node1"]);
    let (tree, mut random) = (site.tree(), Seeded::new(7));
    let daemon = RsyncDaemon::start(&site.scene, &[("tree", &tree)]);
    for run in 0..=bench.runs() {
        report.begin(run, bench.runs());
        on_fresh_disk(&site.scene, |replica| {
            let copy = replica.join("copy");
            Corpus::copy(&tree, &copy);
            change(&tree.join("big"), &mut random);
            // The page cache has the file when syncd comes to it, as it had the whole of it for rsync: both warm.
            daemon.pull(PLAIN, "tree", &copy).report(report, name, "rsync -a");
        });
        let (read, cpu, wire) =
            (read_bytes(site.origin.daemon().pid()), site.origin_cpu_seconds(), Wire::now());
        let (took, _) = site.commit_to_live(1);
        report.sample(&format!("{name}: time"), "s", OWN, took);
        report.sample(&format!("{name}: wire"), "MB", OWN, wire.megabytes());
        let used = site.origin_cpu_seconds() - cpu;
        report.sample(&format!("{name}: CPU"), "s", "syncd-origin", used);
        let length = fs::metadata(tree.join("big")).map_or(f64::NAN, |m| m.len() as f64);
        let times = (read_bytes(site.origin.daemon().pid()) - read) / length;
        report.sample(&format!("{name}: read by the origin"), "x", "syncd-origin, times the file", times);
        assert_same(&tree, &site.nodes[0].agent.live());
        site.rest();
    }
    let memory = format!("{name}: peak memory");
    report.sample(&memory, "MiB", "syncd-origin", site.origin_peak_mib());
    report.sample(&memory, "MiB", "syncd-agent", site.agents_peak_mib());
}

/// What a process read by system calls, sockets included.
fn read_bytes(pid: u32) -> f64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).expect("read a process's io");
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(f64::NAN)
}

/// Incompressible.
fn noise(path: &Path, mebibytes: u64) {
    let mut source = File::open("/dev/urandom").expect("open /dev/urandom").take(mebibytes << 20);
    std::io::copy(&mut source, &mut File::create(path).expect("create a file")).expect("write a file");
}

/// 1 % of the file in writes of 4 KiB.
fn scatter(path: &Path, random: &mut Seeded) {
    let file = OpenOptions::new().write(true).open(path).expect("open a file");
    let length = file.metadata().expect("stat a file").len();
    for _ in 0..(length / 100).div_ceil(4096) {
        let block: Vec<u8> = (0..512).flat_map(|_| random.next_u64().to_le_bytes()).collect();
        file.write_all_at(&block, random.below(length - 4096)).expect("write into a file");
    }
}

/// Lines that compress as documentation does, none of them twice.
fn text(path: &Path, mebibytes: u64) {
    let mut random = Seeded::new(11);
    let mut file = std::io::BufWriter::new(File::create(path).expect("create a file"));
    let mut written = 0;
    while written < mebibytes << 20 {
        let words = String::from_utf8_lossy(&random.bytes(100)).replace(['\n', '\0'], " ");
        let line = format!("{:016x} {words}\n", random.next_u64());
        file.write_all(line.as_bytes()).expect("write a file");
        written += line.len() as u64;
    }
    file.flush().expect("write a file");
}

fn insert(path: &Path, random: &mut Seeded) {
    let mut content = fs::read(path).expect("read a file");
    let inserted: Vec<u8> = (0..INSERTED_BYTES).map(|_| random.next_u64() as u8).collect();
    content.splice(INSERTED_AT..INSERTED_AT, inserted);
    fs::write(path, content).expect("write a file");
}

/// An SQLite database of rows of about 500 bytes.
fn database(path: &Path, mebibytes: u64) {
    let rows = (mebibytes << 20) / 560;
    sqlite(
        path,
        &format!(
            "CREATE TABLE page (id INTEGER PRIMARY KEY, body TEXT); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT \
             i + 1 FROM n WHERE i < {rows}) INSERT INTO page SELECT i, hex(randomblob(250)) FROM n;"
        ),
    );
}

/// 1 % of the rows get another text.
fn update_rows(path: &Path, random: &mut Seeded) {
    let rest = random.below(100);
    sqlite(path, &format!("UPDATE page SET body = hex(randomblob(250)) WHERE id % 100 = {rest};"));
}

fn sqlite(path: &Path, statement: &str) {
    let pragmas = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;";
    run_tool(std::process::Command::new("sqlite3").arg(path).arg(format!("{pragmas} {statement}")));
}
