//! Completions and man pages, generated from the command line.

use std::io;
use std::path::Path;

use clap::Command;
pub use clap_complete::Shell;

use crate::output::{self, OutputError};

/// Prints the completions of `program` for `shell` on standard output.
pub fn print_completions(mut program: Command, shell: Shell) -> Result<(), OutputError> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, name.as_str(), &mut script);
    let script = String::from_utf8_lossy(&script);
    output::line(labels_as_compared(&name, &script).trim_end())
}

/// Gives a program with a hyphen in its name the labels that the generated script compares with, in which
/// the hyphen is `__` and not `__subcmd__`. Without this, bash completes no option of a command
/// (clap-rs/clap#6421, not in a release yet).
fn labels_as_compared(name: &str, script: &str) -> String {
    let [labelled, compared] =
        ["__subcmd__", "__"].map(|hyphen| format!("{}__subcmd__", name.replace('-', hyphen)));
    script.replace(&labelled, &compared)
}

/// Writes a man page for `program` and for each of its commands to `directory`, which exists.
///
/// Whole pages are replaced.
pub fn write_pages(program: Command, directory: &Path) -> io::Result<()> {
    clap_mangen::generate_to(program, directory)
}
