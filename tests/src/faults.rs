//! Makes calls of the agent fail, once or until the fault ends, and checks what must hold during and after
//! the fault.
//!
//! During a fault the old generation is served, and the agent's log or the origin's `status` shows the
//! reason. When the fault ends, the agent converges by itself. An agent that could not start is started
//! again, as a service manager would do.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::libc;

use crate::node::{Node, Scenario};
use crate::tracer::{Point, Policy, Traced, Verdict};

/// Time within which a fault must be noticed, also on a busy machine.
const NOTICED: Duration = Duration::from_secs(60);

/// Kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// ENOSPC: no space, or no inodes.
    NoSpace,
    /// EDQUOT.
    Quota,
    /// EIO.
    Disk,
    /// EMFILE.
    Descriptors,
    /// EXDEV.
    OtherFileSystem,
    /// EROFS.
    ReadOnly,
    /// Writes are cut to a third.
    Short,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 7] = [
        Self::NoSpace,
        Self::Quota,
        Self::Disk,
        Self::Descriptors,
        Self::OtherFileSystem,
        Self::ReadOnly,
        Self::Short,
    ];

    /// Result of a call; `None`: this fault does not apply to it.
    pub fn verdict(self, point: &Point) -> Option<Verdict> {
        let writes =
            matches!(point.call, "write" | "pwrite64" | "copy_file_range" | "fallocate" | "ftruncate");
        let names =
            ["open", "mkdir", "symlink", "link", "rename"].iter().any(|call| point.call.starts_with(call));
        let syncs = point.call.contains("sync");
        let (hits, errno) = match self {
            Self::NoSpace => (writes || names || syncs, libc::ENOSPC),
            Self::Quota => (writes || names || syncs, libc::EDQUOT),
            Self::Disk => (true, libc::EIO),
            Self::Descriptors => (point.call.starts_with("open"), libc::EMFILE),
            Self::OtherFileSystem => {
                (point.call.starts_with("rename") || point.call.starts_with("link"), libc::EXDEV)
            }
            Self::ReadOnly => (!syncs, libc::EROFS),
            Self::Short => (matches!(point.call, "write" | "pwrite64"), 0),
        };
        let verdict = if self == Self::Short { Verdict::Short } else { Verdict::Fail(errno) };
        hits.then_some(verdict)
    }

    /// Words that a message about the fault contains.
    pub fn words(self) -> &'static str {
        match self {
            Self::NoSpace => "No space left on device",
            Self::Quota => "quota exceeded",
            Self::Disk => "Input/output error",
            Self::Descriptors => "Too many open files",
            Self::OtherFileSystem => "cross-device link",
            Self::ReadOnly => "Read-only file system",
            Self::Short => "",
        }
    }
}

/// One case.
#[derive(Debug, Clone, Copy)]
pub struct Failing {
    /// The fault.
    pub fault: Fault,
    /// Ordinal of the first call that fails.
    pub ordinal: usize,
    /// Whether all later calls fail as well, until the fault ends.
    pub lasts: bool,
}

/// Calls that failed.
pub(crate) type Failed = Arc<Mutex<Vec<Point>>>;

/// Result of a case.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Number of calls that failed.
    pub failed: usize,
    /// Whether the agent's log shows the reason.
    pub logged: bool,
    /// Whether the origin's `status` shows the reason.
    pub reported: bool,
    /// Whether the agent ended and was started again.
    pub ended: bool,
    /// All calls of the run that changed something, including those that failed.
    pub points: Vec<Point>,
    /// Time from the end of the fault until everything was in order.
    pub healing: Duration,
}

impl Node {
    /// Runs the scenario with the fault. Err: the rule that was broken.
    pub fn fail(&mut self, scenario: &Scenario, failing: Failing) -> Result<Seen, String> {
        let (lasting, failed) = (Arc::new(AtomicBool::new(true)), Failed::default());
        let log = Traced::log_of(self.mount.directory());
        let _ = std::fs::remove_file(&log);
        let mut traced = self.trace(scenario, policy(failing, lasting.clone(), failed.clone()));
        let failures = || failed.lock().map(|f| f.clone()).unwrap_or_default();
        let outcome = self.live_through(scenario, failing, &mut traced, &lasting, &log, &|| failures().len());
        traced.kill();
        let outcome = outcome.map(|seen| Seen { points: traced.points(), ..seen });
        if self.agent.is_running() {
            self.agent.kill9();
        }
        self.origin_answers(true);
        outcome.map_err(|complaint| {
            let first = failures().first().map(Point::label).unwrap_or_default();
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<&str> = said.lines().rev().take(8).collect();
            format!("{}, {failing:?} at {first}: {complaint}\n{}", scenario.name, tail.join("\n"))
        })
    }

    fn live_through(
        &mut self,
        scenario: &Scenario,
        failing: Failing,
        traced: &mut Traced,
        lasting: &AtomicBool,
        log: &Path,
        failures: &dyn Fn() -> usize,
    ) -> Result<Seen, String> {
        let newest = self.newest();
        let mut seen = Seen::default();
        let words = failing.fault.words();
        let said = || std::fs::read_to_string(log).unwrap_or_default().contains(words);
        // Until the fault is noticed, or proves harmless.
        let started = Instant::now();
        let mut calm = None;
        loop {
            self.complete(scenario.live)?;
            if traced.ended().is_some() {
                seen.ended = true;
                break;
            }
            let status = self.origin.try_status();
            let error = status.as_ref().and_then(|s| s.agents.first()).and_then(|a| a.error.clone());
            seen.reported |=
                error.is_some_and(|error| error.contains(words)) && failing.fault != Fault::Short;
            // On a busy machine the log may be written long after the last call.
            let is_told = failures() == 0 || failing.fault == Fault::Short || said();
            let fine = is_told
                && self.agent.live_generation() == Some(newest)
                && traced.idle().is_some_and(|idle| idle.as_millis() > 300);
            if (failing.lasts && seen.reported && said()) || fine {
                // A little longer, to see what follows.
                if calm.get_or_insert(Instant::now()).elapsed() > Duration::from_millis(100) {
                    break;
                }
            }
            if started.elapsed() > NOTICED {
                return Err(format!("in vain for {NOTICED:?}, with {} failed calls", failures()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        seen.logged = said();
        seen.failed = failures();
        if seen.failed > 0 && failing.fault != Fault::Short && !seen.logged {
            return Err("the agent's log does not say why".into());
        }
        if failing.lasts
            && failing.fault != Fault::Short
            && !seen.ended
            && !seen.reported
            && self.agent.live_generation() != Some(newest)
        {
            return Err("the origin's status does not say why".into());
        }
        // The fault ends.
        lasting.store(false, Ordering::Relaxed);
        let ended = Instant::now();
        if seen.ended {
            if traced.ended().is_none_or(|status| status.code() != Some(1)) {
                return Err(format!("the agent ended with {:?}", traced.ended()));
            }
            self.agent.start();
        }
        self.poll("the agent to converge", |node| {
            let status = node.status().ok_or("no status")?;
            node.settled(&status, newest)?;
            match status.error {
                Some(error) => Err(format!("it still says {error}")),
                None => Ok(()),
            }
        })?;
        seen.healing = ended.elapsed();
        self.complete(newest)?;
        self.has_generations()?;
        self.verifies()?;
        let settled = self.origin.try_status().and_then(|s| s.agents.first().and_then(|a| a.error.clone()));
        match settled {
            Some(error) => Err(format!("the origin still says {error}")),
            None => Ok(seen),
        }
    }
}

pub(crate) fn policy(failing: Failing, lasting: Arc<AtomicBool>, failed: Failed) -> Policy {
    Box::new(move |point| {
        let hit = match failing.lasts {
            false => point.ordinal == failing.ordinal,
            true => point.ordinal >= failing.ordinal && lasting.load(Ordering::Relaxed),
        };
        let verdict = hit.then(|| failing.fault.verdict(point)).flatten();
        if verdict.is_some()
            && let Ok(mut failed) = failed.lock()
        {
            failed.push(point.clone());
        }
        verdict.unwrap_or(Verdict::Pass)
    })
}
