//! *each*: every agent gets the newest generation at once, and activates it when it is staged.

use std::sync::Arc;

use syncd_shared::SignedGeneration;

use super::{AgentView, Assignment};

pub(super) fn assign(agents: &[&AgentView], newest: &Arc<SignedGeneration>) -> Vec<Assignment> {
    agents.iter().map(|_| Assignment { generation: newest.clone(), activate: true }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::together::tests::{agent, generation};
    use super::*;
    use crate::fleet::AgentState;

    #[test]
    fn every_agent_gets_the_newest_generation_whatever_it_is_at() {
        let mut agents = [agent("a"), agent("b"), agent("c")];
        agents[1].connected = false;
        agents[2].state = AgentState::Failed;
        let newest = Arc::new(generation(7));
        let assigned = assign(&agents.each_ref(), &newest);
        assert_eq!(assigned, vec![Assignment { generation: newest, activate: true }; 3]);
    }
}
