//! State of an agent, as its messages and the status of both sides have it.

use std::fmt;

use serde::{Deserialize, Serialize};
use syncd_proto::v1;

use crate::wire::WireError;

/// State of an agent. Scripts depend on the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// No generation was ever live, or nothing is known yet.
    #[default]
    Empty,
    /// Fetching missing content.
    Fetching,
    /// Building a tree.
    Staging,
    /// A complete tree waits for activation.
    Staged,
    /// The newest tree is linked and durable, but the on-activate hook has not succeeded for it yet.
    Switched,
    /// The announced generation is live, or no newer one is known.
    Live,
    /// The last update failed, and will be retried.
    Failed,
}

impl AgentState {
    /// Reads the field of a message.
    ///
    /// # Errors
    /// It names no state.
    pub fn from_message(state: i32) -> Result<Self, WireError> {
        match v1::AgentState::try_from(state) {
            Ok(v1::AgentState::Empty) => Ok(Self::Empty),
            Ok(v1::AgentState::Fetching) => Ok(Self::Fetching),
            Ok(v1::AgentState::Staging) => Ok(Self::Staging),
            Ok(v1::AgentState::Staged) => Ok(Self::Staged),
            Ok(v1::AgentState::Switched) => Ok(Self::Switched),
            Ok(v1::AgentState::Live) => Ok(Self::Live),
            Ok(v1::AgentState::Failed) => Ok(Self::Failed),
            Ok(v1::AgentState::Unspecified) | Err(_) => Err(WireError::Missing { field: "state" }),
        }
    }

    pub fn to_message(self) -> v1::AgentState {
        match self {
            Self::Empty => v1::AgentState::Empty,
            Self::Fetching => v1::AgentState::Fetching,
            Self::Staging => v1::AgentState::Staging,
            Self::Staged => v1::AgentState::Staged,
            Self::Switched => v1::AgentState::Switched,
            Self::Live => v1::AgentState::Live,
            Self::Failed => v1::AgentState::Failed,
        }
    }
}

impl fmt::Display for AgentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::Fetching => "fetching",
            Self::Staging => "staging",
            Self::Staged => "staged",
            Self::Switched => "switched",
            Self::Live => "live",
            Self::Failed => "failed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_one_name_and_survives_the_wire() {
        let mut found = 0;
        for number in 0..20 {
            let Ok(state) = AgentState::from_message(number) else { continue };
            found += 1;
            assert_eq!(i32::from(state.to_message()), number);
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
        }
        assert_eq!(found, 7);
    }
}
