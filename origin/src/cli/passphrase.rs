//! The passphrase of a root key: from a file, or asked for on a terminal.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use syncd_runtime::output::note;

/// Asks for the passphrase of a new root key, twice, unless a file has it. An empty answer, or no terminal to
/// ask on, means none, which is said.
pub(super) fn for_new_key(file: Option<&Path>) -> anyhow::Result<Option<String>> {
    if file.is_some() {
        return file.map(from_file).transpose();
    }
    let is_asked = std::io::stdin().is_terminal();
    let first = if is_asked { ask("Passphrase for the root key (empty: none): ")? } else { String::new() };
    if first.is_empty() {
        note(
            "The root key is not sealed: whoever reads its file can use it. --root-passphrase-file FILE seals it.",
        );
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

/// Asks a question that `y` or `yes` answers.
pub(super) fn confirms(question: &str) -> anyhow::Result<bool> {
    prompt(question)?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("read the answer")?;
    Ok(matches!(line.trim(), "y" | "yes"))
}

fn prompt(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stderr();
    write!(out, "{text}")?;
    out.flush()
}

fn ask(question: &str) -> anyhow::Result<String> {
    // Before the question, so that nothing typed after it is shown or sends a signal.
    let hidden = Hidden::start();
    prompt(question)?;
    let line = match hidden {
        Some(_) => typed(std::io::stdin().lock().bytes()),
        None => shown(),
    };
    drop(hidden);
    writeln!(std::io::stderr())?;
    line.context("read the passphrase")?.context("interrupted: nothing was done")
}

/// A line that the terminal shows.
fn shown() -> std::io::Result<Option<String>> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned()))
}

/// A line, key by key. `None`: Ctrl-C, Ctrl-\ or Ctrl-Z, or the end of the input before a line.
fn typed(keys: impl Iterator<Item = std::io::Result<u8>>) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    for key in keys {
        match key? {
            b'\n' | b'\r' => return String::from_utf8(line).map(Some).map_err(std::io::Error::other),
            0x03 | 0x1a | 0x1c => return Ok(None),
            // Ctrl-D.
            0x04 if line.is_empty() => return Ok(None),
            // Backspace: one character, which may have several bytes.
            0x08 | 0x7f => while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            // Ctrl-U.
            0x15 => line.clear(),
            byte => line.push(byte),
        }
    }
    Ok(None)
}

/// While it exists, the terminal shows no input, and passes on every key at once. Keys send no signals then,
/// because a signal would end the program and leave the terminal as it is.
struct Hidden {
    /// The former settings, as `stty -g` prints them.
    before: String,
}

impl Hidden {
    /// `None` without `stty`.
    fn start() -> Option<Self> {
        let before = stty(&["-g"])?;
        let hidden = Self { before: before.trim().to_owned() };
        stty(&["-echo", "-icanon", "-isig", "min", "1", "time", "0"])?;
        Some(hidden)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        stty(&[&self.before]);
    }
}

fn stty(arguments: &[&str]) -> Option<String> {
    let mut stty = Command::new("stty");
    let done = stty.args(arguments).stdin(Stdio::inherit()).stderr(Stdio::null()).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(keys: &[u8]) -> Option<String> {
        typed(keys.iter().map(|key| Ok(*key))).unwrap()
    }

    #[test]
    fn keys_become_a_line_and_an_interrupt_ends_it() {
        assert_eq!(after(b"correct horse\nmore").as_deref(), Some("correct horse"));
        assert_eq!(after(b"\r").as_deref(), Some(""));
        assert_eq!(
            after("wr\u{fc}\u{fc}\u{7f}ng\u{15}caf\u{e9}s\u{7f}\n".as_bytes()).as_deref(),
            Some("caf\u{e9}")
        );
        assert_eq!(after(b"\x7f\x7fa\n").as_deref(), Some("a"));
        for ends in [&b"secret\x03\n"[..], b"\x1c\n", b"\x1a\n", b"\x04\n", b"no end"] {
            assert_eq!(after(ends), None, "{ends:?}");
        }
        assert!(typed([Ok(0xff), Ok(b'\n')].into_iter()).is_err(), "not UTF-8");
    }
}
