//! Policies: how a generation reaches the nodes. Parsed from the tables `[rollout.NAME]` of `--config`, and
//! checked before anything uses them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use syncd_shared::time_span::parse_time;
use toml::{Table, Value};

/// Twice what a balancer usually needs to take a node in again.
const HOLD_MS: i64 = 30_000;
const DEADLINE_MS: i64 = 5 * 60_000;
/// A rollback does not wait longer than this for nodes that are slow to stage.
const ROLLBACK_DEADLINE_MS: i64 = 10_000;
/// Longest hold or deadline: a week.
const TIME_MAX_MS: i64 = 7 * 24 * 3_600_000;
const STEPS_MAX: usize = 100;
const KEYS: &[&str] = &["steps", "flip", "hold", "deadline", "quorum", "check"];

/// Built-in: every node activates as soon as it has staged.
pub const EACH: &str = "each";
/// Built-in: all nodes stage, then all activate.
pub const TOGETHER: &str = "together";

/// How the nodes of a step activate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flip {
    /// Each as soon as it has staged.
    Each,
    /// All at once, when all have staged.
    Together,
}

/// The nodes of one step, taken from those that no earlier step has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The first ones by name.
    Nodes(usize),
    /// Percentage of the participants at the start, rounded up.
    Percent(u8),
    Group(String),
    Rest,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Policy {
    pub name: String,
    /// Ends with [`Step::Rest`], and has it nowhere else.
    pub steps: Vec<Step>,
    pub flip: Flip,
    /// Pause after each step but the last.
    pub hold_ms: i64,
    /// Limit for staging a step, and for its activation.
    pub deadline_ms: i64,
    /// Percentage of a step's participants that suffices at the deadline.
    pub quorum_percent: u8,
    /// Command at the origin, given to `sh -c`: must pass before the first flip and during each hold.
    pub check: Option<String>,
}

/// Reasons that a policy is not usable. The text names the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("rollout policy {name:?} is built in: give yours another name")]
    BuiltIn { name: String },
    #[error("[rollout.{policy}] has an unknown key {key:?}: its keys are {}", KEYS.join(", "))]
    UnknownKey { policy: String, key: String },
    #[error("[rollout.{policy}] {key} is {actual}: it must be {expected}")]
    Value { policy: String, key: &'static str, actual: String, expected: &'static str },
    #[error(
        "the steps of [rollout.{policy}] must end with {{ rest = true }}, and have it nowhere else: otherwise some nodes \
         would never get a generation"
    )]
    Rest { policy: String },
    #[error("the steps of [rollout.{policy}] add up to {percent} %: at most 100 is possible")]
    Percent { policy: String, percent: u32 },
    #[error("there is no rollout policy {name:?}: there are {}", known.join(", "))]
    Unknown { name: String, known: Vec<String> },
}

impl Policy {
    fn built_in(name: &str, flip: Flip) -> Self {
        Self {
            name: name.to_owned(),
            steps: vec![Step::Rest],
            flip,
            hold_ms: HOLD_MS,
            deadline_ms: DEADLINE_MS,
            quorum_percent: 100,
            check: None,
        }
    }

    pub fn each() -> Self {
        Self::built_in(EACH, Flip::Each)
    }

    pub fn together() -> Self {
        Self::built_in(TOGETHER, Flip::Together)
    }

    /// The policy of rollbacks: all nodes that have staged within a short time activate together.
    pub fn rollback() -> Self {
        let deadline_ms = ROLLBACK_DEADLINE_MS;
        Self { deadline_ms, quorum_percent: 0, ..Self::built_in("rollback", Flip::Together) }
    }

    /// Whether nothing has to be coordinated: every node takes the generation as soon as it can.
    pub fn is_immediate(&self) -> bool {
        self.flip == Flip::Each && self.steps == [Step::Rest] && self.check.is_none()
    }

    /// Reads one table.
    fn parse(name: &str, table: &Table) -> Result<Self, PolicyError> {
        let mut policy = Self { name: name.to_owned(), ..Self::together() };
        for (key, value) in table {
            let wrong = |key, expected| PolicyError::Value {
                policy: name.to_owned(),
                key,
                actual: shown(value),
                expected,
            };
            match key.as_str() {
                "steps" => policy.steps = steps(name, value)?,
                "flip" => {
                    policy.flip = match value.as_str() {
                        Some("each") => Flip::Each,
                        Some("together") => Flip::Together,
                        _ => return Err(wrong("flip", "\"each\" or \"together\"")),
                    }
                }
                "hold" => {
                    policy.hold_ms = time_ms(value).ok_or_else(|| wrong("hold", "a time, as in \"30s\""))?;
                }
                "deadline" => {
                    let ms = time_ms(value).filter(|ms| *ms > 0);
                    policy.deadline_ms = ms.ok_or_else(|| wrong("deadline", "a time, as in \"5m\""))?;
                }
                "quorum" => {
                    policy.quorum_percent = quorum(value)
                        .ok_or_else(|| wrong("quorum", "\"all\", or from \"1%\" to \"100%\""))?;
                }
                "check" => {
                    let command = value.as_str().filter(|command| !command.trim().is_empty());
                    policy.check =
                        Some(command.ok_or_else(|| wrong("check", "a command for sh"))?.to_owned());
                }
                _ => {
                    return Err(PolicyError::UnknownKey { policy: name.to_owned(), key: key.clone() });
                }
            }
        }
        Ok(policy)
    }
}

fn steps(policy: &str, value: &Value) -> Result<Vec<Step>, PolicyError> {
    const EXPECTED: &str =
        "an array such as [ { nodes = 1 }, { percent = 25 }, { group = \"eu\" }, { rest = true } ]";
    let wrong = |actual: &Value| PolicyError::Value {
        policy: policy.to_owned(),
        key: "steps",
        actual: shown(actual),
        expected: EXPECTED,
    };
    let list = value.as_array().filter(|list| (1..=STEPS_MAX).contains(&list.len()));
    let list = list.ok_or_else(|| wrong(value))?;
    let steps = list.iter().map(|item| step(item).ok_or_else(|| wrong(item)));
    let steps: Vec<Step> = steps.collect::<Result<_, _>>()?;
    let rests = steps.iter().filter(|step| **step == Step::Rest).count();
    if rests != 1 || steps.last() != Some(&Step::Rest) {
        return Err(PolicyError::Rest { policy: policy.to_owned() });
    }
    let percent =
        steps.iter().map(|step| if let Step::Percent(percent) = step { u32::from(*percent) } else { 0 });
    let percent = percent.sum();
    if percent > 100 {
        return Err(PolicyError::Percent { policy: policy.to_owned(), percent });
    }
    Ok(steps)
}

/// `None` unless the item is a table with one known key and a value in its bounds.
fn step(item: &Value) -> Option<Step> {
    let table = item.as_table().filter(|table| table.len() == 1)?;
    let (key, value) = table.iter().next()?;
    match (key.as_str(), value) {
        ("nodes", Value::Integer(nodes)) if *nodes > 0 => Some(Step::Nodes(usize::try_from(*nodes).ok()?)),
        ("percent", Value::Integer(percent)) if (1..=100).contains(percent) => {
            Some(Step::Percent(u8::try_from(*percent).ok()?))
        }
        ("group", Value::String(group)) if !group.is_empty() => Some(Step::Group(group.clone())),
        ("rest", Value::Boolean(true)) => Some(Step::Rest),
        _ => None,
    }
}

/// `None` unless the value is a time of at most [`TIME_MAX_MS`]. `0s` is one.
fn time_ms(value: &Value) -> Option<i64> {
    let text = value.as_str()?;
    if text == "0s" || text == "0" {
        return Some(0);
    }
    let ms = i64::try_from(parse_time(text).ok()?.as_millis()).ok()?;
    (ms <= TIME_MAX_MS).then_some(ms)
}

/// A value as it was written, for messages.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(on) => on.to_string(),
        Value::Datetime(time) => time.to_string(),
        Value::Array(values) => format!("[ {} ]", values.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Value::Table(table) => {
            let pairs = table.iter().map(|(key, value)| format!("{key} = {}", shown(value)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
    }
}

fn quorum(value: &Value) -> Option<u8> {
    match value.as_str()? {
        "all" => Some(100),
        text => text.strip_suffix('%')?.parse().ok().filter(|percent| (1..=100).contains(percent)),
    }
}

/// The policies that an origin knows, and the one for what is published without a choice.
#[derive(Debug, Clone)]
pub struct Policies {
    named: BTreeMap<String, Policy>,
    default: Policy,
}

impl Default for Policies {
    fn default() -> Self {
        let named = [Policy::each(), Policy::together()].map(|policy| (policy.name.clone(), policy));
        Self { named: named.into(), default: Policy::each() }
    }
}

impl Policies {
    /// Reads the tables below `rollout`, and chooses `default` (`serve --rollout`).
    pub fn parse(tables: &Table, default: Option<&str>) -> Result<Self, PolicyError> {
        let mut policies = Self::default();
        for (name, table) in tables {
            let Some(table) = table.as_table() else {
                return Err(PolicyError::UnknownKey { policy: "NAME".to_owned(), key: name.clone() });
            };
            if policies.named.contains_key(name) {
                return Err(PolicyError::BuiltIn { name: name.clone() });
            }
            policies.named.insert(name.clone(), Policy::parse(name, table)?);
        }
        if let Some(default) = default {
            policies.default = policies.get(default)?.clone();
        }
        Ok(policies)
    }

    pub fn get(&self, name: &str) -> Result<&Policy, PolicyError> {
        let known = || self.named.keys().cloned().collect();
        self.named.get(name).ok_or_else(|| PolicyError::Unknown { name: name.to_owned(), known: known() })
    }

    /// The policy of publications that name none.
    pub fn default_policy(&self) -> &Policy {
        &self.default
    }

    /// Whether a policy has a check, which is a command.
    pub fn run_commands(&self) -> bool {
        self.named.values().any(|policy| policy.check.is_some())
    }

    /// Warnings for a person: policies that hold, and ask nothing during the hold.
    pub fn warnings(&self) -> Vec<String> {
        let holds = |policy: &&Policy| policy.steps.len() > 1 && policy.hold_ms > 0 && policy.check.is_none();
        let warning = |policy: &Policy| {
            format!(
                "[rollout.{}] holds without a check: only the nodes' own checks and `syncd-origin rollout abort` stop it; \
                 give it `check = COMMAND`",
                policy.name
            )
        };
        self.named.values().filter(holds).map(warning).collect()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nodes(1) => write!(f, "1 node"),
            Self::Nodes(nodes) => write!(f, "{nodes} nodes"),
            Self::Percent(percent) => write!(f, "{percent} %"),
            Self::Group(group) => write!(f, "group {group}"),
            Self::Rest => write!(f, "the rest"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Policies, PolicyError> {
        let table: Table = text.parse().unwrap();
        Policies::parse(table["rollout"].as_table().unwrap(), None)
    }

    #[test]
    fn a_policy_is_read_with_its_defaults() {
        let text = "[rollout.careful]
            steps = [ { nodes = 1 }, { percent = 25 }, { group = 'eu' }, { rest = true } ]
            flip = 'each'
            hold = '1m'
            deadline = '10s'
            quorum = '90%'
            check = 'ask-prometheus'
            [rollout.plain]";
        let policies = parse(text).unwrap();
        let careful = policies.get("careful").unwrap();
        let steps = [Step::Nodes(1), Step::Percent(25), Step::Group("eu".into()), Step::Rest];
        assert_eq!((careful.steps.as_slice(), careful.flip), (steps.as_slice(), Flip::Each));
        assert_eq!((careful.hold_ms, careful.deadline_ms, careful.quorum_percent), (60_000, 10_000, 90));
        assert_eq!(careful.check.as_deref(), Some("ask-prometheus"));
        let plain = policies.get("plain").unwrap();
        assert_eq!(*plain, Policy { name: "plain".into(), ..Policy::together() });
        assert!(Policy::each().is_immediate() && !plain.is_immediate());
        assert_eq!(policies.default_policy(), &Policy::each());
        assert!(policies.warnings().is_empty());
    }

    #[test]
    fn a_mistake_is_named_with_what_is_right() {
        for (text, words) in [
            ("stpes = []", "unknown key \"stpes\": its keys are steps, flip"),
            ("steps = []", "must be an array"),
            ("steps = [ { nodes = 0 }, { rest = true } ]", "{ nodes = 0 }"),
            ("steps = [ { percent = 101 }, { rest = true } ]", "{ percent = 101 }"),
            ("steps = [ { percent = 60 }, { percent = 50 }, { rest = true } ]", "110 %"),
            ("steps = [ { nodes = 1 } ]", "must end with { rest = true }"),
            ("steps = [ { rest = true }, { rest = true } ]", "must end with"),
            ("steps = [ { nodes = 1, group = 'x' }, { rest = true } ]", "must be an array"),
            ("flip = 'all'", "\"each\" or \"together\""),
            ("hold = 30", "a time, as in"),
            ("hold = '8d'", "a time, as in"),
            ("deadline = '0s'", "a time, as in"),
            ("quorum = '0%'", "\"all\""),
            ("quorum = '101%'", "\"all\""),
            ("check = ''", "a command"),
        ] {
            let error = parse(&format!("[rollout.careful]\n{text}")).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("careful"), "{text}: {error}");
        }
        assert!(matches!(parse("[rollout.each]"), Err(PolicyError::BuiltIn { .. })));
        assert!(matches!(parse("[rollout]\nhold = '1s'"), Err(PolicyError::UnknownKey { .. })));
        let unknown = Policies::default().get("carful").unwrap_err().to_string();
        assert_eq!(unknown, "there is no rollout policy \"carful\": there are each, together");
    }

    #[test]
    fn a_hold_without_a_check_is_warned_of() {
        let policies = parse("[rollout.blind]\nsteps = [ { nodes = 1 }, { rest = true } ]").unwrap();
        assert!(policies.warnings()[0].starts_with("[rollout.blind] holds without a check"));
    }
}
