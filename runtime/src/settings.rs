//! `config check` and `config show`: every option of a service, its value, and where the value comes from.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command};
use serde::Serialize;
use syncd_shared::text::one_line;

use crate::config_file::{self, ConfigError};
use crate::output::{self, OutputError};

/// Longest part of a value that is shown.
const SHOWN_MAX_BYTES: usize = 1_000;

/// Options to start the service with.
#[derive(Debug, Args)]
pub struct Given {
    /// TOML file to read instead of the usual one.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Options of the service, after `--`, as in `-- --keep 3`.
    #[arg(last = true, value_name = "OPTION")]
    pub options: Vec<OsString>,
}

impl Given {
    /// The command line of the service, program name first.
    pub fn command_line(&self, program: &str, service: &str) -> Vec<OsString> {
        let mut line = vec![OsString::from(program), OsString::from(service)];
        if let Some(file) = &self.config {
            line.extend([OsString::from("--config"), file.into()]);
        }
        line.extend(self.options.iter().cloned());
        line
    }
}

/// An option of a service. Displays as one line.
#[derive(Debug, Serialize)]
pub struct Setting {
    /// Long name of the option.
    pub name: String,
    /// Escaped value; `None`: no value, and no default.
    pub value: Option<String>,
    pub source: Source,
}

/// Source of a value.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Default,
    CommandLine,
    /// Name of the variable.
    Variable(String),
    /// Path of the file and, where it was found, the line of the key.
    File {
        path: String,
        line: Option<usize>,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::CommandLine => f.write_str("command line"),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::File { path, line: Some(line) } => write!(f, "{path}:{line}"),
            Self::File { path, line: None } => f.write_str(path),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value.as_deref().unwrap_or("-");
        write!(f, "{:<20} {value:<32} {}", self.name, self.source)
    }
}

/// Every option that the service started by `line` (see [`Given::command_line`]) would have. A required
/// option may be missing.
///
/// `usual` is read where `line` and the environment name no file. A wrong value is an error of clap, to be
/// explained by [`config_file::explain`].
pub fn settings(
    program: &Command,
    line: &[OsString],
    usual: &Path,
) -> Result<Result<Vec<Setting>, clap::Error>, ConfigError> {
    let service = line.get(1).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut lenient = program.clone().mut_subcommand(&service, |c| c.mut_args(|arg| arg.required(false)));
    let resolved = config_file::typed_first(lenient.clone(), line);
    lenient.build();
    let arguments = config_file::arguments_with_config(line.iter().cloned(), &lenient, Some(usual))?;
    let parse = |arguments: &[OsString]| resolved.clone().try_get_matches_from(arguments);
    let (given, all) = match (parse(line), parse(&arguments)) {
        (Ok(given), Ok(all)) => (given, all),
        (Err(error), _) | (_, Err(error)) => return Ok(Err(error)),
    };
    let (Some((_, given)), Some((_, all))) = (given.subcommand(), all.subcommand()) else {
        return Ok(Ok(Vec::new()));
    };
    let file = all.get_raw(config_file::OPTION).and_then(|mut paths| paths.next_back()).map(PathBuf::from);
    let text = file.as_deref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let options = lenient.find_subcommand(&service).into_iter().flat_map(Command::get_arguments);
    let options = options.filter_map(|option| Some((option, option.get_long()?)));
    let shown = options.filter(|(_, long)| !["help", "version"].contains(long)).map(|(option, long)| {
        let source = match source(option, given, all) {
            Some(source) => source,
            None => Source::File {
                path: file.as_deref().map(|path| shown(&path.to_string_lossy())).unwrap_or_default(),
                line: line_of(long, &text),
            },
        };
        Setting { name: long.to_owned(), value: value(option, all), source }
    });
    Ok(Ok(shown.collect()))
}

/// Prints one line for each setting, or JSON.
pub fn print(settings: &[Setting], json: bool) -> Result<(), OutputError> {
    if json {
        return output::line(serde_json::json!(settings));
    }
    settings.iter().try_for_each(output::line)
}

/// `None`: the configuration file.
fn source(option: &Arg, given: &ArgMatches, all: &ArgMatches) -> Option<Source> {
    let id = option.get_id().as_str();
    match (given.value_source(id), all.value_source(id)) {
        (Some(ValueSource::CommandLine), _) => Some(Source::CommandLine),
        (Some(ValueSource::EnvVariable), _) => {
            let name = option.get_env().unwrap_or_default().to_string_lossy().into_owned();
            Some(Source::Variable(name))
        }
        // The usual file itself is named by a default.
        (_, Some(ValueSource::CommandLine)) if id != config_file::OPTION => None,
        _ => Some(Source::Default),
    }
}

fn value(option: &Arg, all: &ArgMatches) -> Option<String> {
    let id = option.get_id().as_str();
    if !option.get_action().takes_values() {
        return Some(all.get_flag(id).to_string());
    }
    let values = all.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy());
    let values = values.collect::<Vec<_>>().join(" ");
    match values.as_str() {
        "" => documented_default(option),
        _ if option.is_hide_env_values_set() => Some("(hidden)".to_owned()),
        values => Some(shown(values)),
    }
}

/// The default that the help of an option names, as in `[default: unlimited]`.
fn documented_default(option: &Arg) -> Option<String> {
    let help = option.get_help()?.to_string();
    let (_, default) = help.split_once("[default: ")?;
    Some(default.split_once(']')?.0.to_owned())
}

fn shown(text: &str) -> String {
    one_line(text, SHOWN_MAX_BYTES)
}

/// Number of the line that begins with the key of the option `long`.
fn line_of(long: &str, text: &str) -> Option<usize> {
    let is_key = |line: &str| {
        let key = line.split('=').next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        line.contains('=') && key.replace('_', "-") == long
    };
    text.lines().position(is_key).map(|index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ArgAction;

    fn program() -> Command {
        let config = Arg::new("config").long("config");
        let option = |name| Arg::new(name).long(name);
        let keep =
            option("keep").env("SYNCD_TEST_KEEP").default_value("2").value_parser(clap::value_parser!(u8));
        Command::new("syncd").subcommand(
            Command::new("serve")
                .args([config, keep, option("tree").required(true)])
                .arg(option("path").env("PATH"))
                .arg(option("limit").help("Limit [default: unlimited]."))
                .arg(Arg::new("settle_max").long("settle-max").env("SYNCD_TEST_SETTLE_MAX"))
                .arg(option("json").env("SYNCD_TEST_JSON").action(ArgAction::SetTrue)),
        )
    }

    fn lines(file: &str, options: &[&str]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("syncd.toml");
        std::fs::write(&path, file).unwrap();
        let given = Given { config: None, options: options.iter().map(OsString::from).collect() };
        let settings = settings(&program(), &given.command_line("syncd", "serve"), &path).unwrap().unwrap();
        let place = path.display().to_string();
        let line = |setting: &Setting| {
            let Setting { name, value, source } = setting;
            format!("{name}={} ({source})", value.as_deref().unwrap_or("-")).replace(&place, "FILE")
        };
        settings.iter().map(line).filter(|line| !line.starts_with("path=")).collect()
    }

    #[test]
    fn every_option_is_shown_with_its_value_and_source() {
        let file = "# settle-max = \"1s\"\n\nsettle_max = \"2s\"\nkeep = 7\njson = true\n";
        assert_eq!(
            lines(file, &["--keep", "3"]),
            [
                "config=FILE (default)",
                "keep=3 (command line)",
                "tree=- (default)",
                "limit=unlimited (default)",
                "settle-max=2s (FILE:3)",
                "json=true (FILE:5)",
            ]
        );
    }

    #[test]
    fn a_variable_is_named_and_wrong_values_are_errors() {
        let line = ["syncd", "serve"].map(OsString::from);
        let all = settings(&program(), &line, Path::new("/nonexistent")).unwrap().unwrap();
        let path = all.iter().find(|setting| setting.name == "path").unwrap();
        assert_eq!(path.source, Source::Variable("PATH".to_owned()));
        assert!(all.iter().all(|setting| setting.name != "config" || setting.value.is_none()));
        let line = ["syncd", "serve", "--keep", "many"].map(OsString::from);
        assert!(settings(&program(), &line, Path::new("/nonexistent")).unwrap().is_err());
    }
}
