//! `--config FILE`: reads options from a TOML file. The command line and the environment take precedence.
//!
//! A key is the long name of an option that has a variable (`settle-max` or `settle_max`), and its value is
//! written as on the command line. `true` sets a flag, `false` leaves it out, and an array repeats the
//! option. One file may serve all subcommands: a key that only another subcommand knows is ignored, a key
//! that none knows is an error. Options without a variable belong to a single command line and have no key,
//! so that `check` of the file is never the flag of `status --check`.
//!
//! A value of the file gives way to an option that was given and conflicts with it. So does a variable to an
//! option on the command line ([`typed_first`]).
//!
//! A table named like an option that takes a value holds what the program reads by itself ([`table`]), as
//! tables of their own. Its key `default` is the value of the option.
//!
//! ```toml
//! data = "/var/lib/syncd/origin"
//! settle = "2s"
//! fenced = true
//! ```

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::builder::{OsStr, Resettable, StyledStr};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, Id};
use toml::{Table, Value};

use crate::usage;

/// Name and ID of the option that names the file.
pub const OPTION: &str = "config";
/// Key of a table that is the value of the option named like the table.
const DEFAULT: &str = "default";

/// Errors of reading a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not readable.
    #[error("reading the configuration file {path} failed", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file is not valid TOML.
    #[error("the configuration file {path} is not valid TOML", path = path.display())]
    Syntax { path: PathBuf, source: SyntaxError },
    /// No subcommand knows the key.
    #[error("unknown key {key:?} in {path}: keys are the long names of options that have a variable", path = path.display())]
    UnknownKey { path: PathBuf, key: String },
    /// No option takes a value of this kind, such as a table, or `false` for an option with a value.
    #[error("key {key:?} in {path} has a value that the option does not take", path = path.display())]
    Value { path: PathBuf, key: String },
}

/// Place and reason of a syntax error, on one line.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct SyntaxError {
    line: usize,
    reason: String,
}

impl SyntaxError {
    fn new(error: &toml::de::Error, text: &str) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let reason = error.message().lines().collect::<Vec<_>>().join(", ");
        Self { line: before.matches('\n').count() + 1, reason }
    }
}

/// Returns `arguments` (program name first) with the options of the configuration file inserted after the
/// subcommand. Options set on the command line or in the environment are not inserted. Without `--config` (or
/// its variable) the file `usual` is used, if it exists. Without any file, or without a subcommand, the
/// arguments are returned unchanged.
///
/// `command` must have subcommands, and the option `config` globally or in each of them. Arguments that clap
/// would reject are left for the real parse to report.
pub fn arguments_with_config(
    arguments: impl IntoIterator<Item = OsString>,
    command: &Command,
    usual: Option<&Path>,
) -> Result<Vec<OsString>, ConfigError> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let lenient = command.clone().ignore_errors(true);
    let Ok(matches) = lenient.try_get_matches_from(&arguments) else { return Ok(arguments) };
    let Some((name, given)) = matches.subcommand() else { return Ok(arguments) };
    let usual = usual.filter(|file| takes_file(command, name) && file.exists()).map(Path::to_owned);
    let named = config_path(&matches, given);
    let is_usual = named.is_none();
    let Some(path) = named.or(usual) else { return Ok(arguments) };
    // clap found the subcommand, so it is present; no option before it has a value of the same name.
    let Some(at) = arguments.iter().position(|argument| argument == name) else { return Ok(arguments) };
    let mut inserted = arguments_from(&read(&path)?, &path, command, name, given)?;
    if is_usual {
        // The command sees which file its options come from.
        inserted.extend([OsString::from(format!("--{OPTION}")), path.into()]);
    }
    arguments.splice(at + 1..at + 1, inserted);
    Ok(arguments)
}

/// The command without the variables of options that conflict with an option on the command line. `given` are
/// the arguments that [`arguments_with_config`] was called with; that function needs the command as it was.
/// The command must not be built yet, or clap looks for options in wrong places.
pub fn typed_first(command: Command, given: &[OsString]) -> Command {
    let lenient = command.clone().ignore_errors(true);
    let Ok(matches) = lenient.try_get_matches_from(given) else { return command };
    let Some((name, given)) = matches.subcommand() else { return command };
    let Some(own) = command.find_subcommand(name) else { return command };
    let of = |source| {
        let is_of = move |option: &&Arg| given.value_source(option.get_id().as_str()) == Some(source);
        own.get_arguments().filter(is_of)
    };
    let gives_way =
        |option: &&Arg| of(ValueSource::CommandLine).any(|typed| exclude_each_other(own, typed, option));
    let silent: Vec<_> =
        of(ValueSource::EnvVariable).filter(gives_way).map(|option| option.get_id().clone()).collect();
    if silent.is_empty() {
        return command;
    }
    let without =
        |own: Command, option: Id| own.mut_arg(option, |option| option.env(Resettable::<OsStr>::Reset));
    command.mut_subcommand(name, |own| silent.into_iter().fold(own, without))
}

/// Makes an error of clap fit to print, see [`usage::printable`]. An error about a value gets the source of
/// the value, unless it is the command line, and the default. `given` are the arguments that
/// [`arguments_with_config`] was called with, and so is `usual`.
pub fn explain(
    error: clap::Error,
    command: &Command,
    given: &[OsString],
    usual: Option<&Path>,
) -> clap::Error {
    usage::printable(with_source(error, command, given, usual))
}

fn with_source(
    mut error: clap::Error,
    command: &Command,
    given: &[OsString],
    usual: Option<&Path>,
) -> clap::Error {
    let mut command = command.clone();
    command.build();
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else { return error };
    let subcommand = given.iter().skip(1).find_map(|argument| command.find_subcommand(argument));
    let mut options = subcommand.into_iter().chain([&command]).flat_map(Command::get_arguments);
    let option = options.find(|option| option.to_string() == *shown);
    let Some((option, long)) = option.and_then(|option| Some((option, option.get_long()?))) else {
        return error;
    };
    if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        return error;
    }
    let source = source_of(option, long, &command, given, usual);
    let mut tips: Vec<StyledStr> =
        source.into_iter().map(|source| format!("the value comes from {source}").into()).collect();
    if let Some(value) = option.get_default_values().first().filter(|value| !value.is_empty()) {
        tips.push(format!("the default is --{long} {}", value.to_string_lossy()).into());
    }
    if !tips.is_empty() {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}

/// Source of the value of an option that is not on the command line.
fn source_of(
    option: &Arg,
    long: &str,
    command: &Command,
    given: &[OsString],
    usual: Option<&Path>,
) -> Option<String> {
    let is_it = |argument: &OsString| {
        let name = argument.to_string_lossy();
        let name = name.split_once('=').map_or(&*name, |(name, _)| name);
        name.strip_prefix("--") == Some(long)
    };
    if given.iter().any(is_it) {
        return None;
    }
    if let Some(variable) = option.get_env().filter(|variable| std::env::var_os(variable).is_some()) {
        return Some(format!("the variable {}", variable.to_string_lossy()));
    }
    let matches = command.clone().ignore_errors(true).try_get_matches_from(given).ok()?;
    let named = config_path(&matches, matches.subcommand()?.1);
    let path = named.or_else(|| usual.filter(|file| file.exists()).map(Path::to_owned))?;
    read(&path).ok()?.keys().find(|key| key.replace('_', "-") == long)?;
    Some(format!("the key {long} in {}", path.display()))
}

fn takes_file(command: &Command, subcommand: &str) -> bool {
    let mut options = command.find_subcommand(subcommand).into_iter().flat_map(Command::get_arguments);
    options.any(|option| option.get_id() == OPTION)
}

/// The tables below the table `name`, without its key `default`. Empty if the file has no such table.
pub fn table(path: &Path, name: &str) -> Result<Table, ConfigError> {
    let mut all = read(path)?;
    let Some(Value::Table(mut found)) = all.remove(name) else { return Ok(Table::new()) };
    found.remove(DEFAULT);
    Ok(found)
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Table, ConfigError> {
    text.parse().map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        source: SyntaxError::new(&error, text),
    })
}

fn config_path(matches: &ArgMatches, given: &ArgMatches) -> Option<PathBuf> {
    let path_in = |matches: &ArgMatches| {
        let known = matches.try_contains_id(OPTION).is_ok();
        known.then(|| matches.get_raw(OPTION)?.next_back().map(PathBuf::from)).flatten()
    };
    path_in(given).or_else(|| path_in(matches))
}

/// Like [`arguments_from`], from text. `path` appears in errors only.
#[doc(hidden)]
pub fn from_text(
    text: &str,
    path: &Path,
    command: &Command,
    subcommand: &str,
    given: &ArgMatches,
) -> Result<Vec<OsString>, ConfigError> {
    arguments_from(&parse(text, path)?, path, command, subcommand, given)
}

/// Arguments for the subcommand. `path` appears in errors only.
fn arguments_from(
    table: &Table,
    path: &Path,
    command: &Command,
    subcommand: &str,
    given: &ArgMatches,
) -> Result<Vec<OsString>, ConfigError> {
    let mut out = Vec::new();
    for (key, value) in table {
        let long = key.replace('_', "-");
        let own = command.find_subcommand(subcommand).and_then(|c| Some((c, option(c, &long)?)));
        if let Some((subcommand, option)) = own {
            let values = arguments(option, &long, value)
                .ok_or_else(|| ConfigError::Value { path: path.to_owned(), key: key.clone() })?;
            if !is_given(given, option) && !conflicts(subcommand, given, option) {
                out.extend(values);
            }
        } else if long == OPTION || !command.get_subcommands().any(|c| option(c, &long).is_some()) {
            return Err(ConfigError::UnknownKey { path: path.to_owned(), key: key.clone() });
        }
    }
    Ok(out)
}

/// The option with this key.
fn option<'a>(command: &'a Command, long: &str) -> Option<&'a Arg> {
    let mut options = command.get_arguments().filter(|option| option.get_env().is_some());
    options.find(|option| long != OPTION && option.get_long() == Some(long))
}

/// Whether an option that was given excludes this one.
fn conflicts(command: &Command, given: &ArgMatches, option: &Arg) -> bool {
    let mut others = command.get_arguments().filter(|other| is_given(given, other));
    others.any(|other| exclude_each_other(command, other, option))
}

fn exclude_each_other(command: &Command, one: &Arg, other: &Arg) -> bool {
    let excludes = |one: &Arg, other: &Arg| {
        command.get_arg_conflicts_with(one).iter().any(|found| found.get_id() == other.get_id())
    };
    excludes(one, other) || excludes(other, one)
}

fn is_given(given: &ArgMatches, option: &Arg) -> bool {
    let source = given.value_source(option.get_id().as_str());
    matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

/// `None` if the option does not take such a value.
fn arguments(option: &Arg, long: &str, value: &Value) -> Option<Vec<OsString>> {
    let takes_value = option.get_action().takes_values();
    let optional = option.get_num_args().is_some_and(|range| range.min_values() == 0);
    let with = |text: String| takes_value.then(|| vec![OsString::from(format!("--{long}={text}"))]);
    match value {
        Value::Boolean(on) if !takes_value || optional => {
            Some(if *on { vec![OsString::from(format!("--{long}"))] } else { Vec::new() })
        }
        Value::Boolean(on) => with(on.to_string()),
        Value::String(text) => with(text.clone()),
        Value::Integer(number) => with(number.to_string()),
        Value::Float(number) => with(number.to_string()),
        Value::Array(values) => {
            let scalar = |value: &&Value| !matches!(value, Value::Array(_));
            let all = values.iter().filter(scalar).map(|value| arguments(option, long, value));
            let all: Vec<_> = all.collect::<Option<Vec<_>>>()?.concat();
            (all.len() == values.len()).then_some(all)
        }
        Value::Table(table) if takes_value => {
            let others = table.iter().filter(|(key, _)| *key != DEFAULT);
            let default = match table.get(DEFAULT) {
                Some(Value::String(text)) => with(text.clone())?,
                Some(_) => return None,
                None => Vec::new(),
            };
            others.into_iter().all(|(_, value)| value.is_table()).then_some(default)
        }
        Value::Table(_) | Value::Datetime(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ArgAction;

    fn command() -> Command {
        let config = || Arg::new("config").long("config");
        let data = || Arg::new("data").long("data").required(true).env("SYNCD_TEST_DATA");
        let port = || Arg::new("port").long("port").env("SYNCD_TEST_PORT").default_value("1");
        let tag = || Arg::new("tag").long("tag").short('t').env("SYNCD_TEST_TAG");
        Command::new("syncd")
            .subcommand(
                Command::new("serve")
                    .args([config(), data(), port()])
                    .arg(Arg::new("settle_max").long("settle-max").env("SYNCD_TEST_SETTLE_MAX"))
                    .arg(tag().action(ArgAction::Append))
                    .arg(Arg::new("alone").long("alone").env("SYNCD_TEST_ALONE").conflicts_with("tag"))
                    .arg(flag("json").env("SYNCD_TEST_JSON")),
            )
            .subcommand(
                Command::new("commit")
                    .args([config(), data(), Arg::new("label")])
                    .arg(flag("port"))
                    .arg(flag("dry"))
                    .arg(
                        Arg::new("wait")
                            .long("wait")
                            .env("SYNCD_TEST_WAIT")
                            .num_args(0..=1)
                            .require_equals(true),
                    ),
            )
    }

    fn flag(name: &'static str) -> Arg {
        Arg::new(name).long(name).action(ArgAction::SetTrue)
    }

    fn with(toml: &str, arguments: &[&str]) -> Result<ArgMatches, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml).unwrap();
        let config = format!("--config={}", file.path().display());
        let all = ["syncd"].iter().chain(arguments).copied().chain([config.as_str()]).map(OsString::from);
        let all = arguments_with_config(all, &command(), None)?;
        Ok(command().try_get_matches_from(all).unwrap())
    }

    fn value(matches: &ArgMatches, id: &str) -> Option<String> {
        matches.subcommand().unwrap().1.get_one::<String>(id).cloned()
    }

    #[test]
    fn the_file_is_above_defaults_and_below_flags() {
        let file = "data = '/d'\nport = 7\nsettle_max = '2s'\njson = true\ntag = ['a', 'b']";
        let matches = with(file, &["serve"]).unwrap();
        assert_eq!(value(&matches, "data").unwrap(), "/d");
        assert_eq!(value(&matches, "port").unwrap(), "7");
        assert_eq!(value(&matches, "settle_max").unwrap(), "2s");
        let serve = matches.subcommand().unwrap().1;
        assert!(serve.get_flag("json"));
        assert_eq!(serve.get_many::<String>("tag").unwrap().collect::<Vec<_>>(), ["a", "b"]);

        let matches = with(file, &["serve", "--port", "8", "--data=/e", "-tc"]).unwrap();
        assert_eq!(value(&matches, "port").unwrap(), "8");
        assert_eq!(value(&matches, "data").unwrap(), "/e");
        let tags = matches.subcommand().unwrap().1.get_many::<String>("tag").unwrap();
        assert_eq!(tags.collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn the_usual_file_is_read_where_no_other_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let (usual, other) = (directory.path().join("usual.toml"), directory.path().join("other.toml"));
        let port = |words: &[&str]| {
            let all = ["syncd", "serve", "--data=/d"].iter().chain(words).map(OsString::from);
            let all = arguments_with_config(all, &command(), Some(&usual)).unwrap();
            let matches = command().try_get_matches_from(all).unwrap();
            (value(&matches, "port").unwrap(), value(&matches, "config"))
        };
        assert_eq!(port(&[]), ("1".to_owned(), None), "it may be missing");
        std::fs::write(&usual, "port = 7").unwrap();
        std::fs::write(&other, "port = 8").unwrap();
        assert_eq!(port(&[]), ("7".to_owned(), Some(usual.display().to_string())));
        assert_eq!(port(&["--config", other.to_str().unwrap()]).0, "8");
    }

    #[test]
    fn a_variable_is_above_the_file() {
        // clap reads the variable when the option is built, so that a set one can stand in for it.
        let path = std::env::var("PATH").unwrap();
        let with_env = command().mut_subcommand("serve", |c| c.mut_arg("settle_max", |a| a.env("PATH")));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "settle-max = '2s'").unwrap();
        let config = format!("--config={}", file.path().display());
        let all = ["syncd", "serve", "--data=/d", &config].map(OsString::from);
        let matches = with_env
            .clone()
            .try_get_matches_from(arguments_with_config(all, &with_env, None).unwrap())
            .unwrap();
        assert_eq!(value(&matches, "settle_max").unwrap(), path);
    }

    #[test]
    fn an_option_with_an_optional_value_takes_both() {
        let wait = |toml: &str| {
            let matches = with(toml, &["commit", "label", "--data=/d"]).unwrap();
            (matches.subcommand().unwrap().1.contains_id("wait"), value(&matches, "wait"))
        };
        assert_eq!(wait("wait = '60s'"), (true, Some("60s".to_owned())));
        assert_eq!(wait("wait = false"), (false, None));
        assert!(with("wait = true", &["commit", "--data=/d"]).is_ok());
    }

    #[test]
    fn keys_of_another_subcommand_are_left_alone_and_unknown_ones_named() {
        assert!(with("data = '/d'\nport = 7", &["commit"]).is_ok());
        for (toml, key) in [("prot = 7", "prot"), ("config = 'x'", "config"), ("[serve]\nport = 7", "serve")]
        {
            let error = with(toml, &["serve", "--data=/d"]).unwrap_err();
            assert!(matches!(&error, ConfigError::UnknownKey { key: k, .. } if k == key), "{error:?}");
        }
        for toml in ["port = { a = 1 }", "json = 'yes'", "port = [[1]]", "json = 3"] {
            let error = with(toml, &["serve", "--data=/d"]).unwrap_err();
            assert!(matches!(error, ConfigError::Value { .. }), "{error:?}");
        }
    }

    #[test]
    fn a_key_is_not_an_option_of_the_same_name_without_a_variable() {
        let matches = with("data = '/d'\nport = 7", &["commit"]).unwrap();
        assert!(!matches.subcommand().unwrap().1.get_flag("port"));
        let error = with("dry = true", &["commit", "--data=/d"]).unwrap_err();
        assert!(matches!(error, ConfigError::UnknownKey { .. }), "{error:?}");
    }

    #[test]
    fn a_key_gives_way_to_an_option_that_conflicts_with_it() {
        for (file, given) in [("tag = 'a'", "--alone=x"), ("alone = 'x'", "--tag=a")] {
            let matches = with(file, &["serve", "--data=/d", given]).unwrap();
            assert!(!matches.subcommand().unwrap().1.contains_id(&file[..file.find(' ').unwrap()]));
        }
    }

    #[test]
    fn a_variable_gives_way_to_a_typed_option_that_conflicts_with_it() {
        let path = std::env::var("PATH").unwrap();
        let with_env = command().mut_subcommand("serve", |c| {
            c.mut_arg("settle_max", |arg| arg.env("PATH"))
                .mut_arg("alone", |arg| arg.conflicts_with("settle_max"))
        });
        let parse = |given: &[&str]| {
            let given: Vec<OsString> =
                ["syncd", "serve", "--data=/d"].iter().chain(given).map(OsString::from).collect();
            typed_first(with_env.clone(), &given).try_get_matches_from(given)
        };
        assert_eq!(value(&parse(&[]).unwrap(), "settle_max").unwrap(), path);
        let typed = parse(&["--alone=x"]).unwrap();
        assert_eq!((value(&typed, "settle_max"), value(&typed, "alone")), (None, Some("x".to_owned())));
        assert!(parse(&["--alone=x", "--settle-max=1s"]).is_err(), "two typed ones");
    }

    #[test]
    fn a_table_of_tables_is_left_to_the_program_and_its_default_is_the_option() {
        let file = "data = '/d'\n[settle_max]\ndefault = '2s'\n[settle_max.other]\nx = 1";
        assert_eq!(value(&with(file, &["serve"]).unwrap(), "settle_max").unwrap(), "2s");
        assert!(with(file, &["commit"]).is_ok());
        let saved = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(saved.path(), file).unwrap();
        let found = table(saved.path(), "settle_max").unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["other"]);
        assert!(table(saved.path(), "nothing").unwrap().is_empty());
        let wrong = with("data = '/d'\n[json.x]\ny = 1", &["serve"]);
        assert!(matches!(wrong, Err(ConfigError::Value { .. })));
    }

    #[test]
    fn a_missing_or_broken_file_is_named() {
        let all = ["syncd", "serve", "--config", "/nonexistent"].map(OsString::from);
        let missing = arguments_with_config(all, &command(), None);
        assert!(matches!(missing, Err(ConfigError::Read { path, .. }) if path == Path::new("/nonexistent")));
        let Err(ConfigError::Syntax { source, .. }) = with("data = '/d'\nport 7", &["serve"]) else {
            panic!()
        };
        let text = source.to_string();
        assert!(text.starts_with("line 2: ") && !text.contains('\n'), "{text:?}");
    }

    #[test]
    fn a_wrong_value_is_told_with_where_it_comes_from_and_an_example() {
        let number = |argument: Arg| argument.value_parser(clap::value_parser!(u16)).default_value("7");
        let command = command().mut_subcommand("serve", |serve| {
            let serve = serve.mut_arg("port", |port| number(port).env("PATH"));
            let serve = serve.arg(number(Arg::new("short").long("short").short('s').env("SYNCD_TEST_SHORT")));
            serve.arg(number(Arg::new("keep").long("keep").value_name("N").env("SYNCD_TEST_KEEP")))
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "keep = 'many'").unwrap();
        let config = format!("--config={}", file.path().display());
        let wrong = |given: &[&str]| {
            let given: Vec<OsString> =
                ["syncd", "serve", "--data=/d"].iter().chain(given).map(OsString::from).collect();
            let arguments = arguments_with_config(given.clone(), &command, None).unwrap();
            let error = command.clone().try_get_matches_from(arguments).unwrap_err();
            explain(error, &command, &given, None).to_string()
        };
        let error = wrong(&[]);
        assert!(
            error.contains("--port") && error.contains("the value comes from the variable PATH"),
            "{error}"
        );
        assert!(error.contains("the default is --port 7"), "{error}");
        let error = wrong(&["--port=1", &config]);
        let expected = format!("the value comes from the key keep in {}", file.path().display());
        assert!(error.contains("--keep") && error.contains(&expected), "{error}");
        let error = wrong(&["--port=1", "--keep", "many"]);
        assert!(error.contains("--keep") && !error.contains("comes from"), "{error}");
        let error = wrong(&["--port=1", "--keep=1", &config, "-s", "many"]);
        assert!(error.contains("--short") && !error.contains("comes from"), "{error}");
    }

    #[test]
    fn without_a_file_nothing_changes() {
        let all = ["syncd", "serve", "--wrong"].map(OsString::from);
        assert_eq!(arguments_with_config(all.clone(), &command(), None).unwrap(), all);
        let none = ["syncd"].map(OsString::from);
        assert_eq!(arguments_with_config(none.clone(), &command(), None).unwrap(), none);
    }
}
