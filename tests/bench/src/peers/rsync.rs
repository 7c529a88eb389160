//! rsync from a daemon on loopback, with `TCP_NODELAY` on both sides for a fair comparison.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use syncd_tests::{Daemon, Scene, wait};

use super::Cost;
use crate::processes::{complete, cpu_seconds, has_children};

/// `rsync -a`.
pub const PLAIN: &[&str] = &["-a"];
/// `rsync -az` with zstd.
pub const ZSTD: &[&str] = &["-az", "--compress-choice=zstd"];

/// Daemon that serves trees as modules.
pub struct RsyncDaemon {
    port: u16,
    daemon: Daemon,
}

impl RsyncDaemon {
    /// Starts the daemon and waits until it listens.
    pub fn start(scene: &Scene, modules: &[(&str, &Path)]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let configuration = scene.path(&format!("rsyncd-{port}.conf"));
        let mut text = format!(
            "uid = root\ngid = root\nuse chroot = no\naddress = 127.0.0.1\nport = {port}\n\
             socket options = TCP_NODELAY\nmax connections = 0\nlog file = {}\n",
            scene.path("rsyncd.log").display(),
        );
        for (name, tree) in modules {
            text += &format!("[{name}]\n  path = {}\n  read only = no\n", tree.display());
        }
        fs::write(&configuration, text).expect("write rsyncd.conf");
        let mut command = Command::new("rsync");
        command.arg("--daemon").arg("--no-detach").arg("--config").arg(configuration);
        let daemon = Daemon::start(&mut command, scene.directory(), &format!("rsyncd-{port}"));
        wait::until("the rsync daemon", || TcpStream::connect(("127.0.0.1", port)).ok());
        Self { port, daemon }
    }

    /// `rsync://` URL of a path in a module.
    pub fn url(&self, path: &str) -> String {
        format!("rsync://127.0.0.1:{}/{path}", self.port)
    }

    /// Command that copies `path` (a module and a path in it; a slash at the end means the directory's
    /// contents).
    pub fn command(&self, options: &[&str], path: &str, destination: &Path) -> Command {
        let mut command = Command::new("rsync");
        command.args(options).args(["--sockopts=TCP_NODELAY", &self.url(path)]).arg(destination);
        command
    }

    /// Makes the directory `destination` equal to a module, in place and not atomically.
    pub fn pull(&self, options: &[&str], module: &str, destination: &Path) -> Cost {
        let options = [options, &["--delete"]].concat();
        let mut command = self.command(&options, &format!("{module}/"), &slashed(destination));
        self.cost(destination, || {
            complete(&mut command);
        })
    }

    /// Atomic variant: makes a new directory beside the old one, with hard links for equal files, and
    /// switches the symlink `live`. `replica` has `1` and `live`, as made by [`Self::prepare_atomic`]; `2` is
    /// added.
    pub fn pull_atomic(&self, options: &[&str], module: &str, replica: &Path) -> Cost {
        // Not `../1`: rsync 3.2.7-1+deb12u5 then compares data from a daemon with another basis, and discards
        // it.
        let basis = format!("--link-dest={}", replica.join("1").display());
        let options = [options, &["--delete", &basis]].concat();
        let mut pull = self.command(&options, &format!("{module}/"), &slashed(&replica.join("2")));
        let mut switch = Command::new("sh");
        switch
            .args(["-c", "ln -s 2 \"$1/live.new\" && mv -T \"$1/live.new\" \"$1/live\"", "sh"])
            .arg(replica);
        self.cost(replica, || {
            complete(&mut pull);
            complete(&mut switch);
        })
    }

    /// Measures the work, including the daemon's share.
    fn cost(&self, destination: &Path, work: impl FnOnce()) -> Cost {
        let before = self.cpu_seconds();
        let mut cost = Cost::of(destination, work);
        cost.cpu_s += self.cpu_seconds() - before;
        cost
    }

    /// Makes a replica at `version` for [`Self::pull_atomic`].
    pub fn prepare_atomic(version: &Path, replica: &Path) {
        complete(Command::new("cp").arg("-a").arg(version).arg(replica.join("1")));
        std::os::unix::fs::symlink("1", replica.join("live")).expect("a live link");
    }

    /// CPU seconds of the source's side so far, once nobody is being served.
    pub fn cpu_seconds(&self) -> f64 {
        let pid = self.daemon.pid();
        wait::until("rsync's children to end", || (!has_children(pid)).then_some(()));
        cpu_seconds(pid)
    }
}

fn slashed(path: &Path) -> std::path::PathBuf {
    format!("{}/", path.display()).into()
}
