//! One update of many MiB for all agents, through one cache: what the origin still sends.

use std::time::{Duration, Instant};

use anyhow::Context;
use syncd_tests::cdn::{Nginx, Varnish};
use syncd_tests::edits::{small_site, write};
use syncd_tests::{Origin, Scene, Seeded, http};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use crate::Options;
use crate::agent::LoadAgent;
use crate::board::{Board, Until};
use crate::enrol::enrol;
use crate::report::Report;

const LIMIT: Duration = Duration::from_secs(600);
/// Share of the bytes that the origin may send, in percent.
const SHARE: f64 = 1.0;

/// Bytes of updates and content that the origin has sent.
fn sent(origin: &Origin) -> anyhow::Result<f64> {
    let address = origin.status().http_address.context("an address")?;
    let metrics = http::get(&address, "/metrics").map_err(anyhow::Error::msg)?.body;
    let metrics = String::from_utf8(metrics)?;
    let samples = metrics.lines().filter(|line| line.starts_with("syncd_origin_sent_bytes_total"));
    samples.map(|line| Ok(line.rsplit(' ').next().context("a value")?.parse::<f64>()?)).sum()
}

/// Runs the measurement.
pub fn run(options: &Options, mebibytes: usize) -> anyhow::Result<Report> {
    let scene = Scene::new("load-cached");
    let tree = scene.path("tree");
    small_site(&tree, options.files);
    let bucket = scene.new_directory("bucket");
    let server = format!(
        "listen ADDRESS; root {}; location / {{ add_header Cache-Control \"public, max-age=31536000\"; }}",
        scene.directory().display()
    );
    let nginx = Nginx::start(&scene, "nginx", &server, "");
    let varnish = Varnish::cache(&scene, &nginx.address);
    let (put, read) = (format!("file://{}", bucket.display()), format!("http://{}/bucket", varnish.address));
    let serve = ["--trigger", "manual", "--publish", &put, "--publish-read", &read];
    let mut origin = Origin::create(&scene, &tree).with_options(&serve);
    origin.start();
    let runtime = Runtime::new().context("start a runtime")?;
    let mut report = Report::new(options.agents);
    let token = origin.cli("token", &["--uses", &options.agents.to_string()]).expect_success();
    let token = token.only_line().parse().context("a token")?;
    let roots = scene.new_directory("agents");
    let identities = runtime.block_on(enrol(origin.address(), &token, options.agents, &roots))?;
    let (reports, receiver) = mpsc::unbounded_channel();
    let (wanted, follow) = watch::channel(true);
    for (index, identity) in identities.into_iter().enumerate() {
        let agent = LoadAgent::new(index, identity, reports.clone())?;
        runtime.spawn(agent.run(follow.clone()));
    }
    let mut board = Board::new(receiver, options.agents);
    let first = origin.commit();
    runtime.block_on(board.phase(Instant::now(), Until::Live(first), LIMIT))?;

    let before = sent(&origin)?;
    write(&origin.tree, "large.bin", Seeded::new(7).bytes(mebibytes << 20));
    board.clear();
    let started = Instant::now();
    let number = origin.commit();
    let phase = runtime.block_on(board.phase(started, Until::Live(number), LIMIT))?;
    report.add_phase("cached update", &phase);
    let sent = sent(&origin)? - before;
    let share = 100.0 * sent / (phase.bytes as f64).max(1.0);
    report.add("cached update: bytes to all agents", "B", phase.bytes as f64);
    report.add("cached update: of them sent by the origin", "B", sent);
    report.target("cached update: share sent by the origin", "%", SHARE, share);
    drop(wanted);
    Ok(report)
}
