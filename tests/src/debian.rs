//! A Debian web server of the test's own, on which a page of the guide is followed word by word.
//!
//! The test runs in namespaces of its own ([`crate::trouble::in_own_machine`]). There this module mounts copies of `/etc` and of
//! the state of Debian's tools, and an empty `/run`, so that `a2ensite` and `apache2ctl` change nothing of the machine. systemd is not
//! there: [`SYSTEMCTL`] does for the units of the page what it would do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{Outcome, run, run_within};
use crate::scene::require_program;
use crate::{Scene, binary};

/// `systemctl` for Apache's unit with its drop-in and for PHP-FPM's, and a note that the agent is to be restarted.
const SYSTEMCTL: &str = r#"#!/bin/bash
set -eu
drop_in=/etc/systemd/system/apache2.service.d/syncd.conf
is_active() { [ -e /run/apache2/apache2.pid ]; }
start() {
    if [ -e $drop_in ]; then
        sed -n 's/^ExecStartPre=-//p' $drop_in | while read -r line; do env -i PATH="$PATH" sh -c "$line" || true; done
    fi
    env -i PATH="$PATH" apache2ctl start
}
stop() {
    apache2ctl stop
    # systemd waits for all processes.
    while find /proc/[0-9]*/exe -lname "*/apache2" 2>/dev/null | grep -q .; do sleep 0.02; done
}
fpm_pid() { cat "/run/php/$1.pid" 2>/dev/null; }
stop_fpm() {
    local pid
    pid=$(fpm_pid "$1") || return 0
    kill "$pid"
    while [ -e "/proc/$pid/exe" ]; do sleep 0.02; done
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

/// The machine. Its processes and mounts end with the test's namespaces.
pub struct Debian {
    tools: PathBuf,
    path: String,
}

impl Debian {
    /// Debian's Apache as installed, stopped. The replica's place, `/var/lib/syncd/agent`, is empty. Panics where
    /// mounting is not allowed.
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

    /// The version of the PHP that is installed, as in `8.2`.
    #[track_caller]
    pub fn php(&self) -> String {
        require_program("phpquery", "php-fpm");
        self.follow("phpquery -V").only_line().to_owned()
    }

    /// Runs lines of the guide as root, in a checkout of syncd; each must succeed.
    #[track_caller]
    pub fn follow(&self, lines: &str) -> Outcome {
        self.try_lines(lines).expect_success()
    }

    /// Runs lines as [`Self::follow`] does; they may fail.
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

    /// What the agent's command line begins with so that it finds this machine's tools, has the variables of a file as
    /// systemd's `EnvironmentFile=-` has it, and may do no more than its unit lets it.
    pub fn environment(&self, file: &str) -> Vec<std::ffi::OsString> {
        let variables = fs::read_to_string(file).unwrap_or_default();
        let unquoted = |line: &str| line.replace('\'', "");
        let lines = variables.lines().map(unquoted);
        let set = ["setpriv".to_owned(), format!("--bounding-set={}", bounding_set())];
        let path = ["env".to_owned(), format!("PATH={}", self.path)];
        set.into_iter().chain(path).chain(lines).map(Into::into).collect()
    }

    /// Whether the guide had the agent restarted since this was last asked.
    pub fn agent_is_to_restart(&self) -> bool {
        fs::remove_file(self.tools.join("restart-agent")).is_ok()
    }

    /// Starts the machine's Apache anew after all processes are gone and `/run` is empty.
    #[track_caller]
    pub fn boot(&self, with_systemd: bool) {
        self.follow(
            "! systemctl is-active apache2 || systemctl stop apache2\nrm -rf /run/*; mkdir /run/lock",
        );
        if with_systemd {
            // How programs learn that systemd runs: sd_booted(3).
            self.follow("mkdir -p /run/systemd/system");
        }
        self.follow("systemctl start apache2");
    }

    /// `curl URL`: the status and the body; status 0 where nothing answers.
    #[track_caller]
    pub fn curl(&self, url: &str) -> (u16, String) {
        self.curl_with(&[url])
    }

    /// `curl -I URL`: the status and the headers.
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

    /// Processes of Apache that have not ended.
    pub fn apache_processes(&self) -> usize {
        let programs = fs::read_dir("/proc").expect("list processes");
        let links = programs.filter_map(|entry| fs::read_link(entry.ok()?.path().join("exe")).ok());
        links.filter(|program| program.ends_with("apache2")).count()
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        // The scene's directory can't be removed below a mount of its own parts.
        let _ = run(&mut self.shell("systemctl stop apache2 || :\numount -l /var/lib/syncd /var/lib /etc"));
    }
}

/// The capabilities of the agent's unit, as setpriv takes them.
fn bounding_set() -> String {
    const UNIT: &str = include_str!("../../packaging/syncd-agent.service");
    let line = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = line.expect("the unit bounds capabilities").split(' ');
    names.fold("-all".to_owned(), |set, name| {
        format!("{set},+{}", name.trim_start_matches("CAP_").to_lowercase())
    })
}

/// The blocks of commands (```` ```sh ````) below a heading of a page of the guide, up to the next heading of that level.
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
