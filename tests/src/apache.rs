//! A real Apache with its own ServerRoot, port and configuration.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::{Daemon, run};
use crate::scene::{is_root, require_program};
use crate::{Scene, http, wait};

/// Kind of DocumentRoot.
pub enum DocumentRoot {
    /// The `live` link, which every request resolves again.
    LiveLink,
    /// The directory `live` of an agent with `--swap exchange`, by an Apache that follows no symlinks.
    LiveDirectory,
    /// The slot, resolved once for each generation: a hook writes `Define SYNCD_LIVE` and reloads gracefully.
    Resolved,
    /// This directory, whatever is live, with mod_php as Debian configures it.
    Php(PathBuf),
}

/// A running Apache that serves one replica, with sendfile and mmap on.
pub struct Apache {
    /// `HOST:PORT`.
    pub address: String,
    directory: PathBuf,
    replica: PathBuf,
    logs: PathBuf,
    daemon: Option<Daemon>,
}

impl Apache {
    /// Writes a configuration for the replica in `root` (an agent's ROOT), without starting Apache.
    #[track_caller]
    pub fn configured(scene: &Scene, name: &str, root: &Path, document_root: &DocumentRoot) -> Self {
        Self::configured_at(scene, name, &format!("127.0.0.1:{}", free_port()), root, document_root)
    }

    /// Like [`Self::configured`], at an address of this machine.
    #[track_caller]
    pub fn configured_at(
        scene: &Scene,
        name: &str,
        address: &str,
        root: &Path,
        document_root: &DocumentRoot,
    ) -> Self {
        let directory = scene.new_directory(name);
        let apache = Self {
            address: address.to_owned(),
            directory,
            replica: root.to_path_buf(),
            logs: scene.directory().to_path_buf(),
            daemon: None,
        };
        fs::write(apache.configuration(), apache.configuration_text(document_root))
            .expect("write httpd.conf");
        fs::write(apache.hook(), apache.hook_text()).expect("write the hook");
        fs::set_permissions(apache.hook(), fs::Permissions::from_mode(0o755))
            .expect("make the hook executable");
        apache
    }

    /// The `--on-activate` hook: resolves the document root for the new generation, reloads gracefully, and
    /// waits until the new configuration serves. A reload during another reload can be lost.
    pub fn hook(&self) -> PathBuf {
        self.directory.join("reload")
    }

    fn configuration(&self) -> PathBuf {
        self.directory.join("httpd.conf")
    }

    fn configuration_text(&self, document_root: &DocumentRoot) -> String {
        let (directory, replica, address) = (self.directory.display(), self.replica.display(), &self.address);
        let account = if is_root() { "User www-data\nGroup www-data\n" } else { "" };
        let root = match document_root {
            DocumentRoot::Resolved => format!(
                "IncludeOptional {directory}/generation.conf\n<IfDefine !SYNCD_LIVE>\n\
                 \x20 Define SYNCD_LIVE {replica}/live\n  Define SYNCD_GENERATION unknown\n</IfDefine>\n\
                 Header always set X-Syncd-Generation \"${{SYNCD_GENERATION}}\"\nDocumentRoot \"${{SYNCD_LIVE}}\"\n"
            ),
            DocumentRoot::LiveLink | DocumentRoot::LiveDirectory => {
                format!("DocumentRoot \"{replica}/live\"\n")
            }
            DocumentRoot::Php(path) => format!(
                "DocumentRoot \"{0}\"\n<Directory \"{0}\">\n  Require all granted\n</Directory>\n\
                 <FilesMatch \"\\.php$\">\n  SetHandler application/x-httpd-php\n</FilesMatch>\n",
                path.display()
            ),
        };
        let links = match document_root {
            DocumentRoot::LiveDirectory => "None",
            _ => "FollowSymLinks",
        };
        let workers = match document_root {
            // PHP's modules do not support threads.
            DocumentRoot::Php(_) => format!(
                "LoadModule mpm_prefork_module {MODULES}/mod_mpm_prefork.so\n\
                 LoadModule php_module {}\nStartServers 2\nMaxRequestWorkers 4\n",
                php_module().display()
            ),
            DocumentRoot::LiveLink | DocumentRoot::LiveDirectory | DocumentRoot::Resolved => format!(
                "LoadModule mpm_event_module {MODULES}/mod_mpm_event.so\n\
                 StartServers 2\nServerLimit 32\nThreadsPerChild 16\nThreadLimit 16\nMaxRequestWorkers 64\n\
                 MinSpareThreads 16\nMaxSpareThreads 64\n"
            ),
        };
        format!(
            "ServerRoot \"{directory}\"\nServerName localhost\nListen {address}\nPidFile {directory}/httpd.pid\n\
             DefaultRuntimeDir {directory}\nErrorLog {directory}/error.log\nLogLevel warn\n\
             {workers}LoadModule authz_core_module {MODULES}/mod_authz_core.so\n\
             LoadModule headers_module {MODULES}/mod_headers.so\n\
             LoadModule dir_module {MODULES}/mod_dir.so\n{account}\
             EnableSendfile On\nEnableMMAP On\nKeepAlive Off\nTimeout 120\n{root}\
             <Directory \"{replica}\">\n  Options {links}\n  AllowOverride None\n  Require all granted\n\
             </Directory>\n"
        )
    }

    fn hook_text(&self) -> String {
        let (directory, address) = (self.directory.display(), &self.address);
        format!(
            "#!/bin/sh\n\
             # Points the document root at the new generation and reloads Apache gracefully.\n\
             printf 'Define SYNCD_LIVE %s\\nDefine SYNCD_GENERATION %s\\n' \"$SYNCD_TREE\" $SYNCD_GENERATION \
             > {directory}/generation.conf.new\n\
             mv {directory}/generation.conf.new {directory}/generation.conf\n\
             [ -e {directory}/httpd.pid ] || exit 0\n\
             for attempt in 1 2 3 4 5; do\n\
             \x20 kill -USR1 \"$(cat {directory}/httpd.pid)\" || exit 1\n\
             \x20 for moment in $(seq 25); do\n\
             \x20   curl -sI http://{address}/ | grep -q \"X-Syncd-Generation: $SYNCD_GENERATION\\b\" && exit 0\n\
             \x20   sleep 0.02\n\
             \x20 done\n\
             done\n\
             echo \"apache does not serve generation $SYNCD_GENERATION\" >&2\n\
             exit 1\n"
        )
    }

    /// Adds the shipped fallback to static files of the generation before.
    pub fn with_previous(self) -> Self {
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/apache/syncd-previous.conf");
        let shipped = fs::read_to_string(shipped).expect("read the shipped fallback");
        let shipped = shipped.replace("/var/lib/syncd/agent", &self.replica.display().to_string());
        let text = fs::read_to_string(self.configuration()).expect("read httpd.conf");
        let load = format!("LoadModule rewrite_module {MODULES}/mod_rewrite.so\n");
        fs::write(self.configuration(), format!("{load}{text}{shipped}")).expect("write httpd.conf");
        self
    }

    /// Adds the shipped rules for the collected directory at `path` of the tree.
    pub fn with_collected(self, path: &str) -> Self {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/apache");
        for name in ["syncd-collected.conf", "syncd-collected-rules.conf"] {
            let text = fs::read_to_string(shipped.join(name)).expect("read the shipped rules");
            let text = text.replace("/var/lib/syncd/agent", &self.replica.display().to_string());
            let text = text.replace("wp-content/uploads", path);
            let text = text.replace("conf-available", &self.directory.display().to_string());
            fs::write(self.directory.join(name), text).expect("write the rules");
        }
        let text = fs::read_to_string(self.configuration()).expect("read httpd.conf");
        let include = format!("Include {}/syncd-collected.conf\n", self.directory.display());
        fs::write(self.configuration(), format!("{text}{include}")).expect("write httpd.conf");
        self
    }

    /// Starts Apache and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        let program = require_program("apache2", "apache2");
        require_program("curl", "curl");
        let check = run(Command::new(&program).arg("-t").arg("-f").arg(self.configuration()));
        assert_eq!(check.code, Some(0), "the generated configuration holds: {check:#?}");
        let mut command = Command::new(program);
        command.arg("-f").arg(self.configuration()).arg("-DFOREGROUND");
        // mpm_prefork stops by a signal to its whole process group.
        command.process_group(0);
        let name = self.directory.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let mut daemon = Daemon::start(&mut command, &self.logs, &name);
        wait::until("Apache to answer", || {
            if let Some(status) = daemon.ended() {
                panic!("Apache ended at once, {status}:\n{}{}", daemon.log(), self.error_log());
            }
            http::get(&self.address, "/").ok()
        });
        self.daemon = Some(daemon);
    }

    /// Stops Apache at once.
    pub fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.stop();
        }
    }

    /// Stops and starts Apache.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Contents of the error log.
    pub fn error_log(&self) -> String {
        fs::read_to_string(self.directory.join("error.log")).unwrap_or_default()
    }

    /// Sends `GET path`. The answer must be complete and have status 200.
    #[track_caller]
    pub fn get(&self, path: &str) -> http::Response {
        let response = http::get(&self.address, path).unwrap_or_else(|broken| panic!("GET {path}: {broken}"));
        assert_eq!(response.status, 200, "GET {path}: {}", response.head);
        response
    }

    /// Asserts that the server answers `path` with exactly the contents of the file.
    #[track_caller]
    pub fn assert_serves(&self, path: &str, file: &Path) {
        let expected = fs::read(file).expect("read the expected file");
        assert!(self.get(path).body == expected, "{path} is not what {} has", file.display());
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("---- Apache's error log ----\n{}----", self.error_log());
        }
        // SIGTERM first, because children of a killed parent would survive.
        if let Some(daemon) = &mut self.daemon {
            daemon.signal(rustix::process::Signal::TERM);
            for _ in 0..200 {
                if daemon.ended().is_some() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
}

const MODULES: &str = "/usr/lib/apache2/modules";

/// The mod_php library, whatever its version.
#[track_caller]
fn php_module() -> PathBuf {
    let modules = fs::read_dir(MODULES).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_php =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libphp"));
    modules.into_iter().find(is_php).unwrap_or_else(|| {
        panic!("mod_php is missing: apt-get install libapache2-mod-php, or run ./tests/run as root")
    })
}

/// A port for a program that is started with its number. It is below those that the kernel gives to
/// connections and to listeners on port 0, so that nothing takes it before the program does, or while the
/// program is away. Each call of a process returns another one.
pub fn free_port() -> u16 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    // Test programs that run beside each other begin elsewhere.
    let first = std::process::id().wrapping_mul(101);
    let ports = std::iter::repeat_with(|| first.wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed)));
    let mut ports = ports.map(|port| 10_000 + (port % 20_000) as u16).take(20_000);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Clients, page};
    use std::os::unix::fs::symlink;

    /// Lays out a replica as an agent would, and switches it by hand.
    fn switch(root: &Path, number: u64) {
        let tree = root.join(format!("generations/{number}"));
        fs::create_dir_all(&tree).expect("create a tree");
        fs::write(tree.join("index.html"), "site").expect("write a page");
        for n in 0..4 {
            fs::write(tree.join(format!("page-{n}.html")), page(number, n)).expect("write a page");
        }
        symlink(format!("generations/{number}"), root.join("live.new")).expect("create a symlink");
        fs::rename(root.join("live.new"), root.join("live")).expect("switch");
    }

    #[test]
    fn the_hook_moves_a_resolved_root_without_a_failed_request() {
        let scene = Scene::new("apache");
        let root = scene.new_directory("replica");
        switch(&root, 1);
        let mut apache = Apache::configured(&scene, "apache", &root, &DocumentRoot::Resolved);
        apache.start();
        let clients = Clients::start(&apache.address, 4, 2);
        for number in 2..12 {
            switch(&root, number);
            let tree = root.join(format!("generations/{number}"));
            let mut hook = Command::new(apache.hook());
            run(hook.env("SYNCD_GENERATION", number.to_string()).env("SYNCD_TREE", tree)).expect_success();
            apache.assert_serves("/page-0.html", &root.join(format!("generations/{number}/page-0.html")));
        }
        let verdict = clients.finish();
        assert!(verdict.requests > 20 && verdict.newest == 11, "{verdict:?}");
        assert_eq!((verdict.failed, verdict.mixed), (0, 0), "{verdict:?}");
    }

    #[test]
    fn a_web_server_sees_the_switch_through_the_live_link() {
        let scene = Scene::new("apache-live");
        let root = scene.new_directory("replica");
        switch(&root, 1);
        let mut apache = Apache::configured(&scene, "apache", &root, &DocumentRoot::LiveLink);
        apache.start();
        switch(&root, 2);
        apache.assert_serves("/page-1.html", &root.join("generations/2/page-1.html"));
        apache.restart();
        apache.assert_serves("/page-1.html", &root.join("generations/2/page-1.html"));
    }
}
