//! Rollout: which generation each agent gets, and whether it activates it when staged or waits.
//!
//! A policy is one pure file: a function from the agents as they are now and the newest generation to an
//! assignment for each. It does no IO and reads no clock. The owner task calls it when a generation is
//! announced or an agent connects, and after reports if the policy [follows](Policy::follows_reports) them;
//! sessions send what changes. Today's only policy is [`each`].

mod each;
#[cfg(test)]
mod together;

use std::sync::Arc;

use syncd_shared::SignedGeneration;

use super::view::AgentView;

/// The orders for one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub generation: Arc<SignedGeneration>,
    /// Whether the agent activates the generation once it is staged, or waits for a later assignment.
    pub activate: bool,
}

/// A rollout policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// See [`each`].
    #[default]
    Each,
    /// See [`together`].
    #[cfg(test)]
    Together,
}

impl Policy {
    /// The assignments of all agents, in their order.
    pub(super) fn assign(self, agents: &[&AgentView], newest: &Arc<SignedGeneration>) -> Vec<Assignment> {
        match self {
            Self::Each => each::assign(agents, newest),
            #[cfg(test)]
            Self::Together => together::assign(agents, newest),
        }
    }

    /// Whether the assignment of one agent depends on the others and on what they report. Every batch of
    /// reports then costs time in proportion to the fleet.
    pub(super) fn follows_reports(self) -> bool {
        match self {
            Self::Each => false,
            #[cfg(test)]
            Self::Together => true,
        }
    }
}
