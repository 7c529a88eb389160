//! The phases of the measurement, in order.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use syncd_tests::edits::{small_site, write};
use syncd_tests::process::run as run_command;
use syncd_tests::{Origin, Scene, Seeded, http};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use crate::Options;
use crate::agent::LoadAgent;
use crate::board::{Board, Phase, Until, quantile};
use crate::enrol::enrol;
use crate::process_figures::{anonymous_kib, cpu_seconds, peak_kib};
use crate::report::Report;
use crate::screens::Screens;

/// Deadline of a phase, with a thousand agents on two cores.
const LIMIT: Duration = Duration::from_secs(180);
/// Pause after a phase, before memory is read or the next phase starts.
const SETTLE: Duration = Duration::from_secs(3);

/// Targets.
const SMALL_UPDATE_MS: f64 = 1000.0;
const IDLE_AGENT_KIB: f64 = 100.0;
const ORIGIN_PEAK_KIB: f64 = 256.0 * 1024.0;
const SCREENS_SHARE: f64 = 2.0;
const METRICS_MS: f64 = 50.0;

/// Requests for the metrics.
const SCRAPES: usize = 50;

/// New content of the inline update in bytes, which does not compress. An announcement can carry slightly
/// more.
const INLINE_BYTES: usize = 200 * 1024;

struct Load<'a> {
    options: &'a Options,
    runtime: Runtime,
    origin: Origin,
    board: Board,
    wanted: watch::Sender<bool>,
    report: Report,
}

/// Runs all phases.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let scene = Scene::new("load");
    let tree = scene.path("tree");
    small_site(&tree, options.files);
    let origin = Origin::started(&scene, &tree);
    let runtime = Runtime::new().context("start a runtime")?;
    let mut report = Report::new(options.agents);

    let uses = options.agents.to_string();
    let token = origin.cli("token", &["--uses", &uses]).expect_success();
    let token = token.only_line().parse().context("a token")?;
    let roots = scene.new_directory("agents");
    let started = Instant::now();
    let identities = runtime.block_on(enrol(origin.address(), &token, options.agents, &roots))?;
    let seconds = started.elapsed().as_secs_f64();
    report.add("join: agents a second, certificates durable", "1/s", options.agents as f64 / seconds);

    let (reports, receiver) = mpsc::unbounded_channel();
    let (wanted, follow) = watch::channel(false);
    for (index, identity) in identities.into_iter().enumerate() {
        let agent = LoadAgent::new(index, identity, reports.clone())?;
        runtime.spawn(agent.run(follow.clone()));
    }
    let board = Board::new(receiver, options.agents);
    let mut load = Load { options, runtime, origin, board, wanted, report };
    load.first_sync()?;
    load.connect_storm()?;
    load.small_updates()?;
    load.inline_update()?;
    load.medium_update()?;
    let idle = load.idle()?;
    load.screens(idle)?;
    load.screens_through_updates()?;
    load.metrics()?;
    load.origin_restart()?;
    Ok(load.report)
}

impl Load<'_> {
    fn pid(&mut self) -> u32 {
        self.origin.daemon().pid()
    }

    /// CPU seconds of the origin and of this process so far.
    fn cpu(&mut self) -> anyhow::Result<(f64, f64)> {
        Ok((cpu_seconds(self.pid())?, cpu_seconds(std::process::id())?))
    }

    fn add_cpu(&mut self, name: &str, before: (f64, f64), times: usize) -> anyhow::Result<()> {
        let now = self.cpu()?;
        let each = |seconds: f64| seconds * 1e6 / (self.options.agents * times) as f64;
        let (origin, load) = (each(now.0 - before.0), each(now.1 - before.1));
        self.report.add(format!("{name}: origin CPU for each agent"), "us", origin);
        self.report.add(format!("{name}: CPU of the load itself for each agent"), "us", load);
        Ok(())
    }

    fn wait(&mut self, started: Instant, until: Until) -> anyhow::Result<Phase> {
        self.runtime.block_on(self.board.phase(started, until, LIMIT))
    }

    /// First sync: every agent connects and fetches a small tree.
    fn first_sync(&mut self) -> anyhow::Result<()> {
        let number = self.origin.commit();
        let before = self.cpu()?;
        let started = Instant::now();
        self.wanted.send_replace(true);
        let phase = self.wait(started, Until::Live(number))?;
        self.report.add_phase("first sync of a small tree", &phase);
        self.report.add(
            "first sync: bytes to each agent",
            "B",
            phase.bytes as f64 / self.options.agents as f64,
        );
        self.add_cpu("first sync", before, 1)
    }

    /// Connect storm: all agents connect at once to a restarted origin. Measures the memory of an idle agent.
    fn connect_storm(&mut self) -> anyhow::Result<()> {
        self.wanted.send_replace(false);
        self.origin.stop();
        self.origin.start();
        std::thread::sleep(SETTLE);
        self.board.clear();
        let pid = self.pid();
        let empty = anonymous_kib(pid)?;
        let before = self.cpu()?;
        let started = Instant::now();
        self.wanted.send_replace(true);
        let phase = self.wait(started, Until::Welcomed)?;
        self.report.add_phase("connect storm", &phase);
        let rate = self.options.agents as f64 / (phase.quantile_ms(1.0) / 1000.0);
        self.report.add("connect storm: agents a second", "1/s", rate);
        std::thread::sleep(SETTLE);
        self.add_cpu("connect storm", before, 1)?;
        let each = (anonymous_kib(pid)? - empty) / self.options.agents as f64;
        self.report.add("origin memory without agents", "KiB", empty);
        self.report.add("origin memory for each idle agent", "KiB", each);
        self.report.target("origin memory for each idle agent", "KiB", IDLE_AGENT_KIB, each);
        Ok(())
    }

    /// Small updates: one changed file at a time, with pauses.
    fn small_updates(&mut self) -> anyhow::Result<()> {
        let (mut last, mut median, mut announced, mut exits) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut phases = Vec::new();
        let before = self.cpu()?;
        for round in 0..self.options.updates {
            write(&self.origin.tree, "index.html", format!("<h1>round {round}</h1>\n"));
            let (phase, exit_ms) = self.commit()?;
            last.push(phase.quantile_ms(1.0));
            median.push(phase.quantile_ms(0.5));
            announced.push(quantile(&phase.announced_ms, 1.0));
            exits.push(exit_ms);
            phases.push(phase);
            std::thread::sleep(Duration::from_millis(300));
        }
        self.add_cpu("small update", before, self.options.updates)?;
        let mut add = |name: &str, mut samples: Vec<f64>| {
            samples.sort_by(f64::total_cmp);
            self.report.add(
                format!("small update, {name}: median of all updates"),
                "ms",
                quantile(&samples, 0.5),
            );
            self.report.add(format!("small update, {name}: worst"), "ms", quantile(&samples, 1.0));
            quantile(&samples, 1.0)
        };
        add("commit to live, median agent", median);
        add("commit to announced, last agent", announced);
        add("commit to the exit of commit --wait", exits);
        let worst = add("commit to live, last agent", last);
        self.report.target("small update: commit to live on the last agent", "ms", SMALL_UPDATE_MS, worst);
        let inline: usize = phases.iter().map(|phase| phase.inline).sum();
        let announcements: usize = phases.iter().map(|phase| phase.announced_ms.len()).sum();
        self.report.add(
            "small updates: share sent inside the announcement",
            "%",
            100.0 * inline as f64 / announcements as f64,
        );
        for phase in &phases {
            for (reason, times) in &phase.mishaps {
                self.report.note(format!("small update: {times} times: {reason}"));
            }
        }
        Ok(())
    }

    /// Runs `commit --wait`. Returns when the agents had the generation, and when the command ended.
    fn commit(&mut self) -> anyhow::Result<(Phase, f64)> {
        let mut command = self.origin.command("commit", &["--wait=180s"]);
        let number = self.origin.status().generation.unwrap_or_default() + 1;
        self.board.clear();
        let started = Instant::now();
        let waiting = std::thread::spawn(move || {
            let outcome = run_command(&mut command);
            (outcome, started.elapsed())
        });
        let phase = self.wait(started, Until::Live(number))?;
        let (outcome, took) = waiting.join().map_err(|_| anyhow::anyhow!("the commit failed"))?;
        outcome.expect_success();
        Ok((phase, took.as_secs_f64() * 1000.0))
    }

    /// Inline update: the largest update that an announcement carries. Measures the memory that remains in
    /// use.
    fn inline_update(&mut self) -> anyhow::Result<()> {
        let pid = self.pid();
        let before = anonymous_kib(pid)?;
        write(&self.origin.tree, "inline.bin", Seeded::new(8).bytes(INLINE_BYTES));
        let (phase, _) = self.commit()?;
        self.report.add_phase("inline update", &phase);
        let share = 100.0 * phase.inline as f64 / self.options.agents as f64;
        self.report.add("inline update: share sent inside the announcement", "%", share);
        std::thread::sleep(SETTLE);
        let each = (anonymous_kib(pid)? - before) / self.options.agents as f64;
        self.report.add("inline update: origin memory that remains for each agent", "KiB", each);
        Ok(())
    }

    /// Medium update: some megabytes that do not compress and that every agent fetches.
    fn medium_update(&mut self) -> anyhow::Result<()> {
        if self.options.medium_mib == 0 {
            return Ok(());
        }
        let content = Seeded::new(7).bytes(self.options.medium_mib << 20);
        write(&self.origin.tree, "medium.bin", content);
        let before = self.cpu()?;
        let (phase, _) = self.commit()?;
        self.report.add_phase("medium update", &phase);
        let megabytes = phase.bytes as f64 / 1e6;
        self.report.add("medium update: bytes to all agents", "MB", megabytes);
        let seconds = phase.quantile_ms(1.0) / 1000.0;
        self.report.add("medium update: rate of the origin", "MB/s", megabytes / seconds);
        self.add_cpu("medium update", before, 1)?;
        let pid = self.pid();
        let peak = peak_kib(pid)?;
        self.report.add("origin memory, peak so far", "KiB", peak);
        self.report.target("origin memory at its peak", "KiB", ORIGIN_PEAK_KIB, peak);
        std::thread::sleep(SETTLE);
        self.report.add("origin memory after the medium update", "KiB", anonymous_kib(pid)?);
        Ok(())
    }

    /// Share of one core that the origin uses in `idle_s` seconds, in percent.
    fn share(&mut self) -> anyhow::Result<f64> {
        let before = self.cpu()?;
        std::thread::sleep(Duration::from_secs(self.options.idle_s));
        Ok(100.0 * (self.cpu()?.0 - before.0) / self.options.idle_s as f64)
    }

    /// Idle: only heartbeats. Returns the share of one core.
    fn idle(&mut self) -> anyhow::Result<f64> {
        std::thread::sleep(SETTLE);
        let share = self.share()?;
        self.report.add("idle: CPU of the origin, of one core", "%", share);
        Ok(share)
    }

    fn http_address(&self) -> anyhow::Result<String> {
        self.origin.status().http_address.context("an address for HTTP")
    }

    /// Screens: heartbeats, and browsers with the page open. `idle` is the share of one core without them.
    fn screens(&mut self, idle: f64) -> anyhow::Result<()> {
        let number = self.options.screens;
        let screens = Screens::open(&self.http_address()?, number);
        std::thread::sleep(SETTLE);
        let share = self.share()? - idle;
        let counts = screens.close();
        let name = format!("idle with {number} screens: additional CPU of the origin, of one core");
        self.report.add(&name, "%", share);
        self.report.target(name, "%", SCREENS_SHARE, share);
        for (what, count) in
            [("bytes", &counts.bytes), ("boards", &counts.boards), ("streams refused", &counts.refused)]
        {
            let count = count.load(Ordering::Relaxed);
            self.report.add(format!("{number} screens: {what}"), "", count as f64);
        }
        Ok(())
    }

    /// CPU seconds of the origin for small updates, each of which all agents report.
    fn updates_cpu(&mut self, what: &str) -> anyhow::Result<f64> {
        let before = self.cpu()?.0;
        for round in 0..self.options.updates {
            write(&self.origin.tree, "index.html", format!("<h1>{what} {round}</h1>\n"));
            self.commit()?;
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(self.cpu()?.0 - before)
    }

    /// Small updates while browsers have the page open: each agent changes its state on the board.
    fn screens_through_updates(&mut self) -> anyhow::Result<()> {
        let number = self.options.screens;
        let without = self.updates_cpu("without screens")?;
        let screens = Screens::open(&self.http_address()?, number);
        std::thread::sleep(SETTLE);
        let with = self.updates_cpu("with screens")?;
        let counts = screens.close();
        let each = |seconds: f64| seconds * 1000.0 / self.options.updates as f64;
        self.report.add("small update without screens: CPU of the origin", "ms", each(without));
        self.report.add(format!("small update with {number} screens: CPU of the origin"), "ms", each(with));
        let boards = counts.boards.load(Ordering::Relaxed) as f64;
        let each = boards / (number * self.options.updates).max(1) as f64;
        self.report.add("small update: boards for each screen", "", each);
        Ok(())
    }

    /// Metrics: a scraper that asks once after the other.
    fn metrics(&mut self) -> anyhow::Result<()> {
        let address = self.http_address()?;
        let (mut took_ms, mut body) = (Vec::new(), Vec::new());
        for _ in 0..SCRAPES {
            let started = Instant::now();
            body = http::get(&address, "/metrics").map_err(anyhow::Error::msg)?.body;
            took_ms.push(started.elapsed().as_secs_f64() * 1000.0);
        }
        took_ms.sort_by(f64::total_cmp);
        let text = String::from_utf8_lossy(&body);
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        self.report.add("/metrics: bytes", "B", body.len() as f64);
        self.report.add("/metrics: series", "", series as f64);
        self.report.add("/metrics: median", "ms", quantile(&took_ms, 0.5));
        self.report.add("/metrics: worst", "ms", quantile(&took_ms, 1.0));
        self.report.target("/metrics", "ms", METRICS_MS, quantile(&took_ms, 0.5));
        Ok(())
    }

    /// Origin restart: the origin is killed and started, and all agents reconnect.
    fn origin_restart(&mut self) -> anyhow::Result<()> {
        self.board.clear();
        self.origin.kill9();
        let load_before = cpu_seconds(std::process::id())?;
        let started = Instant::now();
        self.origin.start();
        let phase = self.wait(started, Until::Welcomed)?;
        self.report.add_phase("back after a kill of the origin", &phase);
        self.add_cpu("back after a kill", (0.0, load_before), 1)
    }
}
