//! `--summary FILE`: a commit in Markdown, as the steps of pipelines show it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use indicatif::{HumanBytes, HumanCount};

use crate::admin::protocol::{GenerationLine, NodeLine};
use crate::fleet::live_wait::seconds;

/// The file, open for appending.
pub(super) struct Summary {
    path: PathBuf,
    file: File,
}

impl Summary {
    /// Opened before the commit, so that one whose report can't be written is not made.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.with_context(|| format!("open {} for --summary", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends the report. `code`: the exit code.
    pub(super) fn write(
        mut self,
        generation: Option<&GenerationLine>,
        nodes: &[NodeLine],
        remarks: &[String],
        code: u8,
    ) -> anyhow::Result<()> {
        let text = text(generation, nodes, remarks, code);
        let written = self.file.write_all(text.as_bytes());
        written.with_context(|| format!("write {}", self.path.display()))
    }
}

fn text(generation: Option<&GenerationLine>, nodes: &[NodeLine], remarks: &[String], code: u8) -> String {
    let mut out = String::new();
    let result = match code {
        0 => "done",
        3 => "not live on every node",
        _ => "failed",
    };
    // Writing to a string does not fail.
    let _ = match generation {
        None => writeln!(out, "### syncd: {result}\n"),
        Some(line) => {
            let label = Some(&line.label).filter(|label| !label.is_empty());
            let label = label.map(|label| format!(" ({})", escaped(label))).unwrap_or_default();
            let (files, bytes) = (HumanCount(line.files), HumanBytes(line.bytes));
            let news = if line.changed { "" } else { " Nothing had changed." };
            writeln!(
                out,
                "### syncd: generation {}{label}: {result}\n\n{files} files, {bytes}, root `{:.12}`.{news}\n",
                line.generation, line.root
            )
        }
    };
    if !nodes.is_empty() {
        out.push_str("| node | result | after |\n| --- | --- | ---: |\n");
        for node in nodes {
            let error = node.error.as_ref().map(|error| format!(": {}", escaped(error))).unwrap_or_default();
            let after = seconds(std::time::Duration::from_millis(node.after_ms));
            let _ = writeln!(out, "| {} | {}{error} | {after} |", escaped(&node.name), node.result);
        }
        out.push('\n');
    }
    for remark in remarks {
        let _ = writeln!(out, "* {}", escaped(remark));
    }
    if !remarks.is_empty() {
        out.push('\n');
    }
    out
}

/// Text that Markdown and HTML show as it is.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            c if "\\`*_[]|#~".contains(c) => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::live_wait::NodeResult;

    #[test]
    fn a_table_of_nodes_with_text_that_is_escaped() {
        let line = GenerationLine {
            generation: 42,
            root: "ab".repeat(32),
            label: "release <7>".into(),
            created: String::new(),
            files: 1_234,
            bytes: 2_048,
            changed: true,
            indistinct: Default::default(),
            retimed: Default::default(),
        };
        let node = |name: &str, result, error: Option<&str>| NodeLine {
            name: name.into(),
            result,
            error: error.map(str::to_owned),
            after_ms: 1_500,
        };
        let nodes =
            [node("web1", NodeResult::Live, None), node("web2", NodeResult::HookFailed, Some("a|b *c*"))];
        let expected = "### syncd: generation 42 (release &lt;7>): not live on every node\n\n\
                        1,234 files, 2.00 KiB, root `abababababab`.\n\n\
                        | node | result | after |\n| --- | --- | ---: |\n\
                        | web1 | live | 1.5 s |\n| web2 | hook failed: a\\|b \\*c\\* | 1.5 s |\n\n\
                        * one is down\n\n";
        assert_eq!(text(Some(&line), &nodes, &["one is down".into()], 3), expected);
        assert_eq!(text(None, &[], &["held".into()], 1), "### syncd: failed\n\n* held\n\n");
    }
}
