//! Commands to copy.

use std::path::Path;

use maud::{Markup, html};

/// DATA of a command line without `--data`.
const DATA: &str = "/var/lib/syncd/origin";

/// Writes command lines for the origin that serves one DATA.
#[derive(Debug, Clone)]
pub struct Commands {
    data: Option<String>,
}

impl Commands {
    pub fn new(data: &Path) -> Self {
        let is_default = data == Path::new(DATA);
        Self { data: (!is_default).then(|| quoted(&data.to_string_lossy())) }
    }

    /// `syncd-origin ARGUMENTS`, with `--data` where it is needed.
    pub fn origin(&self, arguments: &[&str]) -> String {
        let mut line = "syncd-origin".to_owned();
        for argument in arguments {
            line.push(' ');
            line.push_str(&quoted(argument));
        }
        if let Some(data) = &self.data {
            line.push_str(" --data ");
            line.push_str(data);
        }
        line
    }
}

/// A word as a shell takes it for one.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A command with a button that copies it. The script shows the button.
pub fn command(line: &str) -> Markup {
    html! {
        span.command {
            code { (line) }
            button type="button" hidden data-copy=(line) aria-label={ "Copy: " (line) } { "Copy" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_line_means_what_it_shows() {
        assert_eq!(Commands::new(Path::new(DATA)).origin(&["rollback", "41"]), "syncd-origin rollback 41");
        let elsewhere = Commands::new(Path::new("/srv/it's; rm -rf x"));
        assert_eq!(elsewhere.origin(&["commit"]), r"syncd-origin commit --data '/srv/it'\''s; rm -rf x'");
        assert_eq!(quoted(""), "''");
    }
}
