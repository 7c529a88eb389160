//! `syncd-origin config`: checks and shows the configuration of `serve`.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;
use syncd_runtime::config_file;
use syncd_runtime::output::{self, note};
use syncd_runtime::settings::{self, ConfigAction};

use super::arguments::{CONFIG, Cli, Command};
use super::collected;

const PROGRAM: &str = "syncd-origin";
const SERVICE: &str = "serve";

/// Checks what options and tables mean together, and whether the tree is there.
fn check(parsed: Cli) -> anyhow::Result<()> {
    let Command::Serve(serve) = parsed.command else { return Ok(()) };
    let config = serve.data.config.as_deref();
    super::policies(config, serve.rollout.as_deref())?;
    let git = serve.git.options(serve.trigger, serve.mtime).map_err(anyhow::Error::msg)?;
    let directories = collected::directories(config)?;
    anyhow::ensure!(
        serve.tree.is_dir(),
        "there is no directory {}: give the right --tree",
        serve.tree.display()
    );
    for directory in directories {
        anyhow::ensure!(git.is_none(), "[collect.{}] needs a tree in a directory, not git", directory.name);
        directory.check_parent(&serve.tree)?;
        if directory.has_files(&serve.tree) {
            note(format_args!(
                "[collect.{name}]: the tree has files in {path}, which nodes keep until `syncd-origin collected adopt \
                 {name}` takes them",
                name = directory.name,
                path = directory.path
            ));
        }
    }
    Ok(())
}

pub(super) fn run(action: ConfigAction) -> anyhow::Result<ExitCode> {
    match action {
        ConfigAction::Check(given) => {
            let parsed = Cli::from_arguments(given.command_line(PROGRAM, SERVICE))?;
            check(parsed.unwrap_or_else(|error| error.exit()))?;
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
