//! The Debian packages, built from the programs under test and installed in a clean Debian.

#[path = "packages/machine.rs"]
mod machine;
#[path = "packages/shipped.rs"]
mod shipped;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use machine::Machine;
use syncd_tests::process::{Outcome, run_within};
use syncd_tests::trouble::{in_own_machine_within, is_in_namespaces};
use syncd_tests::{Scene, binary, http, instructions, require_program, require_root, wait};

/// Deadline for everything that builds or installs: minutes on a busy machine.
const LIMIT: Duration = Duration::from_secs(1_200);
const PAGE: &str = "guide/install.md";

#[track_caller]
fn within_limit(command: &mut Command) -> Outcome {
    run_within(command, LIMIT)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Builds the packages from the programs under test.
#[track_caller]
fn build(directory: &Path, version: &str) {
    require_program("dpkg-shlibdeps", "dpkg-dev");
    let programs = binary("syncd-agent").parent().expect("programs are in a directory").to_owned();
    let mut command = Command::new(repository().join("packaging/deb/build"));
    command
        .arg(directory)
        .env("SYNCD_PROGRAMS", programs)
        .env("SYNCD_DEB_VERSION", version)
        // A commit during the test changes nothing.
        .env("SYNCD_COMMIT", "000000000000")
        .env("SOURCE_DATE_EPOCH", "1796000000")
        .env("SYNCD_DEB_COMPRESSION", "gzip");
    within_limit(&mut command).expect_success();
}

/// Compiles the packages as a release has them, in a clone of `revision` that lies in `directory`.
#[track_caller]
fn compile(directory: &Path, revision: &str, version: &str) -> PathBuf {
    let (sources, built) = (directory.join("sources"), directory.join("built"));
    let git = |arguments: &[&str]| {
        within_limit(Command::new("git").args(arguments).current_dir(repository())).expect_success()
    };
    git(&["clone", "--quiet", "--shared", ".", &sources.display().to_string()]);
    git(&["-C", &sources.display().to_string(), "checkout", "--quiet", revision]);
    let mut command = Command::new(sources.join("packaging/deb/build"));
    let of_this_run = std::env::vars_os().map(|(name, _)| name);
    for name in of_this_run.filter(|name| name.to_str().is_some_and(|name| name.starts_with("CARGO"))) {
        command.env_remove(name);
    }
    command.arg(&built).env("SYNCD_DEB_VERSION", version).env("CARGO_TARGET_DIR", directory.join("target"));
    run_within(&mut command, Duration::from_secs(7_200)).expect_success();
    built
}

/// Packages for an upgrade, old and new. The old ones have the same programs, or are compiled from the commit
/// that SYNCD_PACKAGES names.
#[track_caller]
fn two_versions() -> (PathBuf, PathBuf) {
    let Some(revision) = std::env::var("SYNCD_PACKAGES").ok() else {
        return (packages("1.0-1"), packages("2.0-1"));
    };
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages-before");
    static BUILT: Mutex<bool> = Mutex::new(false);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !is_in_namespaces() && !std::mem::replace(&mut *built, true) {
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).expect("make a directory");
        compile(&directory, &revision, "1.0-1");
    }
    (directory.join("built"), packages("2.0-1"))
}

#[test]
#[ignore = "compiles twice, half an hour: ./tests/run packages -- --include-ignored"]
fn two_builds_in_two_directories_are_identical() {
    let (one, other) = (Scene::new("one"), Scene::new("another-place"));
    let built = [one.directory(), &other.new_directory("deeper")].map(|directory| {
        let built = compile(directory, "HEAD", "1.0-1");
        let _ = fs::remove_dir_all(directory.join("target"));
        contents(&built)
    });
    for (name, bytes) in &built[0] {
        assert!(built[1].get(name) == Some(bytes), "{name} differs between two directories");
    }
    assert_eq!(built[0].len(), 5);
}

/// Directory with the packages of this version. Each is built once in a run of this suite.
#[track_caller]
fn packages(version: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("packages-{version}"));
    static BUILT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    // A test in namespaces of its own gets those that were built before it was started again.
    if !is_in_namespaces() && built.insert(version.to_owned()) {
        let _ = fs::remove_dir_all(&directory);
        build(&directory, version);
    }
    directory
}

fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(directory).expect("list packages").map(|entry| entry.expect("an entry"));
    files
        .map(|file| (file.file_name().display().to_string(), fs::read(file.path()).expect("read a package")))
        .collect()
}

#[test]
fn two_builds_are_identical_and_lintian_finds_no_error() {
    require_program("lintian", "lintian");
    let (one, other) = (packages("1.0-1"), Scene::new("packages"));
    build(other.directory(), "1.0-1");
    let (first, second) = (contents(&one), contents(other.directory()));
    let names: Vec<&str> = first.keys().map(|name| name.split('_').next().unwrap_or_default()).collect();
    let expected = ["syncd-agent-dbgsym", "syncd-agent", "syncd-doc", "syncd-origin-dbgsym", "syncd-origin"];
    assert_eq!(names, expected);
    for (name, bytes) in &first {
        assert!(second.get(name) == Some(bytes), "{name} differs between two builds");
    }
    let mut lintian = Command::new("lintian");
    lintian.args(["--fail-on", "error", "--allow-root"]);
    within_limit(lintian.args(first.keys().map(|name| one.join(name)))).expect_success();
}

/// Names below `packaging/` in the pages for operators.
fn files_named_by_the_guide() -> BTreeSet<String> {
    let docs = repository().join("docs");
    let pages = [docs.clone(), docs.join("guide")].into_iter().flat_map(|directory| {
        fs::read_dir(directory).expect("list pages").map(|page| page.expect("an entry").path())
    });
    let texts = pages.filter(|page| page.extension().is_some_and(|extension| extension == "md"));
    let texts: String = texts.map(|page| fs::read_to_string(page).expect("read a page")).collect();
    let is_part = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let names = texts.split("packaging/").skip(1);
    let names = names.map(|rest| rest.split(|c| !is_part(c)).next().unwrap_or_default());
    names.map(|name| format!("packaging/{}", name.trim_end_matches('.'))).collect()
}

#[test]
fn what_the_guide_has_operators_install_is_in_a_package() {
    let built = packages("1.0-1");
    let packages = ["syncd-agent", "syncd-origin"].map(|name| {
        let pattern = format!("dpkg-deb -c {}/{name}_1.0-1_*.deb", built.display());
        within_limit(Command::new("sh").args(["-c", &pattern])).expect_success().stdout
    });
    let named = files_named_by_the_guide();
    let shipped = |file: &str| {
        let line = format!(" ./usr/share/syncd/{file}\n");
        packages.iter().any(|listed| listed.contains(&line))
    };
    // Containers, and packages themselves, are built in a checkout.
    let for_a_checkout = ["packaging/container", "packaging/deb"];
    let files = named.iter().filter(|name| repository().join(name).is_file());
    let files: Vec<_> = files.filter(|name| !for_a_checkout.iter().any(|of| name.starts_with(of))).collect();
    assert!(files.len() > 12, "the pages name the files: {files:?}");
    let missing: Vec<_> = files.into_iter().filter(|file| !shipped(file)).collect();
    assert!(missing.is_empty(), "no package has {missing:?}");
}

#[test]
fn three_shells_complete_commands_and_options() {
    let (built, scene) = (packages("1.0-1"), Scene::new("completions"));
    for program in ["syncd-agent", "syncd-origin"] {
        let line = format!("dpkg-deb -x {}/{program}_1.0-1_*.deb .", built.display());
        within_limit(Command::new("sh").args(["-c", &line]).current_dir(scene.directory())).expect_success();
    }
    let share = scene.path("usr/share");
    let shell = |program: &str, package: &str, options: &[&str], script: String| {
        let mut shell = Command::new(require_program(program, package));
        shell.args(options).args(["-c", &script]).env("HOME", scene.directory());
        within_limit(shell.current_dir(scene.directory())).expect_success().stdout
    };
    for (program, command, option) in
        [("syncd-agent", "join", "--name"), ("syncd-origin", "commit", "--wait")]
    {
        // Words that bash offers after the words so far.
        let bash = |words: &str, word: usize| {
            let file = share.join("bash-completion/completions").join(program);
            let call = format!("COMP_WORDS=({program} {words}) COMP_CWORD={word}");
            let previous = if word == 1 { program } else { command };
            let current = words.split(' ').next_back().unwrap_or_default();
            // As `complete` calls the function, whose name bash knows.
            let function =
                format!("$(complete -p {program} | grep -o '_[^ ]*') {program} '{current}' {previous}");
            let script = format!(
                "source {}\n{call}\n{function}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
                file.display()
            );
            shell("bash", "bash", &["--norc"], script)
        };
        assert!(bash(&command[..3], 1).lines().any(|line| line == command), "{}", bash(&command[..3], 1));
        assert!(bash(&format!("{command} --"), 2).lines().any(|line| line == option));
        let fish = |words: &str| {
            let file = share.join("fish/vendor_completions.d").join(format!("{program}.fish"));
            let script = format!("source {}; complete -C '{program} {words}'", file.display());
            shell("fish", "fish", &["--no-config"], script)
        };
        let starts = |text: &str, word: &str| text.lines().any(|line| line.split('\t').next() == Some(word));
        assert!(starts(&fish(&command[..3]), command), "{}", fish(&command[..3]));
        assert!(starts(&fish(&format!("{command} {}", &option[..4])), option));
        // zsh completes only in a terminal: here it loads the function, and knows whose it is.
        let functions = share.join("zsh/vendor-completions");
        let script = format!(
            "fpath=({} $fpath); autoload -Uz compinit; compinit -u -D; autoload +X _{program}; \
             print $_comps[{program}] ${{+functions[_{program}]}}",
            functions.display()
        );
        assert_eq!(shell("zsh", "zsh", &["-f"], script), format!("_{program} 1\n"));
        let text = fs::read_to_string(functions.join(format!("_{program}"))).expect("read a completion");
        assert!(text.contains(command) && text.contains(option));
    }
}

/// Whether a target of a link is a file, and no address or heading.
fn is_file(target: &str) -> bool {
    !target.starts_with('#')
        && !["http:", "https:", "mailto:"].iter().any(|scheme| target.starts_with(scheme))
}

#[test]
fn every_link_of_the_shipped_pages_leads_to_a_shipped_page() {
    let (built, scene) = (packages("1.0-1"), Scene::new("pages"));
    let line = format!("dpkg-deb -x {}/syncd-doc_1.0-1_all.deb .", built.display());
    within_limit(Command::new("sh").args(["-c", &line]).current_dir(scene.directory())).expect_success();
    let (mut links, mut dead) = (0, Vec::new());
    let mut directories = vec![scene.path("usr/share/doc/syncd")];
    while let Some(directory) = directories.pop() {
        for path in fs::read_dir(&directory).expect("list pages").map(|entry| entry.expect("an entry").path())
        {
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let text = fs::read_to_string(&path).expect("read a page");
            let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
            for target in targets.filter(|target| is_file(target)) {
                links += 1;
                let file = target.split('#').next().unwrap_or_default();
                if !directory.join(file).exists() {
                    dead.push(format!("{}: {target}", path.display()));
                }
            }
        }
    }
    assert!(links > 100 && dead.is_empty(), "{links} links, dead: {dead:#?}");
    // A link that leads nowhere fails the build.
    let sources = scene.path("sources");
    fs::create_dir_all(sources.join("docs"))
        .and_then(|()| fs::create_dir(sources.join("src")))
        .expect("make them");
    let page = |text: &str| fs::write(sources.join("docs").join("page.md"), text).expect("write a page");
    fs::write(sources.join("other.md"), "# Part\n").expect("write a page");
    let run = || {
        let mut pages = Command::new(repository().join("packaging/deb/pages"));
        within_limit(pages.arg(scene.path("out")).current_dir(&sources))
    };
    page("[here](../other.md#part) and [code](../src)\n");
    run().expect_success();
    let moved = fs::read_to_string(scene.path("out/page.md")).expect("the page");
    assert_eq!(moved, "[here](other.md#part) and code (`src` in the sources)\n");
    page("[nowhere](missing.md)\n");
    let failed = run();
    assert!(failed.code != Some(0) && failed.stderr.contains("missing.md leads nowhere"), "{failed:?}");
}

/// Reads pages of a web server until it is told to stop.
struct Reader {
    stop: AtomicBool,
    reads: AtomicU64,
}

impl Reader {
    /// Runs `meanwhile`, during which no request may fail.
    fn watch<T>(path: &str, meanwhile: impl FnOnce() -> T) -> T {
        let reader = Self { stop: AtomicBool::new(false), reads: AtomicU64::new(0) };
        thread::scope(|threads| {
            let watched = threads.spawn(|| {
                while !reader.stop.load(Ordering::Relaxed) {
                    let answer = http::get("127.0.0.1:80", path).expect("a whole answer");
                    assert_eq!((answer.status, answer.body.as_slice()), (200, b"hello".as_slice()));
                    reader.reads.fetch_add(1, Ordering::Relaxed);
                }
            });
            let reads = || reader.reads.load(Ordering::Relaxed);
            wait::until("the first reads", || (reads() > 10).then_some(()));
            let result = meanwhile();
            let before = reads();
            wait::until("reads after all steps, or a failed one", || {
                (reads() > before + 10 || watched.is_finished()).then_some(())
            });
            reader.stop.store(true, Ordering::Relaxed);
            watched.join().expect("every read succeeds");
            result
        })
    }
}

#[test]
fn a_clean_debian_serves_through_installation_upgrade_removal_and_purge() {
    const NAME: &str = "a_clean_debian_serves_through_installation_upgrade_removal_and_purge";
    require_root("it installs packages in a root directory of its own");
    let (base, (old, new)) = (machine::base(), two_versions());
    if !in_own_machine_within(NAME, LIMIT) {
        return;
    }
    let mut machine = Machine::unpack(&base);
    machine.receive(&old);

    // The origin, as the guide says.
    fs::create_dir_all(machine.path("srv/site")).expect("make a content tree");
    fs::write(machine.path("srv/site/page.html"), "hello").expect("write content");
    let mut steps = instructions(PAGE, "## The origin").into_iter();
    for step in steps.by_ref().take(3) {
        machine.run(&step).expect_success();
    }
    let other = machine.run("find /var/lib/syncd/origin ! -user syncd-origin").expect_success();
    assert_eq!(other.stdout, "", "the service can open all of DATA");
    machine.start_origin();
    let token = machine.run(&steps.next().expect("a step that makes a token")).expect_success();

    // A node.
    let node = instructions(PAGE, "## The nodes");
    let join = node[0].replace("syncd1-...", token.only_line());
    machine.run(&join).expect_success();
    machine.run(&node[1].replace("syncd-agent status", "")).expect_success();
    machine.start_agent();
    wait::until("the node to serve", || {
        machine.run("syncd-agent status").stdout.contains("generation 1 is live").then_some(())
    });
    machine.serve_by_apache();

    Reader::watch("/page.html", || {
        machine.receive(&new);
        machine.run("apt-get install -y ./syncd-agent_2*.deb ./syncd-origin_2*.deb").expect_success();
        assert_eq!(machine.run("dpkg-query -W -f '${Version}' syncd-agent").stdout, "2.0-1");
        // The package restarts both where systemd runs.
        machine.stop();
        machine.start_origin();
        machine.start_agent();
        machine.run("syncd-origin commit --rescan --wait").expect_success();
        machine.stop();
        machine.run("apt-get remove -y syncd-agent syncd-origin").expect_success();
        let purged = machine.run("apt-get purge -y syncd-agent").expect_success();
        assert!(purged.stderr.contains("/var/lib/syncd/agent is kept"), "{purged:#?}");
    });
    assert!(!machine.path("etc/syncd/agent.toml").exists());
    assert!(machine.path("var/lib/syncd/origin/keys").exists(), "a removal keeps the keys");
    machine.run("SYNCD_PURGE_DATA=1 apt-get purge -y syncd-origin").expect_success();
    assert!(!machine.path("var/lib/syncd/origin").exists());
    assert!(!machine.path("etc/syncd").exists());
    assert!(machine.path("srv/site/page.html").exists(), "the content tree is never touched");
}

#[test]
fn the_units_are_valid_and_rated_as_they_say() {
    const NAME: &str = "the_units_are_valid_and_rated_as_they_say";
    require_root("it installs packages in a root directory of its own");
    let (base, packages) = (machine::base(), packages("1.0-1"));
    if !in_own_machine_within(NAME, LIMIT) {
        return;
    }
    let machine = Machine::unpack(&base);
    machine.receive(&packages);
    machine.run("apt-get install -y ./syncd-origin_1*.deb ./syncd-agent_1*.deb").expect_success();
    let directory = "/usr/lib/systemd/system";
    for (unit, tenths) in [("syncd-origin", 15), ("syncd-agent", 25)] {
        let file = format!("{directory}/{unit}.service");
        let verified = machine.run(&format!("systemd-analyze verify --man=no {file}")).expect_success();
        assert_eq!(verified.stderr, "", "{unit}");
        machine
            .run(&format!("systemd-analyze security --offline=true --threshold={tenths} {file}"))
            .expect_success();
    }
    // The guide's way to an agent without root.
    let user = instructions(PAGE, "## An agent without root");
    machine
        .run(&user[0].replace("systemctl restart", "systemctl show -p User --value || :"))
        .expect_success();
    let file = "/etc/systemd/system/syncd-agent.service";
    let merged = format!("cat {directory}/syncd-agent.service {file}.d/user.conf > {file}");
    machine.run(&merged).expect_success();
    machine.run(&format!("systemd-analyze verify --man=no {file}")).expect_success();
    machine.run(&format!("systemd-analyze security --offline=true --threshold=14 {file}")).expect_success();
    for page in ["syncd-origin", "syncd-origin-serve", "syncd-agent-run"] {
        machine.run(&format!("test -s /usr/share/man/man1/{page}.1.gz")).expect_success();
    }
}

#[test]
fn the_services_run_under_systemd_and_an_upgrade_restarts_them() {
    require_root("it boots a container");
    let machine = Machine::boot(&machine::base());
    let (old, new) = two_versions();
    machine.receive(&old);
    fs::create_dir_all(machine.path("srv/site")).expect("make a content tree");
    fs::write(machine.path("srv/site/page.html"), "hello").expect("write content");
    machine.run("chmod 600 /srv/site/page.html").expect_success();
    fs::write(machine.path("srv/site/open.html"), "hello").expect("write content");
    let is_unconfigured = |unit: &str| {
        let state = machine.run(&format!("systemctl is-enabled {unit}; systemctl is-active {unit} || :"));
        assert_eq!(state.stdout, "enabled\ninactive\n", "{unit} neither starts nor fails");
    };

    let mut steps = instructions(PAGE, "## The origin").into_iter();
    machine.run(&steps.next().expect("a step that installs")).expect_success();
    is_unconfigured("syncd-origin");
    for step in steps.by_ref().take(2) {
        machine.run(&step).expect_success();
    }
    let token = machine.run(&steps.next().expect("a step that makes a token")).expect_success();
    let node = instructions(PAGE, "## The nodes");
    machine.run(&node[0].replace("syncd1-...", token.only_line())).expect_success();
    is_unconfigured("syncd-agent");
    machine.run(&node[1]).expect_success();
    wait::until("the node to serve", || {
        machine.run("syncd-agent status").stdout.contains("generation 1 is live").then_some(())
    });
    machine.serve_by_apache();
    let reader = machine.start_reader("/open.html", "hello");
    let commit = |generation: u64| {
        fs::write(machine.path("srv/site/new.html"), generation.to_string()).expect("write content");
        machine.run("syncd-origin commit --wait").expect_success();
    };
    commit(2);

    machine.receive(&new);
    let process = "systemctl show --property MainPID --value syncd-agent";
    let before = machine.run(process).stdout;
    machine.run("apt-get install ./syncd-agent_2*.deb ./syncd-origin_2*.deb").expect_success();
    assert_ne!(machine.run(process).stdout, before, "the upgrade restarts the agent");
    machine.run("systemctl is-active syncd-origin syncd-agent").expect_success();
    commit(3);
    // Readiness needs no origin.
    machine.run("systemctl stop syncd-origin && systemctl restart syncd-agent").expect_success();
    machine.run("journalctl --sync && journalctl -u syncd-agent -o cat | grep -qx stopping").expect_success();
    assert!(machine.run("syncd-agent status").expect_success().stdout.contains(" is live"));
    machine.run("systemctl start syncd-origin").expect_success();
    // An agent that hangs.
    let directory = "/run/systemd/system/syncd-agent.service.d";
    let limit =
        format!("mkdir -p {directory}\nprintf '[Service]\\nWatchdogSec=10s\\n' >{directory}/limit.conf");
    machine.run(&format!("{limit}\nsystemctl daemon-reload\nsystemctl restart syncd-agent")).expect_success();
    let before = machine.run(process).stdout;
    machine.run("systemctl kill --signal=STOP syncd-agent").expect_success();
    wait::within(Duration::from_secs(180), "systemd to start the agent again", || {
        let active = machine.run("systemctl is-active syncd-agent || :").stdout == "active\n";
        (active && machine.run(process).stdout != before).then_some(())
    });
    let why = machine.run("journalctl --sync && journalctl -u syncd-agent -o cat").expect_success();
    assert!(why.stdout.contains("Watchdog timeout"), "{}", why.stdout);
    machine.run(&format!("rm -r {directory}\nsystemctl daemon-reload")).expect_success();
    reader.expect_every_page();

    let owner = machine.run("sed -i 's|^owner|#owner|' /etc/syncd/agent.toml");
    owner.expect_success();
    for step in instructions(PAGE, "## An agent without root") {
        machine.run(&step).expect_success();
    }
    commit(4);
    let other = machine.run("find /var/lib/syncd/agent/live/ ! -user syncd-agent").expect_success();
    assert_eq!(other.stdout, "");
}
