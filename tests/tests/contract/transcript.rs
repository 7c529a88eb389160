//! Commands and what they print, with everything replaced that differs from run to run.

use std::process::Command;
use std::time::Duration;

use regex::Regex;
use serde_json::Value;
use syncd_tests::process::run_within;
use syncd_tests::{Agent, Origin, Scene, binary};

/// Keys of numbers that depend on time or on the machine.
const MEASURED: [&str; 3] = ["after_ms", "history_bytes", "took_ms"];

/// A list of commands with their output.
#[derive(Default)]
pub struct Transcript {
    text: String,
    /// Strings, and the words that stand for them.
    hidden: Vec<(String, String)>,
}

impl Transcript {
    /// An empty transcript that hides the directory of the test.
    pub fn of(scene: &Scene) -> Self {
        let mut transcript = Self::default();
        transcript.hide(scene.directory().to_str().expect("a path of text"), "SCENE");
        transcript
    }

    /// Shows `[WORD]` in place of `text` from now on.
    pub fn hide(&mut self, text: &str, word: &str) {
        self.hidden.push((text.to_owned(), format!("[{word}]")));
    }

    /// Runs a program without environment; returns its standard output as it is.
    #[track_caller]
    pub fn program(&mut self, name: &str, args: &[&str]) -> String {
        self.add(&format!("{name} {}", args.join(" ")), Command::new(binary(name)).args(args))
    }

    /// Runs a command of the origin; returns its standard output as it is.
    #[track_caller]
    pub fn origin(&mut self, origin: &Origin, command: &str, args: &[&str]) -> String {
        self.add(&format!("syncd-origin {command} {}", args.join(" ")), &mut origin.command(command, args))
    }

    /// Runs a command of an agent; returns its standard output as it is.
    #[track_caller]
    pub fn agent(&mut self, agent: &Agent, command: &str, args: &[&str]) -> String {
        self.add(&format!("syncd-agent {command} {}", args.join(" ")), &mut agent.command(command, args))
    }

    #[track_caller]
    fn add(&mut self, line: &str, command: &mut Command) -> String {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            // The width of help follows COLUMNS.
            if name.starts_with("SYNCD_") || name == "COLUMNS" {
                command.env_remove(name);
            }
        }
        let outcome = run_within(command.env("NO_COLOR", "1"), Duration::from_secs(120));
        self.text.push_str(&format!("$ {}\n", line.trim_end()));
        for line in outcome.stdout.lines() {
            let json = serde_json::from_str(line).ok().filter(Value::is_object);
            self.text.push_str(&json.map_or_else(|| line.trim_end().to_owned(), pretty));
            self.text.push('\n');
        }
        // Log lines report the progress of slow work: they depend on load.
        for line in outcome.stderr.lines().filter(|line| !line.contains("Z  INFO ")) {
            self.text.push_str(format!("! {line}").trim_end());
            self.text.push('\n');
        }
        if outcome.code != Some(0) {
            self.text.push_str(&format!("[{}]\n", outcome.code.expect("an exit code")));
        }
        self.text.push('\n');
        outcome.stdout
    }

    /// All commands so far.
    pub fn text(&self) -> String {
        let mut text = self.text.clone();
        for (hidden, word) in &self.hidden {
            text = text.replace(hidden, word);
        }
        for (pattern, word) in [
            (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[TIME]"),
            (r"\b[0-9a-f]{12,}\b", "[HASH]"),
            (r"\b[0-9a-f]{8}\b", "[ID]"),
            (r"\bsyncd1-[0-9A-Za-z_-]{40,}", "[TOKEN]"),
            (r"127\.0\.0\.1:\d{4,}", "127.0.0.1:[PORT]"),
            (r"\bafter \d+(\.\d+)? m?s\b", "after [SPAN]"),
            (r"\bhistory  .* besides\b", "history  [BYTES] besides"),
            (&format!(r"\b{}\b", regex::escape(env!("CARGO_PKG_VERSION"))), "[VERSION]"),
        ] {
            text = Regex::new(pattern).expect("a pattern").replace_all(&text, word).into_owned();
        }
        text
    }
}

fn pretty(mut value: Value) -> String {
    measured(&mut value);
    serde_json::to_string_pretty(&value).expect("JSON")
}

fn measured(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if MEASURED.contains(&key.as_str()) && value.is_number() {
                    *value = "[NUMBER]".into();
                }
                measured(value);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(measured),
        _ => {}
    }
}
