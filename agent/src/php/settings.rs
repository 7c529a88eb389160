//! The settings of a PHP, as it says itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::one_line;

/// Prints what packaging/php/opcache.php answers to `settings`, as far as another process can know.
const PRINT: &str = "echo json_encode(['version' => PHP_VERSION, 'ini' => (ini_get_all('zend opcache', false) ?: []) \
                     + ['realpath_cache_ttl' => ini_get('realpath_cache_ttl')]], JSON_INVALID_UTF8_SUBSTITUTE);";
const MIB: u64 = 1 << 20;

/// Version, settings and figures of a PHP, by its own account.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Settings {
    /// `8.2.36`.
    pub version: String,
    ini: BTreeMap<String, Option<String>>,
    /// Memory that the scripts of one slot take, of the slot that takes most; 0: none is cached, or nobody
    /// knows.
    #[serde(default)]
    pub code_bytes: u64,
    /// Scripts that OPcache has room for, where that is known.
    #[serde(default)]
    max_keys: u64,
    /// How often OPcache was full since PHP started.
    #[serde(default)]
    pub restarts: u64,
    /// Scripts that were preloaded.
    #[serde(default)]
    pub preloaded: Vec<PathBuf>,
}

/// Settings that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// PHP did not start.
    #[error("can't run {program} for the settings in {}: install php-cli", directory.display())]
    Start {
        /// The program.
        program: String,
        /// `--ini`.
        directory: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It said something else.
    #[error("{program} does not print the settings in {}: {said}", directory.display())]
    Said {
        /// The program.
        program: String,
        /// `--ini`.
        directory: PathBuf,
        /// On one line.
        said: String,
    },
}

impl Settings {
    /// Has `php-cli` read the files in `directory` (`php.ini` and `conf.d`). Blocks.
    pub fn of_files(directory: &Path) -> Result<Self, SettingsError> {
        // /etc/php/8.2/apache2
        let version = directory.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let versioned = version.map(|version| format!("php{version}"));
        let on_path = |program: &String| {
            Command::new(program).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        };
        let program = versioned.filter(on_path).unwrap_or_else(|| "php".to_owned());
        let output = Command::new(&program)
            .arg("-c")
            .arg(directory.join("php.ini"))
            // Nothing is preloaded here.
            .args(["-d", "opcache.enable_cli=0", "-d", "display_startup_errors=0", "-r", PRINT])
            .env("PHP_INI_SCAN_DIR", directory.join("conf.d"))
            .stdin(Stdio::null())
            .output();
        let directory = directory.to_owned();
        let output = match output {
            Ok(output) => output,
            Err(source) => return Err(SettingsError::Start { program, directory, source }),
        };
        serde_json::from_slice(&output.stdout).map_err(|_| {
            let said = [&*output.stdout, b" ", &*output.stderr].concat();
            let said = one_line(String::from_utf8_lossy(&said).trim(), REASON_MAX_BYTES);
            SettingsError::Said { program, directory, said }
        })
    }

    /// The value of `opcache.preload`, if any.
    pub fn preload(&self) -> Option<&Path> {
        self.text("opcache.preload").map(Path::new)
    }

    /// Whether scripts are cached.
    pub fn is_caching(&self) -> bool {
        self.flag("opcache.enable")
    }

    /// Whether changed files are noticed.
    pub fn validates_timestamps(&self) -> bool {
        self.flag("opcache.validate_timestamps")
    }

    /// Whether paths are resolved anew.
    pub fn revalidates_paths(&self) -> bool {
        self.flag("opcache.revalidate_path")
    }

    /// For so long a cached script is not compared with its file.
    pub fn revalidate_after(&self) -> Duration {
        Duration::from_secs(self.number("opcache.revalidate_freq"))
    }

    /// For so long PHP remembers where a path led to.
    pub fn paths_remembered(&self) -> Duration {
        Duration::from_secs(self.number("realpath_cache_ttl"))
    }

    /// OPcache's memory.
    pub fn memory_bytes(&self) -> u64 {
        self.number("opcache.memory_consumption").saturating_mul(MIB)
    }

    /// Scripts that OPcache has room for.
    pub fn max_scripts(&self) -> u64 {
        self.max_keys.max(self.number("opcache.max_accelerated_files"))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.ini.get(name)?.as_deref().filter(|value| !value.is_empty())
    }

    fn flag(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| {
            value.parse::<i64>().is_ok_and(|number| number != 0)
                || ["on", "yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
        })
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Debian's settings, and others.
    pub fn settings(others: &[(&str, &str)]) -> Settings {
        let stock = [
            ("opcache.enable", "1"),
            ("opcache.validate_timestamps", "1"),
            ("opcache.revalidate_freq", "2"),
            ("opcache.revalidate_path", "0"),
            ("opcache.memory_consumption", "128"),
            ("opcache.max_accelerated_files", "10000"),
            ("opcache.preload", ""),
            ("realpath_cache_ttl", "120"),
        ];
        let ini = stock.iter().chain(others);
        Settings {
            version: "8.2.0".into(),
            ini: ini.map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect(),
            ..Settings::default()
        }
    }

    #[test]
    fn values_are_read_as_php_reads_them() {
        let stock = settings(&[]);
        assert!(stock.is_caching() && stock.validates_timestamps() && !stock.revalidates_paths());
        assert_eq!((stock.memory_bytes(), stock.max_scripts()), (128 << 20, 10000));
        assert_eq!(stock.paths_remembered(), Duration::from_secs(120));
        assert_eq!(stock.preload(), None);
        for (value, is_set) in [("On", true), ("", false), ("0", false), ("off", false), ("yes", true)] {
            assert_eq!(settings(&[("opcache.enable", value)]).is_caching(), is_set, "{value}");
        }
    }
}
