//! An rsync daemon on loopback, as fair as it gets: TCP_NODELAY on both sides.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use syncd_tests::process::run_within;
use syncd_tests::{Daemon, Scene, require_program, wait};

/// Serves one tree.
pub struct RsyncDaemon {
    port: u16,
    _daemon: Daemon,
}

impl RsyncDaemon {
    /// Starts it and waits until it listens.
    pub fn start(scene: &Scene, tree: &Path) -> Self {
        require_program("rsync", "rsync");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let configuration = scene.path("rsyncd.conf");
        let text = format!(
            "uid = root\ngid = root\nuse chroot = no\naddress = 127.0.0.1\nport = {port}\n\
             socket options = TCP_NODELAY\nlog file = {}\n[tree]\n  path = {}\n  read only = yes\n",
            scene.path("rsyncd.log").display(),
            tree.display()
        );
        fs::write(&configuration, text).expect("write rsyncd.conf");
        let mut command = Command::new("rsync");
        command.arg("--daemon").arg("--no-detach").arg("--config").arg(configuration);
        let daemon = Daemon::start(&mut command, scene.directory(), "rsyncd");
        wait::until("the rsync daemon", || TcpStream::connect(("127.0.0.1", port)).ok());
        Self { port, _daemon: daemon }
    }

    /// `rsync -a` of the whole tree; seconds of it, and of the `sync -f` after it.
    pub fn pull(&self, destination: &Path) -> (f64, f64) {
        let source = format!("rsync://127.0.0.1:{}/tree/", self.port);
        let mut command = Command::new("rsync");
        command.args(["-a", "--sockopts=TCP_NODELAY", &source]).arg(format!("{}/", destination.display()));
        let started = Instant::now();
        run_within(&mut command, Duration::from_secs(600)).expect_success();
        let copied = started.elapsed().as_secs_f64();
        let started = Instant::now();
        run_within(Command::new("sync").arg("-f").arg(destination), Duration::from_secs(600))
            .expect_success();
        (copied, started.elapsed().as_secs_f64())
    }
}
