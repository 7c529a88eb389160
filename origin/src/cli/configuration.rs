//! `syncd-origin config`: checks and shows the configuration of `serve`.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;
use syncd_runtime::config_file;
use syncd_runtime::output::{self, note};
use syncd_runtime::settings::{self, ConfigAction};

use super::arguments::{CONFIG, Cli, Command};

const PROGRAM: &str = "syncd-origin";
const SERVICE: &str = "serve";

pub(super) fn run(action: ConfigAction) -> anyhow::Result<ExitCode> {
    match action {
        ConfigAction::Check(given) => {
            let parsed = Cli::from_arguments(given.command_line(PROGRAM, SERVICE))?;
            if let Command::Serve(serve) = parsed.unwrap_or_else(|error| error.exit()).command {
                let warnings = serve.check()?;
                warnings.into_iter().for_each(note);
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
