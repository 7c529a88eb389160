//! Large files: 1 % scattered edits, an insertion near the start, a database. Measures the time from `commit`
//! to live, the bytes that travel, and the bytes that the origin reads, beside rsync.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use syncd_tests::corpora::Corpus;
use syncd_tests::oracle::assert_same;
use syncd_tests::{Daemon, Seeded, wait};

use crate::bench::Bench;
use crate::noise::settle;
use crate::peers::durable;
use crate::peers::rsync::{PLAIN, RsyncDaemon};
use crate::processes::complete;
use crate::report::Report;
use crate::site::{Site, on_fresh_disk};
use crate::wire::Wire;

const OWN: &str = "syncd, commit to live";
const INSERTED_AT: usize = 10_000;
const INSERTED_BYTES: usize = 1000;

type Make = fn(&Path, u64);
type Change = fn(&Path, &mut Seeded);

pub fn measure(bench: &Bench) -> Report {
    let mut report = bench.report("big", "Large files, each changed a little", []);
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
    site.commit();
    site.join_all(&["node1"]);
    let (tree, file, mut random) = (site.tree(), site.tree().join("big"), Seeded::new(7));
    let daemon = RsyncDaemon::start(&site.scene, &[("tree", &tree)]);
    for run in 0..=bench.runs() {
        report.begin(run, bench.runs());
        on_fresh_disk(&site.scene, |replica| {
            let copy = replica.join("copy");
            Corpus::copy(&tree, &copy);
            change(&file, &mut random);
            // The file is cached when syncd reads it, as it was for rsync.
            daemon.pull(PLAIN, "tree", &copy).report(report, name, "rsync -a");
        });
        settle();
        let (cpu, wire) = (site.origin_cpu_seconds(), Wire::now());
        let (took, _) = site.commit_to_live(1);
        report.sample(&format!("{name}: time"), "s", OWN, took);
        report.sample(&format!("{name}: wire"), "MB", OWN, wire.megabytes());
        let used = site.origin_cpu_seconds() - cpu;
        report.sample(&format!("{name}: CPU"), "s", "syncd-origin", used);
        assert_same(&tree, &site.nodes[0].agent.live());
        site.rest();
    }
    change(&file, &mut random);
    let length = fs::metadata(&file).map_or(f64::NAN, |m| m.len() as f64);
    let times = bytes_read(&mut site, &file) / length;
    report.sample(&format!("{name}: read by the origin"), "x", "syncd-origin, times the file", times);
    let memory = format!("{name}: peak memory");
    report.sample(&memory, "MiB", "syncd-origin", site.origin_peak_mib());
    report.sample(&memory, "MiB", "syncd-agent", site.agents_peak_mib());
}

/// Bytes of the changed file that the origin reads until it is live, according to strace. A separate run,
/// because strace is slow.
fn bytes_read(site: &mut Site, file: &Path) -> f64 {
    let logs = site.scene.new_directory("strace");
    let mut strace = Command::new("strace");
    strace.args(["-ff", "-y", "-s", "0", "-e", "trace=read,pread64,readv,preadv,preadv2,mmap", "-o"]);
    // One log for each thread: in a common log, an interrupted call loses the name of its file.
    strace.arg(logs.join("log")).arg("-p").arg(site.origin.daemon().pid().to_string());
    let mut strace = Daemon::start(&mut strace, site.scene.directory(), "strace");
    wait::until("strace to attach", || strace.log().contains("attached").then_some(()));
    let _ = site.commit_to_live(1);
    strace.interrupt();
    let named = format!("<{}>", file.display());
    let texts = fs::read_dir(logs).expect("list strace's logs").filter_map(Result::ok);
    let log: String = texts.filter_map(|item| fs::read_to_string(item.path()).ok()).collect();
    let results = log.lines().filter(|line| line.contains(&named)).filter_map(|line| line.rsplit_once(" = "));
    results.filter_map(|(call, result)| bytes_of(call, result)).sum()
}

/// Bytes read by one call: its result, or the length of a mapping.
fn bytes_of(call: &str, result: &str) -> Option<f64> {
    let mapped = call.split_once("mmap(").and_then(|(_, arguments)| arguments.split(',').nth(1));
    mapped.unwrap_or(result).trim().parse().ok()
}

/// Fills a file with incompressible bytes.
fn noise(path: &Path, mebibytes: u64) {
    let mut source = File::open("/dev/urandom").expect("open /dev/urandom").take(mebibytes << 20);
    std::io::copy(&mut source, &mut File::create(path).expect("create a file")).expect("write a file");
}

/// Changes 1 % of the file, in writes of 4 KiB.
fn scatter(path: &Path, random: &mut Seeded) {
    let file = OpenOptions::new().write(true).open(path).expect("open a file");
    let length = file.metadata().expect("stat a file").len();
    for _ in 0..(length / 100).div_ceil(4096) {
        let block: Vec<u8> = (0..512).flat_map(|_| random.next_u64().to_le_bytes()).collect();
        file.write_all_at(&block, random.below(length - 4096)).expect("write into a file");
    }
}

/// Writes lines that compress like documentation and never repeat.
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

/// Makes an SQLite database with rows of about 500 bytes.
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

/// Changes the text of 1 % of the rows.
fn update_rows(path: &Path, random: &mut Seeded) {
    let rest = random.below(100);
    sqlite(path, &format!("UPDATE page SET body = hex(randomblob(250)) WHERE id % 100 = {rest};"));
}

fn sqlite(path: &Path, statement: &str) {
    let pragmas = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;";
    complete(Command::new("sqlite3").arg(path).arg(format!("{pragmas} {statement}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_mappings_of_a_file_are_counted() {
        let read = "7 pread64(12</tree/big>, \"..\", 1048576, 0)";
        assert_eq!(bytes_of(read, "65536"), Some(65536.0));
        let mapping = "7 mmap(NULL, 4096, PROT_READ, MAP_SHARED, 12</tree/big>, 0)";
        assert_eq!(bytes_of(mapping, "0x7f12"), Some(4096.0));
        assert_eq!(bytes_of(read, "-1 EAGAIN (Resource temporarily unavailable)"), None);
    }

    #[test]
    fn an_insertion_moves_the_rest() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("big");
        text(&file, 1);
        let before = fs::read(&file).expect("read");
        insert(&file, &mut Seeded::new(1));
        let after = fs::read(&file).expect("read");
        assert_eq!(after[..INSERTED_AT], before[..INSERTED_AT]);
        assert_eq!(after[INSERTED_AT + INSERTED_BYTES..], before[INSERTED_AT..]);
    }
}
