//! lsyncd: watches a tree and runs rsync for changes, in place, neither atomic nor synced.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use syncd_tests::{Daemon, Scene, wait};

use super::rsync::RsyncDaemon;

/// A running lsyncd. It ends when dropped.
pub struct Lsyncd(#[allow(dead_code, reason = "dropped, it ends")] Daemon);

impl Lsyncd {
    /// Watches `tree` and pushes to a module of the daemon without delay. Waits until the initial full run is
    /// done.
    pub fn start(scene: &Scene, tree: &Path, daemon: &RsyncDaemon, module: &str) -> Self {
        let (configuration, log) = (scene.path("lsyncd.lua"), scene.path("lsyncd.log"));
        let text = format!(
            "settings {{ nodaemon = true, logfile = {log:?}, statusFile = {:?} }}\n\
             sync {{ default.rsync, source = {tree:?}, target = {:?}, delay = 0,\n\
             rsync = {{ archive = true, _extra = {{ \"--sockopts=TCP_NODELAY\" }} }} }}\n",
            scene.path("lsyncd.status"),
            daemon.url(&format!("{module}/")),
        );
        fs::write(&configuration, text).expect("write lsyncd.lua");
        let process = Daemon::start(Command::new("lsyncd").arg(configuration), scene.directory(), "lsyncd");
        wait::within(Duration::from_secs(600), "lsyncd's first run", || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            log.contains("Startup of").then_some(()).filter(|()| log.contains("finished"))
        });
        Self(process)
    }
}
