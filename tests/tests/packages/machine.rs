//! A clean Debian in a directory: entered by chroot, or booted in a container.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use syncd_tests::{Daemon, Outcome, Scene, binary, require_program, wait};

use super::within_limit;

/// Packages of the clean Debian besides the essential ones.
const PACKAGES: &str = "systemd-sysv,dbus,apache2";
const RELEASE: &str = "bookworm";
/// Capabilities of the origin's unit.
const ORIGIN: &str = "setpriv --reuid=syncd-origin --regid=syncd-origin --init-groups \
                      --bounding-set=-all,+dac_read_search --inh-caps=-all,+dac_read_search \
                      --ambient-caps=-all,+dac_read_search --no-new-privs";

/// An archive of the clean Debian. Made once, and kept beside the programs under test.
#[track_caller]
pub fn base() -> PathBuf {
    require_program("mmdebstrap", "mmdebstrap");
    let target = binary("syncd-agent").ancestors().nth(2).expect("a target directory").to_owned();
    let archive = target.join(format!("debian-{RELEASE}-{}.tar", PACKAGES.replace(',', "-")));
    // Tests of this suite run beside each other.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if !archive.exists() {
        let partial = archive.with_extension(format!("{}.partial.tar", std::process::id()));
        let mut command = Command::new("mmdebstrap");
        command.args(["--variant=minbase", &format!("--include={PACKAGES}"), RELEASE]).arg(&partial);
        within_limit(&mut command).expect_success();
        fs::rename(&partial, &archive).expect("name the archive");
    }
    archive
}

/// A machine whose services are started by hand. Its mounts end with the namespaces of the test.
pub struct Machine {
    scene: Scene,
    root: PathBuf,
    services: Vec<Daemon>,
    /// Process of the container's systemd, if it is booted.
    leader: Option<String>,
}

impl Machine {
    /// Unpacks a clean Debian that calls itself `origin.example.org`.
    #[track_caller]
    pub fn unpack(base: &Path) -> Self {
        let machine = Self::files(base);
        for (kind, place) in [("proc", "proc"), ("tmpfs", "run"), ("tmpfs", "tmp"), ("tmpfs", "dev")] {
            let mut mount = Command::new("mount");
            within_limit(mount.args(["-t", kind, kind]).arg(machine.path(place))).expect_success();
        }
        // Devices of its own: what is removed with the machine must never be the host's.
        let devices = "mknod -m 666 null c 1 3\nmknod -m 666 zero c 1 5\nmknod -m 666 random c 1 8\n\
                       mknod -m 666 urandom c 1 9\nln -s /proc/self/fd fd\nmkdir /run/lock";
        machine.run(&format!("cd /dev\n{devices}")).expect_success();
        machine
    }

    fn files(base: &Path) -> Self {
        let scene = Scene::new("debian");
        let root = scene.new_directory("root");
        let mut tar = Command::new("tar");
        within_limit(tar.args(["--numeric-owner", "-xpf"]).arg(base).arg("-C").arg(&root)).expect_success();
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost origin.example.org\n").expect("name hosts");
        Self { scene, root, services: Vec::new(), leader: None }
    }

    /// Boots a clean Debian with systemd, in a container that sees none of the host's devices and networks.
    #[track_caller]
    pub fn boot(base: &Path) -> Self {
        require_program("systemd-nspawn", "systemd-container");
        let mut machine = Self::files(base);
        let mut command = Command::new("systemd-nspawn");
        command.args(["--register=no", "--keep-unit", "--private-network", "--console=pipe", "--boot", "-D"]);
        let container = Daemon::start(command.arg(&machine.root), machine.scene.directory(), "container");
        let children = format!("/proc/{0}/task/{0}/children", container.pid());
        machine.services.push(container);
        wait::within(Duration::from_secs(180), "systemd to be up", || {
            let leader = fs::read_to_string(&children).ok()?.split_whitespace().next()?.to_owned();
            machine.leader = Some(leader);
            let state = machine.run("systemctl is-system-running || :").stdout;
            ["running", "degraded"].contains(&state.trim()).then_some(())
        });
        machine
    }

    /// A path as seen from outside.
    pub fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// Copies packages to the directory in which commands run.
    #[track_caller]
    pub fn receive(&self, packages: &Path) {
        for entry in fs::read_dir(packages).expect("list packages") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), self.path("root").join(entry.file_name())).expect("copy a package");
        }
    }

    fn enter(&self) -> Command {
        let mut command = match &self.leader {
            Some(leader) => {
                let mut command = Command::new("nsenter");
                command.args(["-t", leader, "-m", "-u", "-i", "-n", "-p"]);
                command
            }
            None => {
                let mut command = Command::new("chroot");
                command.arg(&self.root);
                command
            }
        };
        command.env_clear();
        command.envs([
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("DEBIAN_FRONTEND", "noninteractive"),
            ("HOME", "/root"),
            ("LC_ALL", "C.UTF-8"),
        ]);
        command
    }

    /// Runs commands of the guide as root, in root's home directory.
    #[track_caller]
    pub fn run(&self, commands: &str) -> Outcome {
        let commands =
            format!("set -e\ncd /root\n{}", commands.replace("apt-get install .", "apt-get install -y ."));
        within_limit(self.enter().args(["bash", "-c", &commands]))
    }

    /// Starts the origin with the rights of its unit, and waits until it reports its readiness.
    #[track_caller]
    pub fn start_origin(&mut self) {
        self.start("origin", &format!("{ORIGIN} /usr/bin/syncd-origin serve"));
    }

    /// Starts the agent, and waits until it reports its readiness.
    #[track_caller]
    pub fn start_agent(&mut self) {
        self.start("agent", "/usr/bin/syncd-agent run");
    }

    #[track_caller]
    fn start(&mut self, name: &str, line: &str) {
        let reports = self.path("run").join(format!("{name}.notify"));
        match fs::remove_file(&reports) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                panic!("remove {}: {error}", reports.display())
            }
            _ => {}
        }
        let socket = UnixDatagram::bind(&reports).expect("listen for reports");
        socket.set_read_timeout(Some(Duration::from_secs(120))).expect("set a limit");
        within_limit(Command::new("chmod").arg("666").arg(&reports)).expect_success();
        let mut command = self.enter();
        command.args(line.split_whitespace()).env("NOTIFY_SOCKET", format!("/run/{name}.notify"));
        self.services.push(Daemon::start(&mut command, self.scene.directory(), name));
        let mut report = [0; 64];
        let length =
            socket.recv(&mut report).unwrap_or_else(|error| panic!("{name} reports nothing: {error}"));
        assert_eq!(&report[..length], b"READY=1\n", "{name}");
    }

    /// Stops all services.
    #[track_caller]
    pub fn stop(&mut self) {
        for mut service in self.services.drain(..) {
            assert_eq!(service.stop(), Some(0), "{}", service.log());
        }
    }

    /// Reads a page all the time, from inside, until [`Reader::expect_every_page`].
    #[track_caller]
    pub fn start_reader(&self, page: &str, content: &str) -> Reader<'_> {
        let script = format!(
            "while [ ! -e /run/reader.stop ]; do\n\
                 answer=$(exec 3<>/dev/tcp/127.0.0.1/80 && printf 'GET {page} HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3)\n\
                 case $answer in *{content}) echo >>/run/reader.read ;; *) echo \"$answer\" >>/run/reader.failed ;; esac\n\
             done\n"
        );
        fs::write(self.path("root/reader"), script).expect("write a script");
        self.run("touch /run/reader.read /run/reader.failed\nsystemd-run --unit=reader bash /root/reader")
            .expect_success();
        let reader = Reader { machine: self };
        reader.wait_for(10);
        reader
    }

    /// Has Apache serve the replica, as docs/apache.md says.
    #[track_caller]
    pub fn serve_by_apache(&self) {
        for step in syncd_tests::instructions("apache.md", "## The simple way") {
            self.run(&format!("cd /usr/share/syncd\n{step}")).expect_success();
        }
        self.run("apache2ctl start").expect_success();
    }
}

/// Reads a page of a booted machine.
pub struct Reader<'a> {
    machine: &'a Machine,
}

impl Reader<'_> {
    fn count(&self) -> u64 {
        let read = self.machine.run("wc -l </run/reader.read").expect_success();
        read.only_line().trim().parse().expect("a number of lines")
    }

    #[track_caller]
    fn wait_for(&self, more: u64) {
        let reached = self.count() + more;
        wait::until("pages to be read", || (self.count() >= reached).then_some(()));
    }

    /// Ends, and fails unless every request was answered with the page.
    #[track_caller]
    pub fn expect_every_page(self) {
        self.wait_for(10);
        self.machine.run("touch /run/reader.stop").expect_success();
        let failed = self.machine.run("cat /run/reader.failed").expect_success();
        assert_eq!(failed.stdout, "", "failed requests beside {} pages", self.count());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.leader.is_some() {
            // Its mounts end with the container.
            self.services.iter_mut().for_each(|container| _ = container.stop());
            return;
        }
        self.services.clear();
        let unmount = "apache2ctl stop || :\numount -l /run /tmp /dev /proc";
        let _ = within_limit(self.enter().args(["bash", "-c", unmount]));
    }
}
