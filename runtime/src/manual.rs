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
    clap_complete::generate(shell, &mut program, name, &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())
}

/// Writes a man page for `program` and for each of its commands to `directory`, which exists.
///
/// Whole pages are replaced.
pub fn write_pages(program: Command, directory: &Path) -> io::Result<()> {
    clap_mangen::generate_to(program, directory)
}
