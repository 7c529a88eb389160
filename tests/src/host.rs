//! A Debian host with an address of its own, one of several in a test, on which a page of the guide is
//! followed.
//!
//! Each host has its own network, mounts, processes and host name: copies of `/etc` and of the state of
//! Debian's tools, and empty `/run`, `/srv` and `/var/log`. The test itself runs in namespaces
//! ([`crate::trouble::in_own_machine`]), where a bridge joins the hosts. systemd is missing: `systemctl`
//! is a script that knows the units of the page. A host's files are in memory, because deleting them from a
//! busy disk takes longer than the test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::debian::SYSTEMCTL;
use crate::process::{Daemon, Outcome, run_within, tool};
use crate::{Scene, binary, wait};

/// `systemctl` for the database, the balancer and syncd. Other units are those of a web server.
const UNITS: &str = r#"#!/bin/bash
set -eu
start() {
    local name=$1
    shift
    setsid env -i PATH="$PATH" "$@" >>"/var/log/$name.log" 2>&1 </dev/null &
    echo $! >"/run/$name.pid"
}
# As Type=notify: returns once the service is ready.
start_notifying() {
    local name=$1 socket=/run/$1.notify
    shift
    rm -f "$socket" "/run/$name.ready"
    start "$name.notify" socat -u "UNIX-RECV:$socket" "OPEN:/run/$name.ready,creat,append"
    until [ -S "$socket" ]; do sleep 0.02; done
    start "$name" NOTIFY_SOCKET="$socket" "$@"
    until grep -qs READY=1 "/run/$name.ready"; do
        if ! kill -0 "$(cat "/run/$name.pid")" 2>/dev/null; then
            tail "/var/log/$name.log" >&2
            exit 1
        fi
        sleep 0.02
    done
}
stop() {
    local pid
    pid=$(cat "/run/$1.pid" 2>/dev/null) || return 0
    kill "${2:--TERM}" "$pid" 2>/dev/null || :
    while grep -qs ") [^ZX]" "/proc/$pid/stat"; do sleep 0.02; done
}
variables() { [ ! -e "$1" ] || sed "s/'//g" "$1"; }
case "$*" in
"restart mariadb")
    stop mariadb
    mkdir -p /run/mysqld
    chown mysql: /run/mysqld
    start mariadb mariadbd --user=mysql
    for _ in {1..600}; do
        mariadb-admin --silent ping >/dev/null 2>&1 && exit
        sleep 0.1
    done
    tail /var/log/mariadb.log >&2
    exit 1
    ;;
"restart haproxy") stop haproxy; mkdir -p /run/haproxy; start haproxy haproxy -W -db -f /etc/haproxy/haproxy.cfg ;;
"reload haproxy") kill -USR2 "$(cat /run/haproxy.pid)" ;;
"start syncd-origin") start_notifying syncd-origin syncd-origin serve ;;
"stop syncd-origin") stop syncd-origin ;;
"kill syncd-origin") stop syncd-origin -KILL ;;
"start syncd-agent" | "restart syncd-agent")
    stop syncd-agent
    mapfile -t variables < <(variables /etc/syncd/agent.env)
    start_notifying syncd-agent "${variables[@]}" syncd-agent run
    ;;
*) exec "$(dirname "$0")/web-units" "$@" ;;
esac
"#;
/// Time limit of commands of the page.
const LIMIT: Duration = Duration::from_secs(300);

/// Joins hosts by a bridge in the namespace of the test.
#[track_caller]
pub fn network() {
    shell("ip link add hosts type bridge && ip address add 10.0.0.1/24 dev hosts && ip link set hosts up");
}

#[track_caller]
fn shell(lines: &str) {
    tool("sh", ["-ec", lines]);
}

/// The host. Its processes and mounts end when it is dropped.
pub struct Host {
    pub name: String,
    pub address: String,
    path: String,
    /// First process of its namespaces, as seen from the test.
    first: String,
    namespaces: Daemon,
}

impl Host {
    /// A host as installed: packages are there, and nothing runs. `hosts` are lines of `/etc/hosts`.
    #[track_caller]
    pub fn new(scene: &Scene, name: &str, address: &str, hosts: &str) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let directory = scene.new_directory(&format!("{name}-{}", MADE.fetch_add(1, Ordering::Relaxed)));
        let tools = directory.join("tools");
        fs::create_dir(&tools).expect("create a directory");
        for (file, text) in [("systemctl", UNITS), ("web-units", SYSTEMCTL)] {
            let file = tools.join(file);
            fs::write(&file, text).expect("write a systemctl");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("make it executable");
        }
        let programs = binary("syncd-agent").parent().expect("a directory of programs").to_path_buf();
        let path = format!(
            "{}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            tools.display(),
            programs.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]);
        let namespaces = Daemon::start(command.args(["sleep", "infinity"]), &directory, "namespaces");
        let children = format!("/proc/{0}/task/{0}/children", namespaces.pid());
        let first = wait::until("the host's first process", || {
            let child = fs::read_to_string(&children).ok()?.trim().to_owned();
            let is_ready = fs::read_to_string(format!("/proc/{child}/comm")).ok()?.trim() == "sleep";
            is_ready.then_some(child)
        });
        let host = Self { name: name.to_owned(), address: address.to_owned(), path, first, namespaces };
        host.connect();
        host.prepare(&directory, hosts);
        host
    }

    fn connect(&self) {
        let Self { name, first, address, .. } = self;
        shell(&format!(
            "ip link delete to-{name} 2>/dev/null || :\n\
            ip link add to-{name} type veth peer name eth0 netns {first}\n\
            ip link set to-{name} master hosts up"
        ));
        self.follow(&format!(
            "hostname {name}; ip link set lo up\n\
            ip address add {address}/24 dev eth0; ip link set eth0 up"
        ));
    }

    fn prepare(&self, directory: &std::path::Path, hosts: &str) {
        self.follow(&format!(
            "checkout=$PWD; mkdir {0}/machine && mount -t tmpfs none {0}/machine && cd {0}/machine\n\
             cp -a /etc etc && mount --bind etc /etc && mkdir -p lib/syncd/agent lib/syncd/origin\n\
             for state in apache2 php mysql; do\n\
             [ ! -e /var/lib/$state ] || cp -a --sparse=always /var/lib/$state lib/; done\n\
             mkdir -p lib/apache2 && mount --bind lib /var/lib\n\
             mkdir srv && mount --bind srv /srv\n\
             for empty in /run /usr/local/lib /var/log /var/cache; do mount -t tmpfs none $empty; done\n\
             mkdir -p /run/lock /run/systemd/system /var/log/apache2 /etc/syncd /etc/cron.d\n\
             install -m 644 $checkout/packaging/etc/*.toml /etc/syncd/\n\
             : >/etc/resolv.conf\n\
             printf '127.0.0.1 localhost\\n{1}\\n' >/etc/hosts\n\
             a2dissite -q '*' && a2ensite -q 000-default",
            directory.display(),
            hosts.replace('\n', "\\n")
        ));
    }

    /// Runs lines of the guide as root, in a checkout of syncd. Each must succeed.
    #[track_caller]
    pub fn follow(&self, lines: &str) -> Outcome {
        self.try_lines(lines).expect_success()
    }

    /// Like [`Self::follow`], but the lines may fail.
    #[track_caller]
    pub fn try_lines(&self, lines: &str) -> Outcome {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first, "--net", "--mount", "--pid", "--uts"]);
        command.arg(concat!("--wd=", env!("CARGO_MANIFEST_DIR"), "/..")).args(["sh", "-ec", lines]);
        command.env("PATH", &self.path).env("LC_ALL", "C.UTF-8");
        run_within(&mut command, LIMIT)
    }

    /// Everything that a service has logged.
    #[track_caller]
    pub fn log(&self, file: &str) -> String {
        self.try_lines(&format!("cat /var/log/{file}")).stdout
    }

    /// A path of this host, as seen from the test.
    pub fn outside(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.first).into()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The first process of a namespace ignores other signals. All others end with it.
        self.namespaces.kill9();
    }
}
