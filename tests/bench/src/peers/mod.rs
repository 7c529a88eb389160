//! Peers: programs that a user might choose instead.

pub mod casync;
pub mod copy;
pub mod lsyncd;
pub mod rsync;
pub mod syncthing;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::noise::settle;
use crate::processes::{complete, ended_children_cpu_seconds};
use crate::report::Report;
use crate::wire::Wire;

/// Cost of a peer's work.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Seconds until the peer reported the end.
    pub wall_s: f64,
    /// Seconds until `sync -f` of its destination had also ended, as in syncd's figures.
    pub durable_s: f64,
    /// CPU seconds of all processes at both ends, user and system. Noise affects it less than time.
    pub cpu_s: f64,
    /// Megabytes at the sockets.
    pub wire_mb: f64,
}

impl Cost {
    /// Measures `work`, which writes to `destination`.
    pub fn of(destination: &Path, work: impl FnOnce()) -> Self {
        settle();
        let (wire, cpu, started) = (Wire::now(), ended_children_cpu_seconds(), Instant::now());
        work();
        let wall_s = started.elapsed().as_secs_f64();
        let cpu_s = ended_children_cpu_seconds() - cpu;
        complete(Command::new("sync").arg("-f").arg(destination));
        Self { wall_s, cpu_s, durable_s: started.elapsed().as_secs_f64(), wire_mb: wire.megabytes() }
    }

    /// Adds both times, and the bytes if any crossed a socket, to panels whose names begin with `prefix`.
    pub fn report(self, report: &mut Report, prefix: &str, name: &str) {
        let time = format!("{prefix}: time");
        report.sample(&time, "s", name, self.wall_s);
        report.sample(&time, "s", &durable(name), self.durable_s);
        report.sample(&format!("{prefix}: CPU"), "s", name, self.cpu_s);
        if self.wire_mb > 0.0 {
            report.sample(&format!("{prefix}: wire"), "MB", name, self.wire_mb);
        }
    }
}

/// Name of a peer's time including `sync -f`.
pub fn durable(name: &str) -> String {
    format!("{name}, sync -f")
}
