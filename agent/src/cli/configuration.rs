//! `syncd-agent config`: checks and shows the configuration of `run`.

use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, Subcommand};
use syncd_runtime::config_file;
use syncd_runtime::output;
use syncd_runtime::settings::{self, Given};

use super::arguments::{CONFIG_CHECK_HELP, CONFIG_SHOW_HELP};
use super::{CONFIG, Cli, Command};

const PROGRAM: &str = "syncd-agent";
const SERVICE: &str = "run";

#[derive(Debug, Subcommand)]
pub(super) enum ConfigAction {
    /// Check the configuration file, the environment and given options, without starting anything.
    #[command(after_help = CONFIG_CHECK_HELP)]
    Check(Given),
    /// Show every option with its value, and where the value comes from.
    #[command(after_help = CONFIG_SHOW_HELP)]
    Show {
        #[command(flatten)]
        given: Given,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(action: ConfigAction) -> anyhow::Result<ExitCode> {
    match action {
        ConfigAction::Check(given) => {
            let parsed = Cli::from_arguments(given.command_line(PROGRAM, SERVICE));
            if let Command::Run(run) = parsed.unwrap_or_else(|error| error.exit()).command {
                run.options()?;
            }
            output::line("the configuration is valid")?;
        }
        ConfigAction::Show { given, json } => {
            let (command, line) = (Cli::command(), given.command_line(PROGRAM, SERVICE));
            let usual = Path::new(CONFIG);
            let settings = settings::settings(&command, &line, usual)?
                .unwrap_or_else(|error| config_file::explain(error, &command, &line, Some(usual)).exit());
            settings::print(&settings, json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
