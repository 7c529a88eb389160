//! Rollout: which generation each node gets, and whether it activates it when staged or waits.
//!
//! A generation goes to every node at once, or is rolled out by a [`policy`]. [`machine`] decides, purely,
//! from the nodes' reports ([`participants`]) and the time. [`record`] makes it durable, and the fleet's task
//! drives it. [`view`] is what people see.

pub mod machine;
pub mod participants;
pub mod policy;
pub mod record;
pub mod view;

use std::sync::Arc;

use syncd_shared::SignedGeneration;

pub use machine::{Kind, Order as RolloutOrder, OrderError, Phase};
pub use policy::{Policies, Policy, PolicyError};
pub use record::{Order, Plan};
pub use view::{RolloutStatus, RolloutView};

/// The orders for one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub generation: Arc<SignedGeneration>,
    /// Whether the agent activates the generation once it is staged, or waits for a later assignment.
    pub activate: bool,
    /// Others serve the generation already, so that the node is not ready before it does.
    pub flipped: bool,
}

/// A generation, and how it goes to the nodes.
#[derive(Debug, Clone)]
pub struct Publication {
    pub generation: Arc<SignedGeneration>,
    pub plan: Plan,
}
