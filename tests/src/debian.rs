//! A Debian web server for one test, on which a page of the guide is followed word by word.
//!
//! The test runs in its own namespaces ([`crate::trouble::in_own_machine`]). This module mounts copies of
//! `/etc` and of the state of Debian's tools there, and an empty `/run`, so that `a2ensite` and `apache2ctl`
//! change nothing on the machine. systemd is missing, and [`SYSTEMCTL`] replaces it for the units of the
//! page.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{Outcome, run, run_within};
use crate::scene::require_program;
use crate::{Scene, binary};

/// `systemctl` for Apache's unit with its drop-in and for PHP-FPM's. Also notes when the agent should be
/// restarted.
pub(crate) const SYSTEMCTL: &str = r#"#!/bin/bash
set -eu
drop_in=/etc/systemd/system/apache2.service.d/syncd.conf
is_active() { [ -e /run/apache2/apache2.pid ]; }
start() {
    if [ -e $drop_in ]; then
        sed -n 's/^ExecStartPre=-//p' $drop_in | while read -r line; do env -i PATH="$PATH" sh -c "$line" || true; done
    fi
    env -i PATH="$PATH" apache2ctl start
    # Apache returns before it writes this file, and systemd waits for it.
    until is_active; do sleep 0.02; done
}
stop() {
    apache2ctl stop
    # systemd waits for all processes. A process that ends loses /proc/PID/exe before its sockets are closed;
    # its state says Z only afterwards.
    while cat /proc/[0-9]*/stat 2>/dev/null | grep -q "(apache2) [^ZX]"; do sleep 0.02; done
}
fpm_pid() { cat "/run/php/$1.pid" 2>/dev/null; }
stop_fpm() {
    local pid
    pid=$(fpm_pid "$1") || return 0
    kill "$pid"
    while grep -qs ") [^ZX]" "/proc/$pid/stat"; do sleep 0.02; done
}
start_fpm() {
    local version=${1#php}
    version=${version%-fpm}
    mkdir -p /run/php
    env -i PATH="$PATH" "php-fpm$version" -D -y "/etc/php/$version/fpm/php-fpm.conf"
}
case "$*" in
daemon-reload) ;;
"restart php"*-fpm) stop_fpm "$2"; start_fpm "$2" ;;
"reload php"*-fpm) kill -USR2 "$(fpm_pid "$2")" ;;
"start apache2") start ;;
"stop apache2") stop ;;
"restart apache2") ! is_active || stop; start ;;
"reload apache2") is_active && apache2ctl graceful ;;
"try-reload-or-restart apache2") ! is_active || apache2ctl graceful ;;
"show --property MainPID --value apache2") cat /run/apache2/apache2.pid ;;
"is-active apache2") if is_active; then echo active; else echo inactive; exit 3; fi ;;
"restart syncd-agent") : >"$(dirname "$0")/restart-agent" ;;
*) echo "systemctl $*: not known here" >&2; exit 2 ;;
esac
"#;

/// The server. Its processes and mounts end with the test's namespaces.
pub struct Debian {
    tools: PathBuf,
    path: String,
}

impl Debian {
    /// Debian's Apache as installed, stopped. The replica's directory, `/var/lib/syncd/agent`, is empty.
    /// Panics if mounting is not permitted.
    #[track_caller]
    pub fn new(scene: &Scene) -> Self {
        require_program("apache2ctl", "apache2");
        require_program("curl", "curl");
        let tools = scene.new_directory("tools");
        let systemctl = tools.join("systemctl");
        fs::write(&systemctl, SYSTEMCTL).expect("write a systemctl");
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).expect("make it executable");
        let programs = binary("syncd-agent").parent().expect("a directory of programs").to_path_buf();
        let path = format!(
            "{}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            tools.display(),
            programs.display()
        );
        let debian = Self { tools, path };
        let copies = scene.new_directory("machine");
        debian.follow(&format!(
            "cd {}\n\
             cp -a /etc etc && mount --bind etc /etc\n\
             mkdir -p var/lib/apache2 var/syncd/agent\n\
             for state in apache2 php; do [ ! -e /var/lib/$state ] || cp -a /var/lib/$state var/lib/; done\n\
             mount --bind var/lib /var/lib && mkdir -p /var/lib/syncd && mount --bind var/syncd /var/lib/syncd\n\
             mount -t tmpfs none /run && mkdir /run/lock\n\
             mount -t tmpfs none /usr/local/lib\n\
             mount -t tmpfs none /var/log && mkdir /var/log/apache2\n\
             a2dissite -q '*' && a2ensite -q 000-default",
            copies.display()
        ));
        debian
    }

    /// The agent's ROOT, as in the guide.
    pub fn root(&self) -> &Path {
        Path::new("/var/lib/syncd/agent")
    }

    /// Version of the installed PHP, as in `8.2`.
    #[track_caller]
    pub fn php(&self) -> String {
        require_program("phpquery", "php-fpm");
        self.follow("phpquery -V").only_line().to_owned()
    }

    /// Runs lines of the guide as root, in a checkout of syncd. Each must succeed.
    #[track_caller]
    pub fn follow(&self, lines: &str) -> Outcome {
        self.try_lines(lines).expect_success()
    }

    /// Like [`Self::follow`], but the lines may fail.
    #[track_caller]
    pub fn try_lines(&self, lines: &str) -> Outcome {
        run_within(&mut self.shell(lines), Duration::from_secs(60))
    }

    fn shell(&self, lines: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-ec", lines]).env("PATH", &self.path);
        command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        command
    }

    /// Prefix of the agent's command line that provides this server's tools, the variables of a file as with
    /// systemd's `EnvironmentFile=-`, and the capabilities of its unit.
    pub fn environment(&self, file: &str) -> Vec<std::ffi::OsString> {
        let variables = fs::read_to_string(file).unwrap_or_default();
        let unquoted = |line: &str| line.replace('\'', "");
        let lines = variables.lines().map(unquoted);
        let set = ["setpriv".to_owned(), format!("--bounding-set={}", bounding_set())];
        let path = ["env".to_owned(), format!("PATH={}", self.path)];
        set.into_iter().chain(path).chain(lines).map(Into::into).collect()
    }

    /// Whether the guide restarted the agent since the last call.
    pub fn agent_is_to_restart(&self) -> bool {
        fs::remove_file(self.tools.join("restart-agent")).is_ok()
    }

    /// Starts Apache as after a boot: with no processes left and an empty `/run`.
    #[track_caller]
    pub fn boot(&self, with_systemd: bool) {
        self.follow(
            "! systemctl is-active apache2 || systemctl stop apache2\nrm -rf /run/*; mkdir /run/lock",
        );
        if with_systemd {
            // Tells programs that systemd runs: sd_booted(3).
            self.follow("mkdir -p /run/systemd/system");
        }
        self.follow("systemctl start apache2");
    }

    /// `curl URL`: status and body. Status 0: no answer.
    #[track_caller]
    pub fn curl(&self, url: &str) -> (u16, String) {
        self.curl_with(&[url])
    }

    /// `curl -I URL`: status and headers.
    #[track_caller]
    pub fn curl_head(&self, url: &str) -> (u16, String) {
        self.curl_with(&["-I", url])
    }

    #[track_caller]
    fn curl_with(&self, words: &[&str]) -> (u16, String) {
        let mut command = Command::new("curl");
        let outcome = run(command.args(["-s", "--max-time", "20", "-w", "\n%{http_code}"]).args(words));
        let (body, status) = outcome.stdout.rsplit_once('\n').expect("curl writes the status");
        (status.parse().expect("a number"), body.to_owned())
    }

    /// Number of Apache's processes that have not ended.
    pub fn apache_processes(&self) -> usize {
        let programs = fs::read_dir("/proc").expect("list processes");
        let links = programs.filter_map(|entry| fs::read_link(entry.ok()?.path().join("exe")).ok());
        links.filter(|program| program.ends_with("apache2")).count()
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        // The scene's directory cannot be removed while parts of it are mounted.
        let _ = run(&mut self.shell("systemctl stop apache2 || :\numount -l /var/lib/syncd /var/lib /etc"));
    }
}

/// Capabilities of the agent's unit, in the syntax of setpriv.
fn bounding_set() -> String {
    const UNIT: &str = include_str!("../../packaging/systemd/syncd-agent.service");
    let line = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = line.expect("the unit bounds capabilities").split(' ');
    names.fold("-all".to_owned(), |set, name| {
        format!("{set},+{}", name.trim_start_matches("CAP_").to_lowercase())
    })
}

/// Blocks of commands (```` ```sh ````) below a heading of a page of the guide, up to the next heading of the
/// same level.
#[track_caller]
pub fn instructions(page: &str, heading: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let level = heading.split(' ').next().unwrap_or_default().to_owned() + " ";
    let mut lines = text.lines().skip_while(|line| *line != heading);
    assert_eq!(lines.next(), Some(heading), "{page} has this heading");
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in lines.take_while(|line| !line.starts_with(&level)) {
        match (line.trim(), &mut block) {
            ("```sh", None) => block = Some(String::new()),
            ("```", Some(_)) => blocks.extend(block.take()),
            (command, Some(block)) => {
                block.push_str(command);
                block.push('\n');
            }
            _ => {}
        }
    }
    assert!(!blocks.is_empty(), "{page} has commands below {heading}");
    blocks
}
