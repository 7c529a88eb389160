//! `syncd-agent check-php`: whether the settings of PHP suit a replica whose slots take turns.

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "looks at the operator's hook and at slots")
)]

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use syncd_runtime::output::line;
use syncd_shared::text::{counted, one_line};

use super::code::Code;
use super::fpm::{self, Masters, Question};
use super::settings::Settings;
use crate::state::swap::Swap;
use crate::status::RunSettings;

/// Slots besides those that hold what `--keep` keeps: one to patch, one in reserve.
const SLOTS_MORE: u64 = 2;
/// Bytes of a hook's script that are searched.
const SCRIPT_MAX_BYTES: u64 = 1 << 20;

/// `syncd-agent check-php`, without ROOT.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    masters: Masters,
    /// Directory with the php.ini and conf.d of mod_php, as in /etc/php/8.2/apache2. Give it once for each
    /// PHP.
    #[arg(long, value_name = "DIR")]
    ini: Vec<PathBuf>,
}

/// Facts of the replica that PHP's settings must suit.
#[derive(Debug)]
struct Replica {
    /// ROOT.
    root: PathBuf,
    swap: Swap,
    grace: Duration,
    /// Trees that take turns.
    slots: u64,
    /// The on-activate hook, and the scripts that it names.
    hook: String,
    code: Code,
}

/// FPM keeps its OPcache for as long as its master lives, Apache's module until Apache is reloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fpm,
    Module,
}

/// A setting that does not suit the replica.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    /// Old code would be run.
    Refused(String),
    /// It costs time, or old code may be run.
    Warning(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(text) => write!(f, "refused: {text}"),
            Self::Warning(text) => write!(f, "warning: {text}"),
        }
    }
}

/// Asks each PHP and judges what it says. `running`: the options of the agent on `root`.
pub async fn run(options: Check, root: &Path, swap: Swap, running: RunSettings) -> anyhow::Result<ExitCode> {
    let Check { masters, ini } = options;
    if masters.addresses.is_empty() && ini.is_empty() {
        bail!("no PHP: name each FPM master with --fpm, and the settings of mod_php with --ini");
    }
    let root = fs::canonicalize(root).with_context(|| format!("can't read {}", root.display()))?;
    let replica = Replica::of(root, swap, running)?;
    // Directory of the trees whose code is cached.
    let trees = match swap {
        Swap::Link => replica.root.join("slots"),
        Swap::Exchange => replica.root.clone(),
    };
    let mut findings = Vec::new();
    for address in &masters.addresses {
        let question = Question { task: "settings", scope: "", tree: &trees, body: b"" };
        let settings = fpm::ask(address, &masters.script, question).await?;
        findings.extend(show(&format!("PHP-FPM at {address}"), Kind::Fpm, &settings, &replica)?);
    }
    for directory in &ini {
        let ini = directory.join("php.ini");
        if !ini.is_file() {
            bail!(
                "there is no {}: give --ini the directory of mod_php's settings, as in /etc/php/8.2/apache2",
                ini.display()
            );
        }
        let settings = Settings::of_files(directory)?;
        findings.extend(show(
            &format!("mod_php by {}", directory.display()),
            Kind::Module,
            &settings,
            &replica,
        )?);
    }
    Ok(match &*findings {
        [] => ExitCode::SUCCESS,
        found if found.iter().any(|finding| matches!(finding, Finding::Refused(_))) => ExitCode::FAILURE,
        _ => ExitCode::from(3),
    })
}

fn show(name: &str, kind: Kind, settings: &Settings, replica: &Replica) -> anyhow::Result<Vec<Finding>> {
    let Code { files, source_bytes, .. } = replica.code;
    line(format_args!(
        "{name}: PHP {}; {} of {} PHP files, {} of source",
        one_line(&settings.version, 40),
        counted(replica.slots, "slot", "slots"),
        HumanCount(files),
        HumanBytes(source_bytes)
    ))?;
    let findings = judge(kind, settings, replica);
    for finding in &findings {
        line(format_args!("  {finding}"))?;
    }
    if findings.is_empty() {
        line("  well")?;
    }
    Ok(findings)
}

impl Replica {
    fn of(root: PathBuf, swap: Swap, running: RunSettings) -> anyhow::Result<Self> {
        let live = root.join("live");
        let code = Code::of(&live).with_context(|| format!("can't read {}", live.display()))?;
        let is_slot = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        let on_disk = fs::read_dir(root.join("slots")).map_or(0, |names| {
            names.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_slot)).count() as u64
        });
        let command = running.on_activate.unwrap_or_default();
        Ok(Self {
            root,
            grace: Duration::from_millis(running.grace_ms),
            slots: match swap {
                Swap::Link => on_disk.max(u64::from(running.keep) + SLOTS_MORE),
                Swap::Exchange => 1,
            },
            swap,
            hook: with_scripts(command),
            code,
        })
    }

    fn has_hook(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.hook.contains(word))
    }
}

/// The command, and the text of every file that it names by an absolute path.
fn with_scripts(command: String) -> String {
    let is_separator = |c: char| c.is_whitespace() || "'\";&|()".contains(c);
    let paths = command.split(is_separator).filter(|word| word.starts_with('/'));
    let is_small = |path: &&str| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() <= SCRIPT_MAX_BYTES)
    };
    let texts: String = paths.filter(is_small).filter_map(|path| fs::read_to_string(path).ok()).collect();
    command + "\n" + &texts
}

fn judge(kind: Kind, settings: &Settings, replica: &Replica) -> Vec<Finding> {
    if !settings.is_caching() {
        return Vec::new();
    }
    let preloads = settings.preload().into_iter().chain(settings.preloaded.iter().map(PathBuf::as_path));
    let preloaded = preloads.filter(|path| is_inside(path, &replica.root)).map(|path| {
        Finding::Refused(format!(
            "opcache.preload takes {} from ROOT: preloaded code stays until PHP is restarted, whatever is live",
            one_line(&path.display().to_string(), 200)
        ))
    });
    preloaded.take(1).chain(staleness(kind, settings, replica)).chain(room(settings, replica)).collect()
}

/// A path of ROOT, or a path that leads there.
fn is_inside(path: &Path, root: &Path) -> bool {
    path.starts_with(root) || fs::canonicalize(path).is_ok_and(|real| real.starts_with(root))
}

/// Settings with which PHP runs old code.
fn staleness(kind: Kind, settings: &Settings, replica: &Replica) -> Vec<Finding> {
    let mut found = Vec::new();
    let grace = replica.grace.as_secs();
    let mut warn = |text: String| found.push(Finding::Warning(text));
    if !settings.validates_timestamps() {
        let (words, mend): (&[&str], _) = match kind {
            Kind::Fpm => (&["php-invalidate", "fpm"], "syncd-agent php-invalidate --fpm ..."),
            Kind::Module => (&["apache"], "packaging/apache/apache-live"),
        };
        if !replica.has_hook(words) {
            warn(format!(
                "opcache.validate_timestamps is off and no hook makes PHP forget old code: \
                 put {mend} into the agent's --on-activate"
            ));
        }
    } else if replica.swap == Swap::Exchange && !settings.revalidate_after().is_zero() {
        warn(format!(
            "opcache.revalidate_freq is {} s and live is a directory: after a switch old code runs for so long, \
             beside new code; set opcache.revalidate_freq=0, or run the agent with --swap link",
            settings.revalidate_after().as_secs()
        ));
    } else if replica.swap == Swap::Link && settings.revalidate_after() >= replica.grace {
        warn(format!(
            "opcache.revalidate_freq is {} s and --grace {grace} s: a slot that is used again may run old code",
            settings.revalidate_after().as_secs()
        ));
    }
    if replica.swap == Swap::Link && settings.paths_remembered() >= replica.grace {
        warn(format!(
            "realpath_cache_ttl is {} s and --grace {grace} s: PHP may remember where a path led in an older generation",
            settings.paths_remembered().as_secs()
        ));
    }
    if let Some(link) = replica.code.link.as_ref().filter(|_| !settings.revalidates_paths()) {
        warn(format!(
            "the symlink {} leads to code: when it changes, PHP goes on running what it led to before; \
             set opcache.revalidate_path=1",
            one_line(&link.display().to_string(), 200)
        ));
    }
    found
}

/// Settings with which code does not stay cached.
fn room(settings: &Settings, replica: &Replica) -> Vec<Finding> {
    let mut found = Vec::new();
    let Replica { slots, code, .. } = replica;
    // Cached code is a better measure than source, much of which never runs.
    let (a_slot, how) = match settings.code_bytes {
        0 => (code.compiled_bytes(), "if all its code runs"),
        cached => (cached, "for the code that ran"),
    };
    let needed = a_slot.saturating_mul(*slots);
    if settings.memory_bytes() < needed {
        found.push(Finding::Warning(format!(
            "opcache.memory_consumption is {}, {slots} slots need {} ({} each {how}): raise it",
            HumanBytes(settings.memory_bytes()),
            HumanBytes(needed),
            HumanBytes(a_slot)
        )));
    }
    let scripts = code.files.saturating_mul(*slots);
    if settings.max_scripts() < scripts {
        found.push(Finding::Warning(format!(
            "OPcache has room for {} scripts, {slots} slots have {}: raise opcache.max_accelerated_files",
            HumanCount(settings.max_scripts()),
            HumanCount(scripts)
        )));
    }
    if settings.restarts > 0 {
        found.push(Finding::Warning(format!(
            "OPcache was full and emptied {} times since PHP started: raise opcache.memory_consumption",
            settings.restarts
        )));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::settings::tests::settings;
    use super::*;

    fn replica(hook: &str) -> Replica {
        Replica {
            root: "/srv/agent".into(),
            swap: Swap::Link,
            grace: Duration::from_secs(150),
            slots: 4,
            hook: hook.into(),
            code: Code { files: 1000, source_bytes: 9 << 20, link: None },
        }
    }

    #[track_caller]
    fn assert_found(kind: Kind, settings: &Settings, replica: &Replica, words: &[&str]) {
        let found: Vec<_> = judge(kind, settings, replica).iter().map(Finding::to_string).collect();
        assert_eq!(found.len(), words.len(), "{found:#?}");
        for (found, word) in found.iter().zip(words) {
            assert!(found.contains(word), "{found} lacks {word}");
        }
    }

    #[test]
    fn stock_settings_suit_a_site_of_the_size_of_wordpress() {
        assert_found(Kind::Fpm, &settings(&[]), &replica(""), &[]);
        assert_found(Kind::Module, &settings(&[]), &replica(""), &[]);
    }

    #[test]
    fn preloading_from_root_is_refused_and_from_elsewhere_it_is_not() {
        let preload = |path| settings(&[("opcache.preload", path)]);
        let refused = "refused: opcache.preload takes /srv/agent/live/preload.php";
        assert_found(Kind::Fpm, &preload("/srv/agent/live/preload.php"), &replica(""), &[refused]);
        assert_found(Kind::Fpm, &preload("/srv/agent-2/preload.php"), &replica(""), &[]);
        let mut elsewhere = preload("/etc/php/preload.php");
        elsewhere.preloaded = vec!["/etc/php/preload.php".into(), "/srv/agent/slots/1/a.php".into()];
        assert_found(Kind::Fpm, &elsewhere, &replica(""), &["takes /srv/agent/slots/1/a.php"]);
        let off = settings(&[("opcache.preload", "/srv/agent/live/a.php"), ("opcache.enable", "0")]);
        assert_found(Kind::Fpm, &off, &replica(""), &[]);
    }

    #[test]
    fn without_timestamps_a_hook_must_make_php_forget() {
        let off = settings(&[("opcache.validate_timestamps", "0")]);
        let (invalidator, reload) =
            ("syncd-agent php-invalidate --fpm /run/php.sock", "systemctl reload apache2");
        assert_found(Kind::Fpm, &off, &replica(""), &["php-invalidate"]);
        assert_found(Kind::Fpm, &off, &replica(reload), &["php-invalidate"]);
        assert_found(Kind::Fpm, &off, &replica(invalidator), &[]);
        assert_found(Kind::Module, &off, &replica(""), &["apache-live"]);
        assert_found(Kind::Module, &off, &replica(reload), &[]);
    }

    #[test]
    fn what_php_remembers_for_longer_than_the_grace_is_named() {
        let slow = settings(&[("opcache.revalidate_freq", "150"), ("realpath_cache_ttl", "600")]);
        assert_found(
            Kind::Fpm,
            &slow,
            &replica(""),
            &["revalidate_freq is 150 s", "realpath_cache_ttl is 600 s"],
        );
    }

    #[test]
    fn code_of_a_directory_that_is_exchanged_is_compared_at_each_use() {
        let exchanged = |hook| Replica { swap: Swap::Exchange, slots: 1, ..replica(hook) };
        let at_once = settings(&[("opcache.revalidate_freq", "0"), ("realpath_cache_ttl", "600")]);
        assert_found(Kind::Fpm, &settings(&[]), &exchanged(""), &["revalidate_freq is 2 s and live is a"]);
        assert_found(Kind::Fpm, &at_once, &exchanged(""), &[]);
        let off = settings(&[("opcache.validate_timestamps", "0")]);
        assert_found(Kind::Fpm, &off, &exchanged(""), &["php-invalidate"]);
        let invalidator = "syncd-agent php-invalidate --fpm /run/php.sock";
        assert_found(Kind::Fpm, &off, &exchanged(invalidator), &[]);
    }

    #[test]
    fn a_symlink_to_code_needs_paths_that_are_resolved() {
        let mut linked = replica("");
        linked.code.link = Some("current".into());
        assert_found(Kind::Fpm, &settings(&[]), &linked, &["the symlink current"]);
        assert_found(Kind::Fpm, &settings(&[("opcache.revalidate_path", "1")]), &linked, &[]);
    }

    #[test]
    fn room_is_compared_with_all_slots_and_goes_by_what_ran() {
        let mut large = replica("");
        large.code = Code { files: 3000, source_bytes: 30 << 20, link: None };
        let expected = [
            "4 slots need 360.00 MiB (90.00 MiB each if all",
            "room for 10,000 scripts, 4 slots have 12,000",
        ];
        assert_found(Kind::Fpm, &settings(&[]), &large, &expected);
        let mut warm = settings(&[("opcache.max_accelerated_files", "20000")]);
        warm.code_bytes = 20 << 20;
        assert_found(Kind::Fpm, &warm, &large, &[]);
        warm.code_bytes = 40 << 20;
        warm.restarts = 2;
        assert_found(
            Kind::Fpm,
            &warm,
            &large,
            &["(40.00 MiB each for the code that ran)", "emptied 2 times"],
        );
    }

    #[test]
    fn the_scripts_that_a_hook_names_are_looked_at() {
        let scratch = tempfile::tempdir().unwrap();
        let script = scratch.path().join("hook");
        fs::write(&script, "exec syncd-agent php-invalidate").unwrap();
        let command = format!("test -e /none && '{}' --now", script.display());
        assert!(with_scripts(command).contains("php-invalidate"));
    }

    #[tokio::test]
    async fn a_directory_without_php_ini_is_refused_by_its_path() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("live")).unwrap();
        let said = async |ini: &[&Path]| {
            let masters = Masters { addresses: Vec::new(), script: PathBuf::new() };
            let check = Check { masters, ini: ini.iter().map(|path| path.to_path_buf()).collect() };
            let running = RunSettings { keep: 3, grace_ms: 0, on_activate: None };
            run(check, root.path(), Swap::Link, running).await.unwrap_err().to_string()
        };
        let ini = root.path().join("apache2");
        let expected = format!("there is no {}: give --ini the directory", ini.join("php.ini").display());
        assert!(said(&[&ini]).await.starts_with(&expected));
        assert!(said(&[]).await.starts_with("no PHP: name each FPM master with --fpm"));
    }
}
