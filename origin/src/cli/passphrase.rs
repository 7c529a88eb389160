//! The passphrase of a root key: from a file, or asked for on a terminal.

use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

/// Asks for the passphrase of a new root key, twice, unless a file has it. An empty answer, or no terminal to
/// ask on, means none.
pub(super) fn for_new_key(file: Option<&Path>) -> anyhow::Result<Option<String>> {
    if file.is_some() || !std::io::stdin().is_terminal() {
        return file.map(from_file).transpose();
    }
    let first = ask("Passphrase for the root key (empty: none): ")?;
    if first.is_empty() {
        return Ok(None);
    }
    ensure!(first == ask("The same passphrase again: ")?, "the two passphrases differ: nothing was done");
    Ok(Some(first))
}

/// Asks for the passphrase of a sealed root key, unless a file has it.
pub(super) fn for_sealed_key(file: Option<&Path>) -> anyhow::Result<Option<String>> {
    match file {
        Some(file) => from_file(file).map(Some),
        None if std::io::stdin().is_terminal() => ask("Passphrase of the root key: ").map(Some),
        None => Ok(None),
    }
}

/// The first line of a file.
fn from_file(path: &Path) -> anyhow::Result<String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("read the passphrase in {shown}"))?;
    let first = text.lines().next().unwrap_or_default();
    if first.is_empty() {
        bail!("the first line of {shown} is empty: write the passphrase there");
    }
    Ok(first.to_owned())
}

fn ask(prompt: &str) -> anyhow::Result<String> {
    let mut out = std::io::stderr();
    write!(out, "{prompt}")?;
    out.flush()?;
    let hidden = Hidden::start();
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    drop(hidden);
    writeln!(out)?;
    read.context("read the passphrase")?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// Shows no input while it exists. Without `stty` the input is shown.
struct Hidden;

impl Hidden {
    fn start() -> Self {
        echo("-echo");
        Self
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        echo("echo");
    }
}

fn echo(mode: &str) {
    let _ = Command::new("stty").arg(mode).stdin(Stdio::inherit()).stderr(Stdio::null()).status();
}
